"""How long a sandbox lives, and what it does when its time is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from novasandbox.core import idle, registry
from novasandbox.core.hypervisor import SandboxConfig, SandboxState
from novasandbox.core.idle import TIMEOUT
from novasandbox.core.whole import whole
from novasandbox.errors import SandboxExpired

if TYPE_CHECKING:
    from novasandbox.core.holder import Holder


class Lifetime:
    """The time-to-live of a sandbox in the hands of this process."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._timer: asyncio.TimerHandle | None = None
        self._idling: asyncio.Task[None] | None = None
        self._lapsing: asyncio.Task[None] | None = None

    def deadline_anew(self) -> float | None:
        """When it ends, in seconds since the epoch, if its time begins now; None: never."""
        timeout = self._holder.record.config["timeout"]
        return None if timeout is None else time.time() + float(timeout)

    async def set(self, seconds: float | None) -> None:
        """Let it live `seconds` from now; None: no end."""
        holder = self._holder
        SandboxConfig(timeout=seconds)
        holder.require(SandboxState.RUNNING, SandboxState.PAUSED, verb="set a timeout")
        deadline = None if seconds is None else time.time() + seconds
        holder.record = registry.change(holder.record, deadline=deadline)
        self.watch()
        holder.note("timeout", seconds=seconds)

    def watch(self) -> None:
        """End it at its deadline, or have it rest when it is idle, as its record has it."""
        self.stop()
        record = self._holder.record
        if record.config.get("idle_timeout") is not None:
            self._idling = asyncio.create_task(idle.watch(self._holder))
        deadline = record.deadline
        if deadline is not None:
            delay = max(0.0, deadline - time.time())
            self._timer = asyncio.get_running_loop().call_later(delay, self._expire)

    def stop(self) -> None:
        """Watch its time no longer, nor whether it is idle."""
        if self._idling is not None:
            self._idling.cancel()
            self._idling = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def deadline_after_rest(self) -> float | None:
        """When it ends that is at rest and goes on now; None: never."""
        record = self._holder.record
        return self.deadline_anew() if record.rests == TIMEOUT else record.deadline

    def go_on(self) -> None:
        """It was paused, and runs again."""
        deadline = self.deadline_after_rest()
        self._holder.become(SandboxState.RUNNING, rests=None, deadline=deadline)
        self.watch()

    def _expire(self) -> None:
        wish = str(self._holder.record.config.get("on_timeout", "kill"))
        if wish == "kill":
            self.end()
        else:
            self._lapsing = asyncio.create_task(self.rest(wish, TIMEOUT))

    async def rest(self, wish: str, why: str, is_due: Callable[[], bool] = lambda: True) -> None:
        """Put it to rest, whatever becomes of the one who asks for it. See `resting.rest`."""
        from novasandbox.core import resting  # It stands on the holder.

        await whole(resting.rest(self._holder, wish, why, is_due))

    def end(self, reason: str | None = None) -> None:
        """Its time is over. reason: if it is not that of its time-to-live."""
        record = self._holder.record
        if reason is None:
            lived = (record.deadline or time.time()) - record.created
            reason = f"its time-to-live was over, {lived:.0f} s after it was made"
        error = SandboxExpired(
            "the sandbox has ended",
            why=reason,
            fix="Make a new one; a longer timeout= or idle_timeout= keeps it longer.",
            sandbox_id=record.id,
        )
        self._holder.expire(error, reason)
