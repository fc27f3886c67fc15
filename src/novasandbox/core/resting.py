"""Paused or hibernated by itself, a sandbox waits for the next call instead of ending."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from novasandbox.core import registry, sleeping
from novasandbox.core.hypervisor import SandboxState
from novasandbox.core.idle import TIMEOUT, NotDue
from novasandbox.errors import NovaError
from novasandbox.guest.client import Guest

if TYPE_CHECKING:
    from novasandbox.core.holder import Holder

log = logging.getLogger(__name__)

_BARRIER_DEADLINE = 1.0
# Keeps what runs beside from being collected.
_tasks: set[asyncio.Task[None]] = set()


async def rest(holder: Holder, wish: str, why: str, is_due: Callable[[], bool]) -> None:
    """Put a sandbox to rest. wish: `pause` or `hibernate`. why: `timeout` or `idle`.

    is_due: whether it still shall, asked when nothing can come between any more. Where its
    time is over and it cannot be put to rest, it is ended; an idle one runs on.
    """
    try:
        if wish == "pause":
            await _stand_by(holder, why, is_due)
        elif holder.state is not SandboxState.HIBERNATED:
            await sleeping.hibernate(holder, rests=why, is_due=is_due)
    except NotDue:
        return
    except (NovaError, OSError) as error:
        if holder.state is SandboxState.HIBERNATED or holder.failure is not None:
            return  # Somebody else was quicker.
        fate = "is ended" if why == TIMEOUT else "runs on"
        log.warning("%s could not be put to rest and %s: %s", holder.id, fate, error)
        if why == TIMEOUT:
            holder.lifetime.end()


async def _stand_by(holder: Holder, why: str, is_due: Callable[[], bool]) -> None:
    async with holder.moving:
        deadline = None if why == TIMEOUT else holder.record.deadline
        if holder.state is SandboxState.PAUSED and holder.record.rests is not None:
            holder.record = registry.change(holder.record, rests=why, deadline=deadline)
        if holder.state is not SandboxState.RUNNING or not is_due():
            return
        machine, channel = holder.require_machine(), holder.channel
        assert channel is not None
        async with channel.held(_BARRIER_DEADLINE):
            await machine.pause()
            try:
                holder.become(SandboxState.PAUSED, rests=why, deadline=deadline)
            except BaseException:
                await machine.resume()
                raise
            _wait_for_a_call(holder)


async def stand_again(holder: Holder) -> None:
    """Have a sandbox stand still that was paused by itself, for an earlier holder."""
    await holder.require_machine().pause()
    _wait_for_a_call(holder)


def _wait_for_a_call(holder: Holder) -> None:
    async def called() -> None:
        await _go_on(holder)

    assert holder.channel is not None
    holder.channel.stand_by(called)


async def _go_on(holder: Holder) -> None:
    """The next call is there, and waits for this to return."""
    # Not while it is being saved: what is saved stands still.
    async with holder.moving:
        if holder.state is not SandboxState.PAUSED or holder.record.rests is None:
            return
        await holder.require_machine().resume()
        holder.lifetime.go_on()
    holder.merging.begin()
    # Apart, since nothing is sent before this returns.
    task = asyncio.create_task(_set_clock(holder))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def _set_clock(holder: Holder) -> None:
    assert holder.channel is not None
    with contextlib.suppress(NovaError):
        await Guest(holder.channel, holder.id).set_clock()
