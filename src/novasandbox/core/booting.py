"""From a machine's specification to a guest whose agent has answered: booted, or restored."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from novasandbox.core.console import last_words, panic_in
from novasandbox.core.hypervisor import BaseHypervisor, Machine, MachineSpec
from novasandbox.errors import (
    BootFailed,
    GuestPanicked,
    GuestUnreachable,
    NovaError,
    ProtocolViolation,
    VmmCrashed,
)
from novasandbox.guest.channel import Channel

log = logging.getLogger(__name__)

# Under emulation a boot takes about 3 s, on a loaded host several times that; a restore 0.1.
_DEADLINE = 45.0
_RESTORE_DEADLINE = 30.0
_ATTEMPTS = 2
# With less than this a guest may never get as far as to say what it lacks.
_SCARCE_MIB = 128
_RETRIED = (BootFailed, GuestPanicked, GuestUnreachable, VmmCrashed)


Made = tuple[Machine, Channel]
Open = Callable[[Machine], Channel]


async def boot(hypervisor: BaseHypervisor, spec: MachineSpec, open_channel: Open) -> Made:
    """Boot a machine and shake hands with its agent; twice, since emulation fails at times.

    Raises BootFailed, GuestPanicked, ProtocolViolation, and what `BaseHypervisor.boot` raises.
    Whatever goes wrong, no machine is left.
    """
    for attempt in range(1, _ATTEMPTS):
        try:
            return await _started(await hypervisor.boot(spec), spec, open_channel, _DEADLINE)
        except _RETRIED as error:
            log.warning("boot %d of %s failed and is tried again: %s", attempt, spec.id, error)
            spec.disk.unlink(missing_ok=True)
    return await _started(await hypervisor.boot(spec), spec, open_channel, _DEADLINE)


async def restore(
    hypervisor: BaseHypervisor,
    spec: MachineSpec,
    state: Path,
    memory: Path | None,
    open_channel: Open,
) -> Made:
    """Restore a machine and shake hands with its agent. Raises as `boot` does."""
    machine = await hypervisor.restore(spec, state, memory)
    return await _started(machine, spec, open_channel, _RESTORE_DEADLINE)


async def _started(
    machine: Machine, spec: MachineSpec, open_channel: Open, deadline: float
) -> Made:
    try:
        channel = open_channel(machine)
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(machine.kill()))
        raise
    try:
        await _first_answer(machine, channel, spec, deadline)
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(_give_up(machine, channel)))
        raise
    return machine, channel


async def _give_up(machine: Machine, channel: Channel) -> None:
    await channel.withdraw()
    await machine.kill()


async def _first_answer(
    machine: Machine, channel: Channel, spec: MachineSpec, deadline: float
) -> None:
    """Wait for the agent, or for the machine's end, whichever comes first."""
    opening = asyncio.create_task(channel.open(deadline))
    ending = asyncio.create_task(machine.wait())
    try:
        await asyncio.wait((opening, ending), return_when=asyncio.FIRST_COMPLETED)
        failure = opening.exception() if opening.done() else None
        if opening.done() and failure is None:
            return
        if isinstance(failure, ProtocolViolation):
            raise failure
        if ending.done() or isinstance(failure, OSError):
            raise _ended(machine, await ending, spec)
        raise BootFailed(
            f"the guest gave no sign of life within {deadline:g} s",
            why=last_words(machine.console()),
            fix=_more_memory(spec) if spec.memory_mib < _SCARCE_MIB else None,
            sandbox_id=spec.id,
        )
    finally:
        for task in (opening, ending):
            task.cancel()
        await asyncio.wait((opening, ending))


def _ended(machine: Machine, reason: str, spec: MachineSpec) -> NovaError:
    console = machine.console()
    panic = panic_in(console)
    if panic is not None:
        small = any(word in panic.lower() for word in ("memory", "deadlocked"))
        return GuestPanicked(
            "the guest's kernel panicked while booting",
            why=panic,
            fix=_more_memory(spec) if small or spec.memory_mib < _SCARCE_MIB else None,
            sandbox_id=spec.id,
        )
    words = last_words(console)
    return BootFailed(
        "the machine ended before the guest answered",
        why=f"{reason}; its last words: {words}" if words else reason,
        sandbox_id=spec.id,
    )


def _more_memory(spec: MachineSpec) -> str:
    return f"Give it more than memory_mib={spec.memory_mib}."
