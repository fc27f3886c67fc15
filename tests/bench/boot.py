"""Measures of making a machine: cold to the first answer, and what the jail costs of that."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.floor import DISK_MIB, MEMORY_MIB, VCPUS, Floor, first_words, milliseconds
from bench.result import Result, Target
from novasandbox import Sandbox
from novasandbox.core.hypervisor import MachineSpec
from novasandbox.providers.qemu import QemuHypervisor

ANSWER = ["python3", "-c", "print(6*7)"]


async def cold(floor: Floor, n: int) -> list[Result]:
    """Create to the first result, against bare QEMU to the same answer."""
    bare, ours = [], []
    for _ in range(n):
        bare.append(_bare_answer(floor))
        ours.append(await _first_answer())
    return [Result("cold", "ms", ours, bare, Target("ratio", "<=", 1.25))]


def _bare_answer(floor: Floor) -> float:
    start = time.perf_counter()
    with floor.guest() as guest:
        answer = guest.answer()
        took = milliseconds(start)
    assert answer == b"42\n", answer
    return took


async def _first_answer() -> float:
    start = time.perf_counter()
    async with Sandbox.create(
        vcpus=VCPUS, memory_mib=MEMORY_MIB, disk_mib=DISK_MIB, cold=True
    ) as sandbox:
        result = await sandbox.exec(ANSWER)
        took = milliseconds(start)
    assert result.stdout == "42\n", result
    return took


async def jail(floor: Floor, n: int) -> list[Result]:
    """A machine's process until its monitor speaks: in its jail, and as a plain child."""
    bare, ours = [], []
    for _ in range(n):
        bare.append(_bare_process(floor))
        ours.append(await _jailed_process(floor))
    return [Result("jail", "ms", ours, bare)]


def _bare_process(floor: Floor) -> float:
    start = time.perf_counter()
    with floor.process() as (_, folder):
        words = first_words(folder / "qmp.sock")
        took = milliseconds(start)
    assert b"QMP" in words, words
    return took


async def _jailed_process(floor: Floor) -> float:
    with tempfile.TemporaryDirectory(dir=floor.folder) as folder:
        spec = MachineSpec(
            id="bench",
            run_dir=Path(folder),
            kernel=floor.artifacts.kernel,
            initramfs=floor.artifacts.initramfs,
            rootfs=floor.artifacts.rootfs,
            scratch_base=Path(floor.files.scratch_base),
            disk=Path(folder) / "own.qcow2",
            scratch_mib=DISK_MIB,
            vcpus=VCPUS,
            memory_mib=MEMORY_MIB,
        )
        start = time.perf_counter()
        machine = await QemuHypervisor().boot(spec)
        try:
            words = first_words(spec.run_dir / "qmp.sock")
            took = milliseconds(start)
        finally:
            await machine.kill()
    assert b"QMP" in words, words
    return took
