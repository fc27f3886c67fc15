"""Sandboxes copied while they run: fork, snapshot, hibernate, wake; nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import elsewhere
from novasandbox import Sandbox, SandboxState
from novasandbox.core import copying, layers, registry, snapshots
from novasandbox.core.cleaning import clean
from novasandbox.core.ground import Ground, layers_dir, objects
from novasandbox.core.home import home
from novasandbox.core.hypervisor import STATE, OnTimeout
from novasandbox.errors import (
    HostResourceExhausted,
    IllegalTransition,
    InvalidConfig,
    InvalidRequest,
    NameTaken,
    NovaError,
    OperationFailed,
    SandboxNotFound,
    SnapshotInvalid,
    VmmCrashed,
)
from novasandbox.guest.process import Process
from novasandbox.providers import qemu_state
from waiting import is_gone, until

pytestmark = pytest.mark.vm

COUNT = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.05; done"
# What no two guests may have in common, whatever they were copied from.
IDENTITY = (
    "cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id;"
    "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid"
)


@pytest.fixture(autouse=True)
async def nothing_left(nova_home: Path) -> AsyncIterator[None]:
    """After each test: no layer, no snapshot, no memory of its own, nothing half-made."""
    before = set(objects().glob("memory-*"))
    yield
    await asyncio.to_thread(registry.collect_leftovers)
    left = [each.id for each in snapshots.all_kept()]
    for identity in left:
        registry.remove_snapshot(identity)
    assert not left
    assert not list(snapshots.snapshots_dir().iterdir())
    await until(lambda: not list(layers_dir().iterdir()), within=5)
    assert not [path for path in objects().glob("memory-*") if path not in before]


async def _text(sandbox: Sandbox, command: str) -> str:
    return (await sandbox.exec(command, check=True)).stdout.strip()


async def _lines(process: Process, least: int) -> list[int]:
    """The next numbers that a counting process prints."""
    text = ""
    async for output in process:
        text += output.text
        if text.count("\n") >= least:
            break
    return [int(line) for line in text.split()]


def _ground(sandbox: Sandbox) -> Ground:
    ground = Ground.load(registry.get(sandbox.id).ground)
    assert ground is not None
    return ground


async def test_a_sandbox_is_a_copy_and_a_cold_one_gives_the_same(qemu: str) -> None:
    look = "id; pwd; env | sort | grep -v HOSTNAME; ls -a; python3 -c 'print(6*7)'; df / | wc -l"
    async with Sandbox.create() as copied, Sandbox.create(cold=True) as booted:
        assert _ground(copied).memory is not None
        assert _ground(booted).memory is None
        assert await _text(copied, look) == await _text(booted, look)
        assert await _text(copied, "uname -r") == await _text(booted, "uname -r")


async def test_copies_share_no_randomness_no_identity_and_no_wrong_time(qemu: str) -> None:
    sandboxes = [await Sandbox.create() for _ in range(3)]
    try:
        children = await sandboxes[0].fork(3)
        sandboxes += children
        seen: list[set[str]] = []
        for sandbox in sandboxes:
            seen.append(set((await _text(sandbox, IDENTITY)).split("\n")))
            before = time.time()
            there = float(await _text(sandbox, "date +%s.%N"))
            assert before - 0.05 <= there <= time.time() + 0.05
        for i, one in enumerate(seen):
            assert len(one) == 5
            for other in seen[i + 1 :]:
                assert not one & other
    finally:
        await asyncio.gather(*(sandbox.kill() for sandbox in sandboxes))


async def test_children_have_all_their_parent_had_and_only_their_own_later(
    own_sandbox: Sandbox,
) -> None:
    counting = await own_sandbox.start(COUNT)
    numbers = await _lines(counting, 3)
    await _text(own_sandbox, "echo unsynced >f; mkdir -p /dev/shm/d; echo ram >/dev/shm/d/m")
    first, second = await own_sandbox.fork(2)
    try:
        # The parent's stream has not noticed.
        numbers += await _lines(counting, 3)
        assert numbers == list(range(len(numbers)))
        for child in (first, second):
            assert await _text(child, "cat f /dev/shm/d/m") == "unsynced\nram"
            again = await child.attach(counting.pid)
            assert await _lines(again, 2)
        await _text(first, "echo first >f")
        await _text(second, "echo second >f; echo more >g")
        (grandchild,) = await first.fork()
        async with grandchild:
            assert await _text(grandchild, "cat f; ls") == "first\nf"
            await _text(grandchild, "echo grandchild >f; sync")
            await own_sandbox.kill()
            assert await _text(first, "cat f") == "first"
            assert await _text(second, "cat f g") == "second\nmore"
            await first.kill()
            assert await _text(grandchild, "cat f") == "grandchild"
            assert await _text(grandchild, "cat /dev/shm/d/m") == "ram"
    finally:
        await first.kill()
        await second.kill()


async def test_the_parent_goes_on_through_ten_snapshots(own_sandbox: Sandbox) -> None:
    counting = await own_sandbox.start(COUNT)
    moving = asyncio.create_task(
        own_sandbox.exec(
            "for i in $(seq 40); do dd if=/dev/urandom bs=64k count=4 2>/dev/null; done|wc -c"
        )
    )
    host, port = (await own_sandbox.expose(7000)).split(":")
    await own_sandbox.start(["python3", "-c", _ECHO])
    await until(lambda: _echoes(host, int(port)))
    reader, writer = await asyncio.open_connection(host, int(port))
    taken = []
    for number in range(10):
        taken.append(await own_sandbox.snapshot())
        writer.write(f"{number}\n".encode())
        assert await reader.readline() == f"{number}\n".encode()
    writer.close()
    assert (await moving).stdout.strip() == str(40 * 4 * 65536)
    numbers = await _lines(counting, 10)
    assert numbers == list(range(len(numbers)))
    # Each came from the one before: a tree that can be walked back.
    assert [each.parent for each in taken] == [None, *(each.id for each in taken[:-1])]
    for each in taken:
        await Sandbox.remove_snapshot(each.id)


_ECHO = (
    "import socket\n"
    "s = socket.create_server(('127.0.0.1', 7000))\n"
    "while True:\n"
    "    c, _ = s.accept()\n"
    "    while d := c.recv(100): c.sendall(d)\n"
)


async def _echoes(host: str, port: int) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"?\n")
        return await reader.readline() == b"?\n"
    except ConnectionError:
        return False
    finally:
        writer.close()


async def test_a_snapshot_outlives_its_sandbox_and_starts_many(qemu: str) -> None:
    async with Sandbox.create(env={"KEY": "value"}, cwd="/tmp") as sandbox:
        await _text(sandbox, "echo then >/home/user/f")
        taken = await sandbox.snapshot("base")
        with pytest.raises(NameTaken):
            await sandbox.snapshot("base")
        await _text(sandbox, "echo later >/home/user/f")
    assert [each.name for each in await Sandbox.snapshots()] == ["base"]
    assert taken.size > 0
    async with Sandbox.create(snapshot="base") as one, Sandbox.create(snapshot=taken.id) as two:
        for sandbox in (one, two):
            assert await _text(sandbox, "cat ~/f; pwd; echo $KEY") == "then\n/tmp\nvalue"
        await Sandbox.remove_snapshot("base")
        await _text(one, "echo mine >/home/user/f; sync")
        assert await _text(two, "cat ~/f") == "then"
    with pytest.raises(InvalidRequest, match="no snapshot"):
        await Sandbox.create(snapshot="base")


async def test_a_snapshot_of_other_sizes_or_another_host_is_refused(own_sandbox: Sandbox) -> None:
    taken = await own_sandbox.snapshot()
    with pytest.raises(InvalidConfig, match="memory_mib=512"):
        await Sandbox.create(snapshot=taken.id, memory_mib=512)
    kept = snapshots.find(taken.id)
    foreign = replace(kept, signature={**kept.signature, "version": "1.0"})
    with pytest.raises(SnapshotInvalid, match=r"version: '1\.0' then"):
        async with copying.of_snapshot(foreign):
            pass
    await Sandbox.remove_snapshot(taken.id)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "layer"])
async def test_a_damaged_snapshot_is_refused_before_anything_runs(
    own_sandbox: Sandbox, damage: str
) -> None:
    await _text(own_sandbox, "echo x >f; sync")
    taken = await own_sandbox.snapshot()
    kept = snapshots.find(taken.id)
    path = kept.folder / STATE
    if damage == "layer":
        path = layers_dir() / f"{kept.ground.own_layers[-1]}.qcow2"
    path.chmod(0o600)
    if damage == "gone":
        path.unlink()
    else:
        with path.open("r+b") as file:
            middle = path.stat().st_size // 2
            if damage == "cut":
                file.truncate(middle)
            else:
                file.seek(4096)
                byte = file.read(1)
                file.seek(4096)
                file.write(bytes([byte[0] ^ 1]))
    before = elsewhere.living(home())
    with pytest.raises(SnapshotInvalid) as refused:
        await Sandbox.create(snapshot=taken.id)
    assert refused.value.fix
    assert elsewhere.living(home()) == before
    await Sandbox.remove_snapshot(taken.id)


async def test_a_sandbox_sleeps_and_wakes_with_all_it_had(qemu: str) -> None:
    sandbox = await Sandbox.create(timeout=600, name="sleeper")
    counting = await sandbox.start(COUNT)
    numbers = await _lines(counting, 3)
    await _text(sandbox, "echo 0 >f")
    for turn in range(3):
        await _text(sandbox, f"echo {turn} >>f; echo {turn} >>/dev/shm/m")
        pid = (await sandbox.info()).pid
        assert pid is not None
        await sandbox.hibernate()
        assert is_gone(pid)
        with pytest.raises(IllegalTransition, match="hibernated"):
            await counting.wait()
        (listed,) = await Sandbox.list(state=SandboxState.HIBERNATED)
        assert (listed.name, listed.deadline, listed.pid) == ("sleeper", None, None)
        if turn:
            sandbox = await (Sandbox.connect if turn > 1 else Sandbox.wake)("sleeper")
        counting = await sandbox.attach(counting.pid)
        numbers = await _lines(counting, 3)
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        before = time.time()
        there = float(await _text(sandbox, "date +%s.%N"))
        assert before - 0.05 <= there <= time.time() + 0.05
    assert await _text(sandbox, "cat f /dev/shm/m | tr '\\n' ' '") == "0 0 1 2 0 1 2"
    deadline = (await sandbox.info()).deadline
    assert deadline is not None
    assert 500 < deadline - time.time() <= 600
    await sandbox.kill()


async def test_a_sandbox_goes_back_to_an_earlier_moment(own_sandbox: Sandbox) -> None:
    await _text(own_sandbox, "echo one >f; echo one >/dev/shm/f")
    first = await own_sandbox.snapshot("first")
    await _text(own_sandbox, "echo two >f; echo two >/dev/shm/f; sync")
    second = await own_sandbox.snapshot("second")
    assert second.parent == first.id
    waiting = asyncio.create_task(own_sandbox.exec("sleep 100"))
    exposed = await own_sandbox.expose(7001)
    await asyncio.sleep(0.2)
    for name, content in (("first", "one"), ("second", "two"), (first.id, "one")):
        identity = (await own_sandbox.info()).id, own_sandbox.name
        await own_sandbox.rollback(name)
        assert (own_sandbox.id, own_sandbox.name) == identity
        assert (await own_sandbox.info()).ports == {7001: exposed}
        assert await _text(own_sandbox, "cat f /dev/shm/f") == f"{content}\n{content}"
    with pytest.raises(IllegalTransition):
        await waiting
    with pytest.raises(InvalidRequest, match="no snapshot"):
        await own_sandbox.rollback("third")
    await _text(own_sandbox, "echo three >f")
    third = await own_sandbox.snapshot()
    assert third.parent == first.id
    async with await Sandbox.connect(own_sandbox.id) as remote:
        await remote.rollback("second")
        assert await _text(remote, "cat f") == "two"
    for each in (first, second, third):
        await Sandbox.remove_snapshot(each.id)
    assert await _text(own_sandbox, "cat f") == "two"


async def test_one_that_sleeps_outlives_its_maker_and_ends_without_waking(
    nova_home: Path, qemu: str
) -> None:
    made = await elsewhere.run(
        """
        sandbox = await Sandbox.create(timeout=600, env={"TOKEN": "t0p"})
        await sandbox.exec("echo kept >f", check=True)
        await sandbox.hibernate()
        print(sandbox.id)
        """
    )
    identity = made.strip()
    # Values of the environment lie in the guest's memory, and in no record.
    assert "t0p" not in (nova_home / "run" / identity / "sandbox.json").read_text()
    sandbox = await Sandbox.connect(identity)
    assert await _text(sandbox, "cat f; echo $TOKEN") == "kept\nt0p"
    await sandbox.hibernate()
    await asyncio.to_thread(registry.end_unheld, identity)
    with pytest.raises(SandboxNotFound):
        await Sandbox.connect(identity)
    assert identity not in elsewhere.living(nova_home)


@pytest.mark.parametrize("wish", ["pause", "hibernate"])
@pytest.mark.parametrize("detach", [False, True])
async def test_at_its_time_to_live_it_rests_until_the_next_call(
    nova_home: Path, wish: OnTimeout, detach: bool
) -> None:
    sandbox = await Sandbox.create(timeout=2, on_timeout=wish, detach=detach)
    resting = {"pause": SandboxState.PAUSED, "hibernate": SandboxState.HIBERNATED}[wish]
    for turn in range(2):
        await _text(sandbox, f"echo {turn} >>/dev/shm/f")
        await until(lambda: registry.get(sandbox.id).state is resting, within=20)
        assert registry.get(sandbox.id).deadline is None
    assert await _text(sandbox, "cat /dev/shm/f") == "0\n1"
    deadline = registry.get(sandbox.id).deadline
    assert deadline is not None
    assert deadline - time.time() <= 2
    await sandbox.kill()
    if detach:
        elsewhere.end_keeper(nova_home)


async def test_two_who_wake_it_at_once_get_the_same(qemu: str) -> None:
    sandbox = await Sandbox.create(timeout=600)
    await _text(sandbox, "echo one >/dev/shm/f")
    await sandbox.hibernate()
    body = """
        sandbox = await Sandbox.connect(sys.argv[1])
        result = await sandbox.exec("cat /dev/shm/f; cat /proc/sys/kernel/random/boot_id")
        print(result.stdout, flush=True)
        await asyncio.sleep(3)
        await sandbox.close()
    """
    both = await asyncio.gather(*(elsewhere.run(body, sandbox.id) for _ in range(2)))
    assert both[0] == both[1]
    assert both[0].startswith("one\n")


@pytest.mark.parametrize("verb", ["hibernate", "snapshot", "fork"])
async def test_a_full_disk_while_saving_leaves_it_running(
    own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    await _text(own_sandbox, "echo here >f")
    files = set(registry.get(own_sandbox.id).directory.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(qemu_state, "write_state", full)
        with pytest.raises(HostResourceExhausted, match="disk is full"):
            await getattr(own_sandbox, verb)()
    assert own_sandbox.state is SandboxState.RUNNING
    assert await _text(own_sandbox, "cat f") == "here"
    assert set(registry.get(own_sandbox.id).directory.iterdir()) == files
    (child,) = await own_sandbox.fork()
    async with child:
        assert await _text(child, "cat f") == "here"


async def test_a_vmm_that_dies_while_it_is_saved_harms_no_snapshot(
    own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _text(own_sandbox, "echo kept >f")
    taken = await own_sandbox.snapshot()
    pid = elsewhere.pids(registry.get(own_sandbox.id))[0]
    write_state = qemu_state.write_state

    def killed(*arguments: Any) -> None:
        os.kill(pid, signal.SIGKILL)
        # Its memory is gone with it.
        while not is_gone(pid):
            time.sleep(0.01)
        write_state(*arguments)

    monkeypatch.setattr(qemu_state, "write_state", killed)
    with pytest.raises((VmmCrashed, OperationFailed)):
        await own_sandbox.hibernate()
    monkeypatch.undo()
    async with Sandbox.create(snapshot=taken.id) as again:
        assert await _text(again, "cat f") == "kept"
    await Sandbox.remove_snapshot(taken.id)


async def test_an_owner_killed_in_the_middle_leaves_the_older_state(
    nova_home: Path, qemu: str
) -> None:
    """SIGKILL at many moments of hibernation: either it sleeps and wakes, or it is gone."""
    for delay in (0.0, 0.03, 0.06, 0.1, 0.2):
        body = """
            sandbox = await Sandbox.create(timeout=600)
            await sandbox.exec("echo kept >f", check=True)
            print(sandbox.id, flush=True)
            await sandbox.hibernate()
            await asyncio.sleep(60)
        """
        async with elsewhere.started(body) as owner:
            assert owner.stdout is not None
            identity = (await owner.stdout.readline()).decode().strip()
            await asyncio.sleep(delay)
            owner.kill()
            await owner.wait()
        record = registry.get(identity)
        if record.state is SandboxState.HIBERNATED:
            sandbox = await Sandbox.connect(identity)
            assert await _text(sandbox, "cat f") == "kept"
            await sandbox.kill()
        else:
            await until(lambda rec=record: all(map(is_gone, elsewhere.pids(rec))), within=10)
            await asyncio.to_thread(registry.collect_leftovers)
        assert identity not in elsewhere.living(nova_home)


@pytest.mark.parametrize("verb", ["snapshot", "fork", "hibernate", "pause"])
async def test_a_call_cancelled_at_any_moment_leaves_it_whole(
    own_sandbox: Sandbox, nova_home: Path, verb: str
) -> None:
    living = elsewhere.living(nova_home)
    for turn in range(8):
        await _text(own_sandbox, f"echo {turn} >>f; sync; echo {turn} >>/dev/shm/f")
        call = asyncio.create_task(getattr(own_sandbox, verb)())
        await asyncio.sleep(0.012 * turn)
        call.cancel()
        await asyncio.wait((call,))
        if not call.cancelled() and call.exception() is None and verb == "fork":
            for child in call.result():
                await child.kill()
        if own_sandbox.state is SandboxState.PAUSED:
            await own_sandbox.resume()
        lines = "".join(f"{each}\n" for each in range(turn + 1))
        assert (
            await _text(own_sandbox, "cat f; echo; cat /dev/shm/f") == f"{lines}\n{lines}".strip()
        )
        assert elsewhere.living(nova_home) == living
    for each in await Sandbox.snapshots():
        await Sandbox.remove_snapshot(each.id)


async def test_one_that_is_killed_while_it_falls_asleep_says_so(qemu: str) -> None:
    for delay in (0.0, 0.02, 0.05):
        sandbox = await Sandbox.create(timeout=600)
        falling = asyncio.create_task(sandbox.hibernate())
        await asyncio.sleep(delay)
        await sandbox.kill()
        with contextlib.suppress(NovaError):
            await falling
        with pytest.raises(NovaError):
            await Sandbox.connect(sandbox.id)


async def test_a_snapshot_that_is_removed_meanwhile_is_whole_or_refused(
    own_sandbox: Sandbox,
) -> None:
    await _text(own_sandbox, "echo kept >f; sync")
    for delay in (0.0, 0.01, 0.03, 0.06):
        taken = await own_sandbox.snapshot()

        async def create(identity: str = taken.id) -> Sandbox:
            return await Sandbox.create(snapshot=identity)

        making = asyncio.create_task(create())
        await asyncio.sleep(delay)
        await Sandbox.remove_snapshot(taken.id)
        try:
            made = await making
        except (InvalidRequest, SnapshotInvalid):
            continue
        await made.hibernate()
        assert await _text(made, "cat f") == "kept"
        await made.kill()


async def test_what_a_killed_process_was_saving_is_collected(
    own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandoned = snapshots.new_folder()
    (abandoned / STATE).write_bytes(b"half")
    orphan = layers_dir() / "0123456789abcdef.qcow2"
    orphan.write_bytes(b"nobody's")
    long_ago = time.time() - 7200
    os.utime(abandoned, (long_ago, long_ago))
    assert not [path for path in (await clean()).files if str(abandoned) != path]
    assert not abandoned.exists()
    # Its inode is young: its record may be on its way.
    assert orphan.exists()
    monkeypatch.setattr(layers, "_YOUNG", 0.0)
    await clean()
    assert not orphan.exists()


async def test_a_damaged_sleeper_says_so_and_can_be_removed(nova_home: Path, qemu: str) -> None:
    sandbox = await Sandbox.create(timeout=600)
    await sandbox.hibernate()
    record = registry.get(sandbox.id)
    assert record.asleep is not None
    state = record.directory / record.asleep["folder"] / STATE
    with state.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(SnapshotInvalid, match="not what was saved") as refused:
        await Sandbox.connect(sandbox.id)
    assert "nova kill" in str(refused.value.fix)
    assert registry.get(sandbox.id).state is SandboxState.HIBERNATED
    await asyncio.to_thread(registry.end_unheld, sandbox.id)


async def test_a_handle_ends_a_sleeper_without_waking_it(nova_home: Path, qemu: str) -> None:
    sandbox = await Sandbox.create(timeout=600, detach=True)
    await sandbox.hibernate()
    record = registry.get(sandbox.id)
    assert record.asleep is not None
    (record.directory / record.asleep["folder"] / STATE).unlink()  # It cannot be woken.
    await sandbox.kill()
    assert sandbox.id not in elsewhere.living(nova_home)
    elsewhere.end_keeper(nova_home)


async def test_a_paused_sandbox_can_be_forked_and_put_to_sleep(own_sandbox: Sandbox) -> None:
    await _text(own_sandbox, "echo p >f")
    await own_sandbox.pause()
    (child,) = await own_sandbox.fork()
    async with child:
        assert await _text(child, "cat f") == "p"
    assert own_sandbox.state is SandboxState.PAUSED
    await own_sandbox.hibernate()
    sandbox = await Sandbox.connect(own_sandbox.id)
    assert sandbox.state is SandboxState.PAUSED
    await sandbox.resume()
    assert await _text(sandbox, "cat f") == "p"
    await sandbox.kill()


async def test_one_that_was_booted_is_copied_as_well(qemu: str) -> None:
    sandbox = await Sandbox.create(cold=True, timeout=600)
    await _text(sandbox, "echo b >f; echo b >/dev/shm/f")
    (child,) = await sandbox.fork()
    async with child:
        assert await _text(child, "cat f /dev/shm/f") == "b\nb"
        (grandchild,) = await child.fork()
        async with grandchild:
            assert await _text(grandchild, "cat f /dev/shm/f") == "b\nb"
    await sandbox.hibernate()
    assert await _text(sandbox, "cat f /dev/shm/f") == "b\nb"
    await sandbox.kill()


async def test_a_detached_one_forks_sleeps_and_wakes_with_its_keeper(
    nova_home: Path, qemu: str
) -> None:
    async with Sandbox.create(detach=True, timeout=600) as parent:
        await _text(parent, "echo d >f")
        (child,) = await parent.fork()
        await parent.snapshot("kept")
        await parent.hibernate()
    told = await elsewhere.run(
        """
        sandbox = await Sandbox.connect(sys.argv[1])
        print((await sandbox.exec("cat f")).stdout.strip())
        other = await Sandbox.connect(sys.argv[2])
        print((await other.exec("cat f")).stdout.strip())
        """,
        parent.id,
        child.id,
    )
    assert told.split() == ["d", "d"]
    # Who woke it is gone, and it lives on.
    again = await Sandbox.connect(parent.id)
    assert await _text(again, "cat f") == "d"
    for sandbox in (again, child):
        await sandbox.kill()
    await Sandbox.remove_snapshot("kept")
    elsewhere.end_keeper(nova_home)


async def test_ten_generations_keep_every_byte(qemu: str) -> None:
    sandbox = await Sandbox.create(timeout=600)
    for generation in range(5):
        await _text(sandbox, f"dd if=/dev/urandom of=g{generation} bs=256k count=4 2>/dev/null")
        await _text(sandbox, f"sha256sum g{generation} >>sums")
        (child,) = await sandbox.fork()
        await sandbox.kill()
        sandbox = child
    assert (await _text(sandbox, "sha256sum -c sums | grep -c OK")) == "5"
    await sandbox.kill()


async def test_records_of_sleepers_and_snapshots_are_plain_json(own_sandbox: Sandbox) -> None:
    taken = await own_sandbox.snapshot()
    data = json.loads((snapshots.snapshots_dir() / taken.id / "snapshot.json").read_text())
    assert data["id"] == taken.id
    await Sandbox.remove_snapshot(taken.id)
