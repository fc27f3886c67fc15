"""Measures of sleep: into it, out of it, and what it writes."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.bare import Bare, Saved, restore, template
from bench.copies import WARM_UP, config, sandbox_of
from bench.floor import Floor, milliseconds
from bench.result import Result, Target
from bench.saving import hibernate as hibernate_by_hand
from novasandbox import Sandbox
from novasandbox.core import registry

_TARGET = Target("ratio", "<=", 1.2)
_MIB = 1 << 20
_IN_USE = """
free = {line.split()[0]: int(line.split()[1]) for line in open("/proc/meminfo")}
free["MemTotal:"] - free["MemFree:"]
"""
_LOADS = {
    "": "pass",
    "-64m": "import os; held = os.urandom(64 << 20)",
    "-freed": "held = None; import gc; gc.collect()",
}
"""What a sandbox does before it sleeps: nothing, hold 64 MiB, give them back."""


async def sleep(floor: Floor, n: int) -> list[Result]:
    """To sleep, and awake to the first result, against the same by hand."""
    bare, ours = [], []
    async with template(floor, config()) as saved, sandbox_of() as sandbox:
        await sandbox.run_code("x = 42")
        with tempfile.TemporaryDirectory(dir=floor.beside) as name:
            machine = _first(floor, saved, Path(name))
            try:
                for turn in range(WARM_UP + n):
                    machine, took = _by_hand(floor, machine, Path(name) / f"state-{turn}")
                    bare.append(took)
                    ours.append(await _by_us(sandbox))
            finally:
                machine.end()
    asleep, awake = zip(*ours[WARM_UP:], strict=True)
    bare_asleep, bare_awake = zip(*bare[WARM_UP:], strict=True)
    return [
        Result("hibernate", "ms", asleep, bare_asleep, _TARGET),
        Result("wake", "ms", awake, bare_awake, _TARGET),
    ]


async def _by_us(sandbox: Sandbox) -> tuple[float, float]:
    start = time.perf_counter()
    await sandbox.hibernate()
    asleep = milliseconds(start)
    start = time.perf_counter()
    assert (await sandbox.run_code("x")).text == "42"
    return asleep, milliseconds(start)


def _first(floor: Floor, saved: Saved, folder: Path) -> Bare:
    machine = restore(floor, saved, folder)
    machine.port.attach()
    machine.port.configure()
    machine.port.cell("x = 42")
    return machine


def _by_hand(floor: Floor, machine: Bare, state: Path) -> tuple[Bare, tuple[float, float]]:
    start = time.perf_counter()
    saved = hibernate_by_hand(machine, state)
    asleep = milliseconds(start)
    start = time.perf_counter()
    woken = restore(floor, saved, machine.folder)
    woken.port.attach()
    woken.port.renew()
    assert b"42" in woken.port.cell("x")
    return woken, (asleep, milliseconds(start))


async def written(n: int) -> list[Result]:
    """MiB that lie on the disk for a sleeper, against the memory that its guest had in use.

    In use: the guest's MemTotal less MemFree, so its page cache counts and what its kernel
    reserves at boot does not. Written: the blocks of all files of the sleep; the disk's own
    layer was written before.
    """
    sizes: dict[str, list[tuple[float, float]]] = {name: [] for name in _LOADS}
    for _ in range(n):
        async with sandbox_of() as sandbox:
            for name, code in _LOADS.items():
                await sandbox.run_code(code)
                in_use = (await sandbox.run_code(_IN_USE)).text
                assert in_use is not None
                await sandbox.hibernate()
                sizes[name].append((_size_asleep(sandbox) / _MIB, int(in_use) / 1024))
            # Asleep it would outlive the block.
            await sandbox.kill()
    return [
        Result.of_pairs(f"hibernate-bytes{name}", "MiB", each, _TARGET)
        for name, each in sizes.items()
    ]


def _size_asleep(sandbox: Sandbox) -> int:
    record = registry.get(sandbox.id)
    assert record.asleep is not None
    folder = record.directory / str(record.asleep["folder"])
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())
