"""Layers of disks: frozen for good, and merged before they are many; every byte stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from novasandbox import Sandbox
from novasandbox.core import registry
from novasandbox.core.ground import Ground, layers_dir

pytestmark = pytest.mark.vm


async def _text(sandbox: Sandbox, command: str) -> str:
    return (await sandbox.exec(command, check=True)).stdout.strip()


def _ground(sandbox: Sandbox) -> Ground:
    ground = Ground.load(registry.get(sandbox.id).ground)
    assert ground is not None
    return ground


def _opened(pid: int) -> dict[int, set[int]]:
    """What a process has open: the ways (`os.O_RDONLY` and so on) by inode."""
    found: dict[int, set[int]] = {}
    for number in Path(f"/proc/{pid}/fd").iterdir():
        flags = Path(f"/proc/{pid}/fdinfo/{number.name}").read_text().split("flags:")[1]
        found.setdefault(number.stat().st_ino, set()).add(int(flags.split()[0], 8) & 3)
    return found


async def test_a_frozen_layer_is_writable_to_nobody(own_sandbox: Sandbox) -> None:
    taken = []
    for turn in range(3):
        await _text(own_sandbox, f"echo {turn} >>f; sync")
        taken.append(await own_sandbox.snapshot())
    pid = (registry.get(own_sandbox.id).machine or {})["pid"]
    opened = _opened(pid)
    frozen = _ground(own_sandbox).own_layers
    assert len(frozen) == 3
    for layer in frozen:
        assert opened[(layers_dir() / f"{layer}.qcow2").stat().st_ino] == {0}
    for each in taken:
        await Sandbox.remove_snapshot(each.id)


async def test_saving_costs_the_hypervisor_no_descriptors(own_sandbox: Sandbox) -> None:
    pid = (registry.get(own_sandbox.id).machine or {})["pid"]

    async def saved() -> int:
        await Sandbox.remove_snapshot((await own_sandbox.snapshot()).id)
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    first = await saved()
    assert max([await saved() for _ in range(5)]) <= first + 5 * 2
