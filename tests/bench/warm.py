"""Measures in a guest that runs: a round trip, programs, and files."""

from __future__ import annotations

import contextlib
import filecmp
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from bench.floor import DISK_MIB, MEMORY_MIB, VCPUS, Floor, FloorGuest, milliseconds
from bench.result import Result, Target
from novasandbox import Sandbox

_WARM_UP = 3
_FILE_SIZE = 64 << 20
_REMOTE = "/tmp/bench"
# A port is up to a third faster after one boot than after the next, on either side.
_PAIRS = 3
# What a PING takes on the wire, header and operation; its answer is about as long.
_PING = bytes(14)
_EXEC_TARGET = Target("ratio", "<=", 1.5)
_FILES_TARGET = Target("ratio", ">=", 0.7)

_Rates = tuple[list[float], list[float]]
"""MB/s: ours, and the floor's."""


@contextlib.asynccontextmanager
async def pair(floor: Floor) -> AsyncIterator[tuple[FloorGuest, Sandbox]]:
    """A bare guest and a sandbox, both warm."""
    with floor.guest() as guest:
        async with Sandbox.create(
            vcpus=VCPUS, memory_mib=MEMORY_MIB, disk_mib=DISK_MIB, timeout=None
        ) as sandbox:
            yield guest, sandbox


async def _beside(
    n: int, bare: Callable[[], None], ours: Callable[[], Awaitable[object]]
) -> tuple[list[float], list[float]]:
    """Milliseconds of each, one after the other, so that a busy host slows both."""
    floors, figures = [], []
    for turn in range(_WARM_UP + n):
        start = time.perf_counter()
        bare()
        took = milliseconds(start)
        start = time.perf_counter()
        await ours()
        if turn >= _WARM_UP:
            floors.append(took)
            figures.append(milliseconds(start))
    return figures, floors


async def ping(floor: Floor, n: int) -> list[Result]:
    """A request without work, against an echo of as many bytes."""
    async with pair(floor) as (guest, sandbox):
        figures, floors = await _beside(n, lambda: guest.echo(_PING), sandbox.ping)
    return [Result("ping", "ms", figures, floors)]


async def execs(floor: Floor, n: int) -> list[Result]:
    """`true` as a program and by the shell, against the same spawn by hand in the guest."""
    results = []
    async with pair(floor) as (guest, sandbox):
        for name, bare, ours in (
            ("exec-true-list", "/bin/true", ["/bin/true"]),
            ("exec-true-shell", "true", "true"),
        ):

            def spawn(command: str = bare) -> None:
                guest.spawn(command)

            async def run(command: str | list[str] = ours) -> None:
                assert (await sandbox.exec(command)).ok

            figures, floors = await _beside(n, spawn, run)
            results.append(Result(name, "ms", figures, floors, _EXEC_TARGET))
    return results


async def files(floor: Floor, n: int) -> list[Result]:
    """64 MiB into a file and out of it, against a bare loop over the same kind of port.

    n: at least so many copies each way, spread over several pairs of fresh guests.
    """
    up: _Rates = [], []
    down: _Rates = [], []
    for _ in range(_PAIRS):
        await _copies(floor, -(-n // _PAIRS), up, down)
    return [
        Result("files-up", "MB/s", *up, _FILES_TARGET),
        Result("files-down", "MB/s", *down, _FILES_TARGET),
    ]


async def _copies(floor: Floor, n: int, up: _Rates, down: _Rates) -> None:
    """Take the rates of one pair of fresh guests, and add them to those of the others."""
    local, back, bare = (floor.folder / name for name in ("local", "back", "bare"))
    local.write_bytes(os.urandom(_FILE_SIZE))
    async with pair(floor) as (guest, sandbox):

        async def upload() -> None:
            assert not await sandbox.upload(local, _REMOTE)

        async def download() -> None:
            back.unlink(missing_ok=True)
            assert not await sandbox.download(_REMOTE, back)

        def get() -> None:
            bare.unlink(missing_ok=True)
            guest.get(bare, _FILE_SIZE)

        _add(up, await _beside(n, lambda: guest.put(local), upload))
        _add(down, await _beside(n, get, download))
    for copy in (back, bare):
        assert filecmp.cmp(local, copy, shallow=False), f"{copy} is not what went in"


def _add(rates: _Rates, took: tuple[list[float], list[float]]) -> None:
    for known, more in zip(rates, took, strict=True):
        known += [_FILE_SIZE / 1e6 / (each / 1000) for each in more]
