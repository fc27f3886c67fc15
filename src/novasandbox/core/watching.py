"""Noticing that a machine has ended, or that its guest has fallen silent, and telling why."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from novasandbox.core.console import panic_in
from novasandbox.core.hypervisor import Machine, SandboxState
from novasandbox.errors import GuestPanicked, GuestUnreachable, NovaError, VmmCrashed
from novasandbox.guest.channel import Channel
from novasandbox.guest.client import Guest

if TYPE_CHECKING:
    from novasandbox.core.holder import Holder

# How often a guest that somebody waits for is asked for an answer, and how long it may take.
_PULSE = 20.0
_SILENCE = 60.0
# A lost channel mostly means that the machine ends.
_LAST_WORD = 2.0


def watch(holder: Holder, machine: Machine, channel: Channel) -> list[asyncio.Task[None]]:
    """Watch both until the tasks are cancelled."""
    return [
        asyncio.create_task(_watch_machine(holder, machine)),
        asyncio.create_task(_watch_guest(holder, channel)),
    ]


async def _watch_machine(holder: Holder, machine: Machine) -> None:
    try:
        reason = await machine.wait()
    except OSError as unseen:
        reason = f"it can no longer be watched: {unseen}"
    error = _loss(holder.id, machine, reason)
    holder.fail(error, str(error.why or error.what))


async def _watch_guest(holder: Holder, channel: Channel) -> None:
    """While somebody waits for the guest, ask now and then whether it is still there."""
    while True:
        await asyncio.sleep(_PULSE)
        if not _runs(holder) or not channel.busy:
            continue
        try:
            await Guest(channel, holder.id).ping(_SILENCE)
        except GuestUnreachable as error:
            # A pause in the meantime explains the silence.
            if _runs(holder) and holder.failure is None:
                holder.fail(error)
        except NovaError:
            return


def _runs(holder: Holder) -> bool:
    return holder.state is SandboxState.RUNNING


async def why_lost(identity: str, machine: Machine | None, reason: BaseException) -> NovaError:
    """Why a channel was lost for good: the machine's end explains most of it."""
    if machine is not None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD):
                return _loss(identity, machine, await machine.wait())
    if isinstance(reason, NovaError):
        reason.sandbox_id = identity
        return reason
    return GuestUnreachable("the guest no longer answers", why=str(reason), sandbox_id=identity)


def _loss(identity: str, machine: Machine, reason: str) -> NovaError:
    panic = panic_in(machine.console())
    if panic is not None:
        return GuestPanicked("the guest's kernel panicked", why=panic, sandbox_id=identity)
    return VmmCrashed("the sandbox's machine has ended", why=reason, sandbox_id=identity)
