"""How long a sandbox lives, and what it does when its time is over."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from novasandbox.core import registry
from novasandbox.core.hypervisor import SandboxConfig, SandboxState
from novasandbox.errors import SandboxExpired

if TYPE_CHECKING:
    from novasandbox.core.holder import Holder


class Lifetime:
    """The time-to-live of a sandbox in the hands of this process."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._timer: asyncio.TimerHandle | None = None
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
        """End it at its deadline, as its record has it."""
        self.stop()
        deadline = self._holder.record.deadline
        if deadline is not None:
            delay = max(0.0, deadline - time.time())
            self._timer = asyncio.get_running_loop().call_later(delay, self._expire)

    def stop(self) -> None:
        """Watch its time no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        wish = str(self._holder.record.config.get("on_timeout", "kill"))
        if wish == "kill":
            self.end()
        else:
            self._lapsing = asyncio.create_task(self._rest(wish))

    async def _rest(self, wish: str) -> None:
        from novasandbox.core import resting  # It stands on the holder.

        await resting.rest(self._holder, wish)

    def end(self) -> None:
        """Its time-to-live is over."""
        record = self._holder.record
        lived = (record.deadline or time.time()) - record.created
        reason = f"its time-to-live was over, {lived:.0f} s after it was made"
        error = SandboxExpired(
            "the sandbox has ended",
            why=reason,
            fix="Make a new one; a longer timeout= keeps it longer.",
            sandbox_id=record.id,
        )
        self._holder.expire(error, reason)
