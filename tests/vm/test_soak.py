"""What only shows after many: leaks of processes, descriptors, memory and folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from novasandbox import Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.soak]

SANDBOXES = 200
COMMANDS = 10_000
GROWTH = 32 << 20


@dataclass(frozen=True)
class Held:
    """What this process holds of the host."""

    children: int
    descriptors: int
    folders: int
    resident: int


def held(home: Path) -> Held:
    """Count it."""
    this = psutil.Process()
    return Held(
        children=len(this.children(recursive=True)),
        descriptors=this.num_fds(),
        folders=sum(1 for path in (home / "run").glob("*") if path.is_dir()),
        resident=this.memory_info().rss,
    )


def assert_no_more(before: Held, after: Held) -> None:
    assert after.children <= before.children
    assert after.descriptors <= before.descriptors
    assert after.folders <= before.folders
    assert after.resident - before.resident < GROWTH


async def use_one() -> None:
    async with Sandbox.create(timeout=120) as sandbox:
        assert (await sandbox.exec(["/bin/true"])).exit_code == 0


async def test_many_sandboxes_in_a_row_leave_nothing_behind(qemu: str, nova_home: Path) -> None:
    await use_one()
    before = held(nova_home)
    for _ in range(SANDBOXES):
        await use_one()
    assert_no_more(before, held(nova_home))


async def test_many_commands_in_one_sandbox_cost_nothing_that_stays(
    own_sandbox: Sandbox, nova_home: Path
) -> None:
    await own_sandbox.set_timeout(None)
    for _ in range(100):
        await own_sandbox.exec(["/bin/true"])
    before = held(nova_home)
    memory = (await own_sandbox.metrics()).guest.memory_available
    for _ in range(COMMANDS):
        assert (await own_sandbox.exec(["/bin/true"])).exit_code == 0
    assert_no_more(before, held(nova_home))
    assert memory - (await own_sandbox.metrics()).guest.memory_available < GROWTH
