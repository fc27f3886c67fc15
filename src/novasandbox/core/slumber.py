"""A sandbox that this process has put to sleep: what stays here of it, and how it is woken."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from novasandbox.core import registry
from novasandbox.core.hypervisor import SandboxState
from novasandbox.core.registry import Record
from novasandbox.core.sleeping import asleep_error
from novasandbox.core.whole import whole
from novasandbox.errors import GuestUnreachable, NovaError, SandboxFailed, SandboxNotFound

if TYPE_CHECKING:
    from novasandbox.core.holder import Holder


class Slumber:
    """The sleep of a sandbox in the hands of this process."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder

    async def fall_asleep(self, reason: NovaError, *, briefly: bool = False) -> None:
        """Give back the machine of a sandbox whose record says that it is hibernated.

        The next request through this process wakes it. One that sleeps by itself keeps its
        doors open: requests of other processes and connections to exposed ports wake it too.
        briefly: this process wakes it at once, and the doors stay open as well.
        """
        await whole(self._fall_asleep(reason, briefly))

    async def _fall_asleep(self, reason: NovaError, briefly: bool) -> None:
        holder = self._holder
        rests = holder.record.rests is not None
        await holder.stop_watching()
        if not rests:
            await holder.doors.close_ports()
        # Before the machine ends, which is no loss now.
        assert holder.channel is not None
        holder.channel.doze(reason, self.rouse, keeping=rests)
        await holder.drop_machine()
        if holder.failure is not None:
            raise holder.failure
        if briefly:
            return
        # On a full disk it sleeps all the same: the record says so, and its machine has ended.
        with contextlib.suppress(OSError):
            holder.record = registry.change(holder.record, machine=None, owner=None)
        holder.note("hibernated")
        if rests:
            self._tell()
        elif not holder.channel.is_wanted:  # Else what came meanwhile wakes it at once.
            self._leave(reason)

    def _tell(self) -> None:
        if self._holder.on_turn is not None:
            self._holder.on_turn(self._holder)

    def _leave(self, reason: NovaError) -> None:
        """Hold it no longer: whoever wants it next wakes it and holds it."""
        holder = self._holder
        holder.doors.dismiss(reason)
        if holder.on_end is not None:
            holder.on_end(holder)

    async def for_good(self) -> None:
        """One that sleeps by itself sleeps on as one that was told to. Raises IllegalTransition."""
        holder = self._holder
        async with holder.moving:
            holder.require(SandboxState.HIBERNATED, verb="leave it asleep")
            holder.record = registry.change(holder.record, rests=None, ports={})
            await holder.doors.close_ports()
            self._leave(asleep_error(holder.id))

    async def rouse(self) -> None:
        """Wake it again. For its channel to call, so that what waits there comes afterwards."""
        from novasandbox.core import creation  # It stands on the holder.

        holder = self._holder
        # A call may come before it has fallen asleep to the end.
        async with holder.moving:
            if holder.state is not SandboxState.HIBERNATED:
                return
            try:
                woken = await creation.wake(holder.id, holder)
            except (SandboxNotFound, SandboxFailed) as error:
                if not registry.exists(holder.id):
                    await holder.is_gone(error)
                raise
            if woken is None:
                await holder.doors.close_ports()
                self._leave(asleep_error(holder.id))
                raise GuestUnreachable(
                    "another process holds the sandbox now",
                    fix=f"Sandbox.connect({holder.id!r}) reaches it there.",
                    sandbox_id=holder.id,
                )
        self._tell()

    async def end(self) -> None:
        """Have it woken if it sleeps. Raises what waking raises."""
        holder = self._holder
        while holder.state is SandboxState.HIBERNATED and holder.failure is None:
            async with holder.moving:
                pass  # It may be falling asleep just now.
            assert holder.channel is not None
            await holder.channel.roused()

    async def sleep_on(self, slept: Record) -> None:
        """A waking went wrong: what was begun is given back, and the record is as before."""
        holder = self._holder
        await holder.stop_watching()
        has_handles = holder.channel is not None and holder.channel.has_slept
        stays = has_handles and slept.rests is not None
        if not stays:
            await holder.doors.close_ports()
        if not has_handles:
            await holder.doors.close(None)
        if holder.channel is not None:
            await holder.channel.withdraw()
        await holder.drop_machine()
        # Who wakes it next goes on with nothing of what was open here.
        holder.record = replace(slept, machine=None, owner=None, token=secrets.token_hex(16))
        with contextlib.suppress(OSError):
            registry.save(holder.record)
        if has_handles and not stays:
            self._leave(asleep_error(holder.id))
