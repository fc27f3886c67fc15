"""Measures of forks: to the child's first result, and for how long the parent does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from pathlib import Path

from bench.bare import Bare, restored, template
from bench.copies import WARM_UP, bare_copy, config, sandbox_of
from bench.floor import DISK_MIB, Floor, milliseconds
from bench.result import Result, Target
from bench.saving import fork as fork_by_hand
from novasandbox import Sandbox

_TARGET = Target("ratio", "<=", 1.3)
_LARGE_MIB = 10240
# Pings until they are as quick as they will be.
_SETTLED = 20
# Pings among which the one that waits is: a few come before it. Later ones wait for the child,
# which starts on the same two cores.
_FEW = 20
# Past the guest's page cache, which would be saved as memory is: the disk is what is asked for.
# Synced, so that no pause waits for the host to bring it to its own.
_FILL = """
import mmap, os
file = os.open("/var/tmp/half", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
block = mmap.mmap(-1, 1 << 20)
for _ in range({mib}):
    os.write(file, block)
os.fsync(file)
os.close(file)
x = 42
"""


async def fork(floor: Floor, n: int) -> list[Result]:
    """Fork of a small sandbox, against the same method by hand."""
    return await _fork(floor, n, "fork", DISK_MIB)


async def fork_large(floor: Floor, n: int) -> list[Result]:
    """The same with 5 GiB on a disk of 10: it must not matter."""
    return await _fork(floor, n, "fork-10g", _LARGE_MIB, _FILL.format(mib=_LARGE_MIB // 2))


async def _fork(floor: Floor, n: int, name: str, disk_mib: int, first: str = "") -> list[Result]:
    results: list[tuple[float, float]] = []
    pauses: list[tuple[float, float]] = []
    async with template(floor, config(disk_mib)) as saved, sandbox_of(disk_mib) as sandbox:
        with bare_copy(floor, saved) as machine:
            if first:
                machine.port.cell(first)
            assert (await sandbox.run_code(first or "x = 42")).error is None
            for turn in range(WARM_UP + n):
                took, pause = _by_hand(floor, machine)
                ours, gap = await _by_us(sandbox), await _gap(sandbox)
                if turn >= WARM_UP:
                    results.append((ours, took))
                    pauses.append((gap, pause))
    return [
        Result.of_pairs(name, "ms", results, _TARGET),
        Result.of_pairs(f"{name}-pause", "ms", pauses, _TARGET),
    ]


async def _by_us(sandbox: Sandbox) -> float:
    start = time.perf_counter()
    (child,) = await sandbox.fork()
    async with child:
        assert (await child.run_code("x")).text == "42"
        return milliseconds(start)


async def _gap(sandbox: Sandbox) -> float:
    """How long a request waits, at most, while the sandbox is saved to be forked."""
    gaps: list[float] = []

    async def ask() -> None:
        while True:
            gaps.append(await sandbox.ping() * 1000)

    asking = asyncio.create_task(ask())
    while len(gaps) < _SETTLED:
        await asyncio.sleep(0)
    gaps.clear()
    (child,) = await sandbox.fork()
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    await child.kill()
    return max(gaps[:_FEW])


def _by_hand(floor: Floor, machine: Bare) -> tuple[float, float]:
    """Milliseconds to the child's first result, and to the parent's next answer."""
    with tempfile.TemporaryDirectory(dir=floor.beside) as name:
        folder = Path(name)
        machine.port.ping()
        start = time.perf_counter()
        child = fork_by_hand(machine, folder / "state")
        pause = milliseconds(start)
        with restored(floor, child, folder) as made:
            made.port.attach()
            made.port.configure()
            assert b"42" in made.port.cell("x")
            return milliseconds(start), pause
