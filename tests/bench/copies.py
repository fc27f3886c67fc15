"""Measures of a copy: a sandbox made and asked, and a cell in one that lives."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from bench.bare import Bare, Saved, restored, template
from bench.floor import DISK_MIB, MEMORY_MIB, VCPUS, Floor, milliseconds
from bench.result import Result, Target
from novasandbox import Sandbox
from novasandbox.core.hypervisor import SandboxConfig

WARM_UP = 2
_CELLS = 20


def config(disk_mib: int = DISK_MIB) -> SandboxConfig:
    """The sizes of what is measured."""
    return SandboxConfig(vcpus=VCPUS, memory_mib=MEMORY_MIB, disk_mib=disk_mib)


@contextlib.asynccontextmanager
async def sandbox_of(disk_mib: int = DISK_MIB) -> AsyncIterator[Sandbox]:
    """A sandbox with these sizes."""
    async with Sandbox.create(
        vcpus=VCPUS, memory_mib=MEMORY_MIB, disk_mib=disk_mib, timeout=None
    ) as sandbox:
        yield sandbox


@contextlib.contextmanager
def idle_copy(floor: Floor, saved: Saved) -> Iterator[Bare]:
    """A bare machine that answers, and was asked nothing yet."""
    with (
        tempfile.TemporaryDirectory(dir=floor.beside) as name,
        restored(floor, saved, Path(name)) as machine,
    ):
        machine.port.attach()
        machine.port.configure()
        yield machine


@contextlib.contextmanager
def bare_copy(floor: Floor, saved: Saved) -> Iterator[Bare]:
    """A bare machine that has answered its first cell."""
    with idle_copy(floor, saved) as machine:
        assert b"42" in machine.port.cell("x = 6*7\nx")
        yield machine


async def copy(floor: Floor, n: int) -> list[Result]:
    """Create to the first cell's result, against a bare QEMU restored from the same files."""
    figures, floors = [], []
    async with template(floor, config()) as saved:
        for turn in range(WARM_UP + n):
            bare, ours = by_hand(floor, saved), await by_us()
            if turn >= WARM_UP:
                floors.append(bare)
                figures.append(ours)
    return [Result("copy", "ms", figures, floors, Target("ratio", "<=", 1.2))]


async def by_us() -> float:
    """Create to the first cell's result."""
    start = time.perf_counter()
    async with sandbox_of() as sandbox:
        assert (await sandbox.run_code("6*7")).text == "42"
        return milliseconds(start)


def by_hand(floor: Floor, saved: Saved) -> float:
    """The same with a bare machine: no jail, no record, no socket for others."""
    with tempfile.TemporaryDirectory(dir=floor.beside) as name:
        start = time.perf_counter()
        with restored(floor, saved, Path(name)) as machine:
            machine.port.attach()
            machine.port.configure()
            assert b"42" in machine.port.cell("6*7")
            return milliseconds(start)


async def run_code(floor: Floor, n: int) -> list[Result]:
    """One small cell after the other in a live sandbox, and in a bare machine."""
    figures, floors = [], []
    async with template(floor, config()) as saved, sandbox_of() as sandbox:
        with bare_copy(floor, saved) as machine:
            for turn in range(_CELLS + n):
                start = time.perf_counter()
                assert b'"1"' in machine.port.cell("1")
                bare = milliseconds(start)
                start = time.perf_counter()
                assert (await sandbox.run_code("1")).text == "1"
                if turn >= _CELLS:
                    figures.append(milliseconds(start))
                    floors.append(bare)
    return [
        Result("run-code", "ms", figures, floors, Target("p50", "<=", 3)),
        Result("run-code-tail", "ms", figures, floors, Target("p99", "<=", 15)),
    ]
