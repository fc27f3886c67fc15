"""Room on the host, where machines are: who is refused, who waits, and who has a place."""

from __future__ import annotations

import asyncio

import pytest

from novasandbox import Sandbox
from novasandbox.core import admission
from novasandbox.errors import CapacityExceeded
from waiting import until

pytestmark = pytest.mark.vm


async def test_a_full_host_refuses_or_lets_wait(monkeypatch: pytest.MonkeyPatch, qemu: str) -> None:
    there = admission.usage()
    monkeypatch.setenv("NOVA_MAX_SANDBOXES", str(there.sandboxes + 1))
    async with Sandbox.create() as sandbox:
        with pytest.raises(CapacityExceeded, match="NOVA_MAX_SANDBOXES"):
            await Sandbox.create()
        with pytest.raises(CapacityExceeded):
            await sandbox.fork()
        # Asleep it takes no room, and it wakes where there is some.
        await sandbox.hibernate()
        assert admission.usage() == there
        other = await Sandbox.create()
        with pytest.raises(CapacityExceeded):
            await sandbox.exec("true")
        monkeypatch.setenv("NOVA_ADMISSION_WAIT", "30")
        waiting = asyncio.create_task(sandbox.exec("echo awake"))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await other.kill()
        assert (await waiting).stdout == "awake\n"
    monkeypatch.delenv("NOVA_MAX_SANDBOXES")
    monkeypatch.setenv("NOVA_ADMISSION_WAIT", "0")
    monkeypatch.setenv("NOVA_MAX_MEMORY_MIB", str(there.memory_mib + 300))
    async with Sandbox.create(memory_mib=256):
        with pytest.raises(CapacityExceeded, match="NOVA_MAX_MEMORY_MIB"):
            await Sandbox.create(memory_mib=256)


async def test_a_detached_sandbox_has_a_place_for_as_long_as_it_lives(qemu: str) -> None:
    there = admission.usage().sandboxes
    sandbox = await Sandbox.create(detach=True, timeout=120)
    assert admission.usage().sandboxes == there + 1
    await sandbox.close()
    assert admission.usage().sandboxes == there + 1
    await sandbox.kill()
    await until(lambda: admission.usage().sandboxes == there)


async def test_a_rollback_needs_no_room_but_its_own(
    monkeypatch: pytest.MonkeyPatch, own_sandbox: Sandbox
) -> None:
    await own_sandbox.exec("echo first >note")
    snapshot = await own_sandbox.snapshot()
    await own_sandbox.exec("echo second >note")
    monkeypatch.setenv("NOVA_MAX_SANDBOXES", str(admission.usage().sandboxes))
    await own_sandbox.rollback(snapshot.id)
    assert (await own_sandbox.exec("cat note")).stdout == "first\n"
    await Sandbox.remove_snapshot(snapshot.id)


async def test_children_that_do_not_all_fit_are_not_begun(
    monkeypatch: pytest.MonkeyPatch, own_sandbox: Sandbox
) -> None:
    there = admission.usage().sandboxes
    monkeypatch.setenv("NOVA_MAX_SANDBOXES", str(there + 1))
    with pytest.raises(CapacityExceeded):
        await own_sandbox.fork(2)
    assert admission.usage().sandboxes == there
    for child in await own_sandbox.fork(1):
        await child.kill()
