"""What a sandbox does at the end of its time instead of ending: wait for the next call."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from novasandbox.core import registry, sleeping
from novasandbox.core.hypervisor import SandboxState
from novasandbox.errors import NovaError
from novasandbox.guest.client import Guest

if TYPE_CHECKING:
    from novasandbox.core.holder import Holder

log = logging.getLogger(__name__)

_BARRIER_DEADLINE = 1.0
# Keeps what runs beside from being collected.
_tasks: set[asyncio.Task[None]] = set()


async def rest(holder: Holder, wish: str) -> None:
    """Put a sandbox to rest whose time is over. wish: `pause` or `hibernate`.

    One that cannot be is ended.
    """
    try:
        if wish == "hibernate":
            await sleeping.hibernate(holder, is_due=True)
        elif holder.state is SandboxState.RUNNING:
            await _stand_by(holder)
    except (NovaError, OSError) as error:
        log.warning("%s could not be put to rest and is ended: %s", holder.id, error)
        holder.lifetime.end()


async def _stand_by(holder: Holder) -> None:
    async with holder.moving:
        machine, channel = holder.require_machine(), holder.channel
        assert channel is not None
        async with channel.held(_BARRIER_DEADLINE):
            await machine.pause()
        holder.record = registry.change(holder.record, deadline=None)
        holder.become(SandboxState.PAUSED)
        wait_for_call(holder)


def wait_for_call(holder: Holder) -> None:
    """Let the next call set a sandbox going that stands still."""
    assert holder.channel is not None

    async def called() -> None:
        await _go_on(holder)

    holder.channel.refusal = None
    holder.channel.stand_by(called)


async def _go_on(holder: Holder) -> None:
    """The next call is there: it runs again, for as long as it was made for."""
    # Not while it is being saved: what is saved stands still.
    async with holder.moving:
        if holder.state is not SandboxState.PAUSED:
            return
        await holder.require_machine().resume()
        deadline = holder.lifetime.deadline_anew()
        holder.record = registry.change(holder.record, deadline=deadline)
        holder.become(SandboxState.RUNNING)
        holder.lifetime.watch()
    holder.merging.begin()
    # Apart, since nothing is sent before this returns.
    task = asyncio.create_task(_set_clock(holder))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def _set_clock(holder: Holder) -> None:
    assert holder.channel is not None
    with contextlib.suppress(NovaError):
        await Guest(holder.channel, holder.id).set_clock()
