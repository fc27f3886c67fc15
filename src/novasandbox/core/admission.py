"""Room on this host: how many sandboxes a user may have at once, and with how much memory.

Each machine has a slot of a file of its NOVA_HOME, which says how much memory it was given. The
slot is locked, and the lock belongs to the open file: it goes with the descriptor to the
machine's supervisor, and the kernel gives the slot back at the moment when that ends, however
it ends. So nothing is left to be taken back, and a sandbox that is hibernated takes no room.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import math
import os
import struct
import sys
import time
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass

from novasandbox.core import host_load
from novasandbox.core.home import run_dir
from novasandbox.core.host_load import Memory
from novasandbox.core.hypervisor import SandboxConfig
from novasandbox.errors import CapacityExceeded, InvalidConfig
from novasandbox.images.locks import Hold

_FILE = ".slots"
_SLOT = struct.Struct("<I4xd")  # MiB of the guest, and when it was admitted (CLOCK_MONOTONIC)
_FLOCK = struct.Struct("hhqqi0q")  # struct flock of fcntl(2): type, whence, start, length, pid
_MOST_SLOTS = 65_536
# Locked while somebody looks for a slot: a byte that is none's.
_GATE = 1 << 40
# What a copy takes of the host before it has done much: QEMU's own, and the pages that a guest
# does not share with its template.
_OWN_MIB = 48
_FIRST_SHARE = 4
# Seconds until a machine has taken that, and the host's figures show it.
_STARTING = 5.0
_LOOK_EVERY = 0.05

Slot = tuple[int, float]

_queues: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
    weakref.WeakKeyDictionary()
)


class Room(Hold):
    """A sandbox's place on this host: its own until every copy of the descriptor is closed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What this user's sandboxes may have together, beside what the host can spare.

    sandboxes: how many (NOVA_MAX_SANDBOXES). memory_mib: MiB of their guests
    (NOVA_MAX_MEMORY_MIB). None: no limit of that kind.
    """

    sandboxes: int | None = None
    memory_mib: int | None = None

    @classmethod
    def of_environment(cls) -> Limits:
        """Those of this process's environment. Raises InvalidConfig."""
        return cls(_whole("NOVA_MAX_SANDBOXES"), _whole("NOVA_MAX_MEMORY_MIB"))


@dataclass(frozen=True, slots=True)
class Usage:
    """What has a place. memory_mib: of all guests. starting_mib: what new ones will soon take."""

    sandboxes: int = 0
    memory_mib: int = 0
    starting_mib: int = 0


def likely_mib(memory_mib: int) -> int:
    """MiB of the host that a sandbox with a guest of `memory_mib` takes at first."""
    return _OWN_MIB + min(memory_mib, _OWN_MIB + memory_mib // _FIRST_SHARE)


def refusal(
    wanted_mib: int, usage: Usage, limits: Limits, memory: Memory | None = None
) -> CapacityExceeded | None:
    """Why a sandbox with a guest of `wanted_mib` does not fit; None where it does.

    memory: the host's; None leaves it out of account.
    """
    if limits.sandboxes is not None and usage.sandboxes >= limits.sandboxes:
        return _no_room(
            f"{usage.sandboxes} of the {limits.sandboxes} sandboxes are there that "
            "NOVA_MAX_SANDBOXES allows",
            "raise NOVA_MAX_SANDBOXES",
        )
    if limits.memory_mib is not None and usage.memory_mib + wanted_mib > limits.memory_mib:
        return _no_room(
            f"{usage.sandboxes} sandboxes have {usage.memory_mib:,} of the "
            f"{limits.memory_mib:,} MiB that NOVA_MAX_MEMORY_MIB allows, and this one is to have "
            f"{wanted_mib:,}",
            "make smaller ones, raise NOVA_MAX_MEMORY_MIB",
        )
    if memory is None:
        return None
    needed = likely_mib(wanted_mib)
    if memory.available - usage.starting_mib - needed < memory.reserve:
        starting = f", {usage.starting_mib:,} that others still take" * bool(usage.starting_mib)
        return _no_room(
            f"it takes about {needed:,} MiB at first; the host has {memory.available:,} MiB "
            f"available, of which {memory.reserve:,} stay free for itself{starting}",
            "make smaller ones",
        )
    return None


def _no_room(why: str, other: str) -> CapacityExceeded:
    return CapacityExceeded(
        "the host has no room for another sandbox",
        why=why,
        fix=f"End or hibernate some (nova ps), {other}, or wait for room: NOVA_ADMISSION_WAIT=30",
    )


@contextlib.asynccontextmanager
async def admitted(config: SandboxConfig, count: int = 1) -> AsyncIterator[list[Room]]:
    """Places for `count` machines; each keeps its own by holding the room's descriptor open.

    Leaving the block closes our copies. Where there is no room for all of them, it is waited
    for, for as many seconds as NOVA_ADMISSION_WAIT says (default 0).

    Raises CapacityExceeded; InvalidConfig where the environment's limits are no numbers.
    """
    rooms = await _rooms(config.memory_mib, count, _seconds("NOVA_ADMISSION_WAIT"))
    try:
        yield rooms
    finally:
        for room in rooms:
            room.close()


async def _rooms(wanted_mib: int, count: int, wait: float) -> list[Room]:
    if not wait:
        return await asyncio.to_thread(take, wanted_mib, count)
    alone = Usage(count - 1, (count - 1) * wanted_mib)
    _refuse_or_pass(refusal(wanted_mib, alone, Limits.of_environment()))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait), _queue():
            # The first in the queue looks, so that a large one is not overtaken for ever.
            while True:
                with contextlib.suppress(CapacityExceeded):
                    return await asyncio.to_thread(take, wanted_mib, count)
                await asyncio.sleep(_LOOK_EVERY)
    return await asyncio.to_thread(take, wanted_mib, count)


def _queue() -> asyncio.Lock:
    return _queues.setdefault(asyncio.get_running_loop(), asyncio.Lock())


def take(wanted_mib: int, count: int = 1) -> list[Room]:
    """Take places now, all or none, or raise CapacityExceeded.

    Given up, a place is free again: `Room` closes its descriptor when it is collected.
    """
    limits, memory = Limits.of_environment(), host_load.memory()
    rooms = [_opened() for _ in range(count)]
    gate = rooms[0].fileno()
    if sys.platform != "linux":
        # No locks that go with a descriptor: there the host's memory alone is looked at.
        _refuse_or_pass(refusal(wanted_mib, Usage(), limits, memory))
        return rooms
    _lock(gate, fcntl.F_WRLCK, _GATE, wait=True)
    try:
        slots = _living(gate)
        numbers = [_next_slot(slots, wanted_mib, limits, memory) for _ in rooms]
        for room, number in zip(rooms, numbers, strict=True):
            os.pwrite(gate, _SLOT.pack(*slots[number]), number * _SLOT.size)
            _lock(room.fileno(), fcntl.F_WRLCK, number)
        # What was taken above has been given back: nobody need look at it again.
        os.ftruncate(gate, len(slots) * _SLOT.size)
    finally:
        # By name: a copy that a child was just forked with would keep it locked.
        _lock(gate, fcntl.F_UNLCK, _GATE)
    return rooms


def _next_slot(slots: list[Slot], wanted_mib: int, limits: Limits, memory: Memory) -> int:
    """Enter a machine in the first slot that is free. Raises CapacityExceeded."""
    _refuse_or_pass(refusal(wanted_mib, _used(slots), limits, memory))
    if len(slots) >= _MOST_SLOTS:
        raise _no_room(f"there are {len(slots):,} sandboxes", "use another NOVA_HOME")
    number = next((n for n, (memory_mib, _) in enumerate(slots) if not memory_mib), len(slots))
    slots[number : number + 1] = [(wanted_mib, time.monotonic())]
    return number


def _opened() -> Room:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return Room(os.open(run_dir() / _FILE, flags, 0o600))


def usage() -> Usage:
    """What has a place at this moment; nothing where nobody ever took one."""
    try:
        descriptor = os.open(run_dir() / _FILE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return Usage()
    try:
        return _used(_living(descriptor))
    finally:
        os.close(descriptor)


def _refuse_or_pass(error: CapacityExceeded | None) -> None:
    if error is not None:
        raise error


def _living(descriptor: int) -> list[Slot]:
    """MiB and time of each slot, (0, 0) where it is free."""
    data = os.pread(descriptor, _MOST_SLOTS * _SLOT.size, 0)
    slots: list[Slot] = [*_SLOT.iter_unpack(data[: len(data) // _SLOT.size * _SLOT.size])]
    for number, (memory_mib, _) in enumerate(slots):
        if memory_mib and not _is_locked(descriptor, number):
            slots[number] = (0, 0.0)
    while slots and not slots[-1][0]:
        slots.pop()
    return slots


def _used(slots: list[Slot]) -> Usage:
    now = time.monotonic()
    taken = [slot for slot in slots if slot[0]]
    return Usage(
        len(taken),
        sum(memory_mib for memory_mib, _ in taken),
        sum(likely_mib(memory_mib) for memory_mib, since in taken if 0 <= now - since < _STARTING),
    )


def _is_locked(descriptor: int, number: int) -> bool:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
    found: int = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
    return found != fcntl.F_UNLCK


def _lock(descriptor: int, kind: int, start: int, *, wait: bool = False) -> None:
    how = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    fcntl.fcntl(descriptor, how, _FLOCK.pack(kind, os.SEEK_SET, start, 1, 0))


def _whole(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise InvalidConfig(
            f"{name}={text!r}", why="it must be a whole number", fix="Leave it unset for no limit."
        )
    return int(text)


def _seconds(name: str) -> float:
    text = os.environ.get(name)
    if not text:
        return 0.0
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if 0 <= seconds < math.inf:
            return seconds
    raise InvalidConfig(f"{name}={text!r}", why="it must be seconds, from 0 on")
