"""Verbs that meet: what one writes down the other does not undo, and nobody loses a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import elsewhere
from novasandbox import Sandbox, SandboxState
from novasandbox.core import copying, making, registry, sleeping, snapshots
from novasandbox.core.ground import layers_dir, objects
from novasandbox.core.hypervisor import STATE
from novasandbox.core.snapshots import Snapshot
from novasandbox.errors import (
    HostResourceExhausted,
    IllegalTransition,
    NameTaken,
    NovaError,
    SandboxNotFound,
    SnapshotInvalid,
    VmmCrashed,
)
from novasandbox.guest.client import Guest
from novasandbox.providers import qemu_state
from novasandbox.providers.qmp import Qmp
from waiting import is_gone, until

pytestmark = pytest.mark.vm

CONNECT = """
    for _ in range(40):
        sandbox = await Sandbox.connect(sys.argv[1])
        print(type(sandbox._session).__name__)
        await sandbox.close()
        await asyncio.sleep(0.01)
"""


@pytest.fixture(autouse=True)
async def nothing_left(nova_home: Path) -> AsyncIterator[None]:
    """After each test: no layer, no memory of its own, and nothing half-saved."""
    before = set(objects().glob("memory-*"))
    yield
    await until(lambda: not list(layers_dir().iterdir()), within=5)
    assert not list(snapshots.snapshots_dir().iterdir())
    assert not [path for path in objects().glob("memory-*") if path not in before]


@contextlib.asynccontextmanager
async def _used(sandbox: Sandbox) -> AsyncIterator[None]:
    """In this block commands run in it without end; what they end with is that it slept."""
    over = asyncio.Event()

    async def use() -> None:
        while not over.is_set():
            with contextlib.suppress(IllegalTransition):
                await sandbox.exec(["/bin/true"], timeout=30)

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(use())
        yield
        over.set()


async def _text(sandbox: Sandbox, command: str) -> str:
    return (await sandbox.exec(command, check=True)).stdout.strip()


async def test_a_call_while_it_falls_asleep_wakes_it_and_it_is_held(own_sandbox: Sandbox) -> None:
    for turn in range(3):
        async with _used(own_sandbox):
            await own_sandbox.hibernate()
            await until(lambda: registry.get(own_sandbox.id).state is SandboxState.RUNNING)
        record = registry.get(own_sandbox.id)
        assert record.owner is not None
        assert record.owner.alive
        assert record.machine is not None
        # Whoever lists sandboxes ends those that nobody holds.
        assert own_sandbox.id in [info.id for info in await Sandbox.list()]
        assert await _text(own_sandbox, f"echo {turn} >>f; tail -n1 f") == str(turn)


async def test_a_call_while_it_goes_back_disturbs_nothing(own_sandbox: Sandbox) -> None:
    taken = await own_sandbox.snapshot()
    exposed = await own_sandbox.expose(7001)
    for _ in range(2):
        await _text(own_sandbox, "echo more >f")
        async with _used(own_sandbox):
            await own_sandbox.rollback(taken.id)
        assert (await own_sandbox.info()).ports == {7001: exposed}
        assert await _text(own_sandbox, "ls") == ""
    await Sandbox.remove_snapshot(taken.id)


async def test_who_connects_while_it_goes_back_does_not_take_it(own_sandbox: Sandbox) -> None:
    taken = await own_sandbox.snapshot()
    connecting = asyncio.create_task(elsewhere.run(CONNECT, own_sandbox.id))
    while not connecting.done():
        await own_sandbox.rollback(taken.id)
        await asyncio.sleep(0.05)
    assert set((await connecting).split()) == {"RemoteSession"}
    assert await _text(own_sandbox, "echo mine") == "mine"
    await Sandbox.remove_snapshot(taken.id)


@pytest.mark.parametrize("verb", ["snapshot", "hibernate"])
async def test_a_timeout_that_is_set_while_it_is_saved_is_kept(
    own_sandbox: Sandbox, verb: str
) -> None:
    for delay in (0.0, 0.02, 0.05, 0.1):
        saving = asyncio.create_task(getattr(own_sandbox, verb)())
        await asyncio.sleep(delay)
        was_set = False
        with contextlib.suppress(IllegalTransition):
            await own_sandbox.set_timeout(5000)
            was_set = True
        await saving
        await _text(own_sandbox, "true")
        deadline = registry.get(own_sandbox.id).deadline
        assert deadline is not None
        assert (deadline - time.time() > 4000) is was_set
        await own_sandbox.set_timeout(600)
    for each in await Sandbox.snapshots():
        await Sandbox.remove_snapshot(each.id)


async def test_a_call_waits_until_one_that_rests_is_saved(
    qemu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Sandbox.create(timeout=1, on_timeout="pause") as sandbox:
        await until(lambda: registry.get(sandbox.id).state is SandboxState.PAUSED)
        write, order = qemu_state.write, []

        def slowly(*arguments: Any) -> None:
            time.sleep(1)
            write(*arguments)
            order.append("saved")

        monkeypatch.setattr(qemu_state, "write", slowly)
        saving = asyncio.create_task(sandbox.snapshot())
        await asyncio.sleep(0.3)
        assert await _text(sandbox, "echo on") == "on"
        order.append("called")
        taken = await saving
        assert order == ["saved", "called"]
        await Sandbox.remove_snapshot(taken.id)


async def test_time_that_was_over_while_it_was_paused_is_over(qemu: str) -> None:
    async with Sandbox.create(timeout=1.5, on_timeout="pause") as sandbox:
        await sandbox.pause()
        await asyncio.sleep(2)
        await sandbox.resume()
        await until(lambda: registry.get(sandbox.id).deadline is None)
        assert sandbox.state is SandboxState.PAUSED
        await until(lambda: _text(sandbox, "echo on"))


async def test_every_verb_of_a_handle_wakes_what_it_put_to_sleep(own_sandbox: Sandbox) -> None:
    await _text(own_sandbox, "echo kept >f")
    await own_sandbox.hibernate()
    (child,) = await own_sandbox.fork()
    await child.kill()
    await own_sandbox.hibernate()
    taken = await own_sandbox.snapshot()
    await own_sandbox.hibernate()
    await own_sandbox.rollback(taken.id)
    await own_sandbox.hibernate()
    await own_sandbox.set_timeout(500)
    await own_sandbox.hibernate()
    assert await own_sandbox.expose(7002)
    await own_sandbox.hibernate()
    with pytest.raises(IllegalTransition):
        await own_sandbox.hibernate()
    assert own_sandbox.state is SandboxState.HIBERNATED
    assert await _text(own_sandbox, "cat f") == "kept"
    await Sandbox.remove_snapshot(taken.id)


async def test_one_that_is_elsewhere_and_cannot_be_woken_can_be_killed(
    nova_home: Path, qemu: str
) -> None:
    async with Sandbox.create(timeout=600, detach=True) as sandbox:
        await sandbox.hibernate()
        record = registry.get(sandbox.id)
        assert record.asleep is not None
        (record.directory / record.asleep["folder"] / STATE).unlink()
        await sandbox.kill()
    assert sandbox.id not in elsewhere.living(nova_home)
    elsewhere.end_keeper(nova_home)


@pytest.mark.parametrize("detach", [False, True])
async def test_a_fork_that_is_cancelled_at_any_moment_leaves_no_child(
    nova_home: Path, qemu: str, detach: bool
) -> None:
    others = elsewhere.living(nova_home)
    async with Sandbox.create(timeout=600, detach=detach) as made:
        async with await Sandbox.connect(made.id) as sandbox:
            for delay in (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4):
                forking = asyncio.create_task(sandbox.fork(2))
                await asyncio.sleep(delay)
                forking.cancel()
                await asyncio.wait((forking,))
                if not forking.cancelled():
                    for child in forking.result():
                        await child.kill()
                await until(lambda: elsewhere.living(nova_home) - others == {made.id})
            assert await _text(sandbox, "echo on") == "on"
        await made.kill()
    if detach:
        elsewhere.end_keeper(nova_home)


async def test_a_fork_that_is_cancelled_at_its_very_end_leaves_no_child(
    own_sandbox: Sandbox, nova_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_back = copying.give_back

    async def cancelled(*arguments: Any) -> None:
        forking.cancel()
        await give_back(*arguments)

    before = elsewhere.living(nova_home)
    monkeypatch.setattr(copying, "give_back", cancelled)
    forking = asyncio.create_task(own_sandbox.fork(2))
    with pytest.raises(asyncio.CancelledError):
        await forking
    assert elsewhere.living(nova_home) == before


@pytest.mark.parametrize("verb", ["fork", "snapshot", "hibernate"])
async def test_one_that_is_cancelled_while_memory_is_written_leaves_no_folder(
    own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    write = qemu_state.write
    writing = threading.Event()

    def slowly(*arguments: Any) -> None:
        writing.set()
        time.sleep(0.5)
        write(*arguments)

    monkeypatch.setattr(qemu_state, "write", slowly)
    files = set(registry.get(own_sandbox.id).directory.iterdir())
    saving = asyncio.create_task(getattr(own_sandbox, verb)())
    await until(writing.is_set)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert not list(snapshots.snapshots_dir().iterdir())
    assert set(registry.get(own_sandbox.id).directory.iterdir()) == files
    assert await _text(own_sandbox, "echo on") == "on"


async def test_a_name_is_one_snapshots(own_sandbox: Sandbox) -> None:
    taking = [own_sandbox.snapshot("same") for _ in range(2)]
    results = await asyncio.gather(*taking, return_exceptions=True)
    assert {type(each) for each in results} == {NameTaken, Snapshot}
    assert [each.name for each in await Sandbox.snapshots()] == ["same"]
    await Sandbox.remove_snapshot("same")


@pytest.mark.parametrize("verb", ["hibernate", "snapshot", "fork"])
async def test_what_fails_leaves_no_memory(
    qemu: str, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = set(objects().glob("memory-*"))
    async with Sandbox.create(timeout=600, cold=True) as sandbox:
        with monkeypatch.context() as patch:
            patch.setattr(sleeping, "_seal_disk", full)
            patch.setattr(registry, "keep_snapshot", full)
            patch.setattr(making, "restore", full)
            with pytest.raises(NovaError):
                await getattr(sandbox, verb)()
        assert set(objects().glob("memory-*")) == before
        assert await _text(sandbox, "echo on") == "on"


async def test_a_disk_that_fails_costs_a_sleeper_nothing(
    own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    await _text(own_sandbox, "echo kept >/dev/shm/f")
    await own_sandbox.hibernate()
    with monkeypatch.context() as patch:
        patch.setattr(sleeping, "_hash", fails)
        with pytest.raises(SnapshotInvalid, match="cannot be read"):
            await _text(own_sandbox, "true")
    assert await _text(own_sandbox, "cat /dev/shm/f") == "kept"


@pytest.mark.parametrize("late", [False, True])
async def test_a_waking_that_fails_can_be_tried_again(
    own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    async def fails(*_: object) -> None:
        raise HostResourceExhausted("the host is full today")

    await _text(own_sandbox, "echo kept >/dev/shm/f")
    for _ in range(2):
        await own_sandbox.hibernate()
        with monkeypatch.context() as patch:
            target: Any = Guest if late else making
            patch.setattr(target, "renew" if late else "restore", fails)
            for _ in range(2):
                with pytest.raises(HostResourceExhausted, match="full today"):
                    await own_sandbox.exec("true")
            with pytest.raises(HostResourceExhausted):
                await Sandbox.connect(own_sandbox.id)
        assert registry.get(own_sandbox.id).state is SandboxState.HIBERNATED
        assert await _text(own_sandbox, "cat /dev/shm/f") == "kept"
    await own_sandbox.hibernate()
    with monkeypatch.context() as patch:
        patch.setattr(making, "restore", fails)
        with pytest.raises(HostResourceExhausted):
            await own_sandbox.exec("true")
    # Another process is not kept from it either.
    told = await elsewhere.run(
        """
        async with await Sandbox.connect(sys.argv[1]) as sandbox:
            print((await sandbox.exec("cat /dev/shm/f")).stdout)
            await sandbox.kill()
        """,
        own_sandbox.id,
    )
    assert told.strip() == "kept"


@pytest.mark.parametrize("own", [False, True])
async def test_a_machine_that_dies_while_it_is_woken_loses_nothing(
    own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    renew = Guest.renew

    async def dies(guest: Guest) -> None:
        pids = elsewhere.pids(registry.get(own_sandbox.id))
        os.kill(pids[0], signal.SIGKILL)
        await until(lambda: is_gone(pids[0]))
        await asyncio.sleep(0.3)
        await renew(guest)

    await _text(own_sandbox, "echo kept >/dev/shm/f")
    await own_sandbox.hibernate()
    with monkeypatch.context() as patch:
        patch.setattr(Guest, "renew", dies)
        for _ in range(2):
            waking = own_sandbox.exec("true") if own else Sandbox.connect(own_sandbox.id)
            with pytest.raises(NovaError):
                await waking
    assert registry.get(own_sandbox.id).state is SandboxState.HIBERNATED
    assert await _text(own_sandbox, "cat /dev/shm/f") == "kept"


@pytest.mark.parametrize("late", [False, True])
async def test_one_that_is_killed_while_it_is_woken_was_killed(
    own_sandbox: Sandbox, nova_home: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    target: Any = Guest if late else making
    name = "renew" if late else "restore"
    go_on = getattr(target, name)

    async def killed(*arguments: Any) -> Any:
        await asyncio.to_thread(registry.end_unheld, own_sandbox.id)
        return await go_on(*arguments)

    await own_sandbox.hibernate()
    before = elsewhere.living(nova_home) - {own_sandbox.id}
    with monkeypatch.context() as patch:
        patch.setattr(target, name, killed)
        with pytest.raises(SandboxNotFound, match="it was killed"):
            await Sandbox.connect(own_sandbox.id)
    assert elsewhere.living(nova_home) == before


async def test_one_that_rests_is_woken_by_a_call_whatever_happened_to_it(
    nova_home: Path, qemu: str
) -> None:
    async with Sandbox.create(timeout=1.5, on_timeout="pause", detach=True) as sandbox:
        rests = SandboxState.PAUSED
        await until(lambda: registry.get(sandbox.id).state is rests)
        elsewhere.end_keeper(nova_home, signal.SIGKILL)
        async with await Sandbox.connect(sandbox.id) as again:
            assert await _text(again, "echo on") == "on"
        deadline = registry.get(sandbox.id).deadline
        assert deadline is not None
        assert deadline > time.time()
        await until(lambda: registry.get(sandbox.id).state is rests)
        await sandbox.hibernate()
        assert await _text(sandbox, "echo on") == "on"
        await sandbox.kill()
    elsewhere.end_keeper(nova_home)


async def test_a_snapshot_started_as_another_user_runs_code_as_that_user(
    own_sandbox: Sandbox,
) -> None:
    await own_sandbox.run_code("x = 41")
    taken = await own_sandbox.snapshot()
    async with Sandbox.create(snapshot=taken.id, user="root") as other:
        assert (await other.run_code("import os; os.getuid()")).text == "0"
        assert await _text(other, "id -u") == "0"
        await other.run_code("y = 42")
        later = await other.snapshot()
        (child,) = await other.fork()
        async with child:
            assert (await child.run_code("y")).text == "42"
    async with Sandbox.create(snapshot=taken.id) as same:
        assert (await same.run_code("x")).text == "41"
    for user in (None, "root"):
        async with Sandbox.create(snapshot=later.id, user=user) as again:
            assert (await again.run_code("y")).text == "42"
    for each in (taken, later):
        await Sandbox.remove_snapshot(each.id)


@pytest.mark.parametrize("late", ["blockdev-add", "blockdev-snapshot", "query-fdsets"])
async def test_an_answer_of_qemu_that_comes_too_late_harms_no_disk(
    own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    execute = Qmp.execute

    async def executed(qmp: Qmp, command: str, *arguments: Any, **options: Any) -> Any:
        answer = await execute(qmp, command, *arguments, **options)
        if command == late:
            raise VmmCrashed(f"QEMU did not take the command {command!r}", why="TimeoutError()")
        return answer

    await _text(own_sandbox, "echo one >one; sync")
    with monkeypatch.context() as patch:
        patch.setattr(Qmp, "execute", executed)
        with pytest.raises(VmmCrashed, match="did not take"):
            await own_sandbox.snapshot()
    more = "dd if=/dev/urandom of=more bs=64k count=64 2>/dev/null; sha256sum one more >sums; sync"
    await _text(own_sandbox, more)
    taken = await own_sandbox.snapshot()
    look = "echo 3 >/proc/sys/vm/drop_caches; sha256sum -c sums"
    async with Sandbox.create(snapshot=taken.id) as copied:
        result = await copied.exec(look, user="root", cwd="/home/user")
        assert result.stdout == "one: OK\nmore: OK\n"
    await own_sandbox.hibernate()
    result = await own_sandbox.exec(look, user="root", cwd="/home/user")
    assert result.stdout == "one: OK\nmore: OK\n"
    await Sandbox.remove_snapshot(taken.id)
