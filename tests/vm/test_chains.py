"""Layers of disks: frozen for good, and merged before they are many; every byte stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import elsewhere
from novasandbox import Sandbox, SandboxState
from novasandbox.core import layers, merging, registry
from novasandbox.core.cleaning import clean
from novasandbox.core.copying import disk_of
from novasandbox.core.ground import Ground, layers_dir
from novasandbox.errors import NovaError
from waiting import is_gone, until

pytestmark = pytest.mark.vm

MIB = 1 << 20
LONG = pytest.mark.soak
TICKS = "i=0; while true; do echo $i >ticks; i=$((i+1)); sleep 0.3; done"


@pytest.fixture(autouse=True)
async def no_layer_stays(own_home: Path) -> AsyncIterator[None]:
    """After each test no layer is left."""
    yield
    await asyncio.to_thread(registry.collect_leftovers)
    await until(lambda: not list(layers_dir().iterdir()), within=5)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three layers are many, and merged at once; six are too many."""
    monkeypatch.setattr(merging, "_MANY", 3)
    monkeypatch.setattr(merging, "_TOO_MANY", 6)
    monkeypatch.setattr(merging, "_DELAY", 0.0)


async def _text(sandbox: Sandbox, command: str) -> str:
    return (await sandbox.exec(command, check=True)).stdout.strip()


async def _write(sandbox: Sandbox, name: str, mib: float) -> None:
    """Write a file of random bytes, and what its hash is."""
    count = int(mib * 16)
    await _text(
        sandbox,
        f"dd if=/dev/urandom of={name} bs=64k count={count} 2>/dev/null;"
        f" sha256sum {name} >>sums; sync",
    )


async def _whole(sandbox: Sandbox) -> list[str]:
    """Read all files that were written from the disk: their names; fails if a byte differs."""
    drop = await sandbox.exec("echo 3 >/proc/sys/vm/drop_caches", user="root")
    assert drop.ok
    checked = (await _text(sandbox, "sha256sum -c sums")).splitlines()
    assert all(line.endswith(": OK") for line in checked)
    return [line.removesuffix(": OK") for line in checked]


def _ground(sandbox: Sandbox) -> Ground:
    ground = Ground.load(registry.get(sandbox.id).ground)
    assert ground is not None
    return ground


def _depth(sandbox: Sandbox) -> int:
    """How many layers the disk stands on beside the template's."""
    return len(_ground(sandbox).own_layers)


async def _is_merged(sandbox: Sandbox) -> None:
    await until(lambda: _depth(sandbox) == 0)


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def _pid(sandbox: Sandbox) -> int:
    pid = (registry.get(sandbox.id).machine or {})["pid"]
    assert isinstance(pid, int)
    return pid


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
    opened = _opened(_pid(own_sandbox))
    frozen = _ground(own_sandbox).own_layers
    assert len(frozen) == 3
    for layer in frozen:
        assert opened[(layers_dir() / f"{layer}.qcow2").stat().st_ino] == {0}
    for each in taken:
        await Sandbox.remove_snapshot(each.id)


async def test_saving_costs_the_hypervisor_no_descriptors(own_sandbox: Sandbox) -> None:
    pid = _pid(own_sandbox)

    async def saved() -> int:
        await Sandbox.remove_snapshot((await own_sandbox.snapshot()).id)
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    first = await saved()
    assert max([await saved() for _ in range(5)]) <= first + 5 * 2


@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=LONG)])
async def test_a_disk_stays_shallow_however_often_it_sleeps(
    own_sandbox: Sandbox, soon: None, rounds: int
) -> None:
    ticking = await own_sandbox.start(TICKS)
    for turn in range(rounds):
        await _write(own_sandbox, f"f{turn}", 0.5)
        await own_sandbox.hibernate()
        # Timers that were set before it slept go on.
        await _ticks(own_sandbox)
        assert _depth(own_sandbox) <= 7
    await until(lambda: _depth(own_sandbox) <= 3)
    assert await _whole(own_sandbox) == [f"f{turn}" for turn in range(rounds)]
    # What the template holds was not copied, and of each byte hardly more than one is kept.
    files = [disk_of(registry.get(own_sandbox.id)), *layers_dir().glob("*.qcow2")]
    assert len(files) == _depth(own_sandbox) + 1
    assert sum(map(_allocated, files)) < (rounds * 0.5 * 2 + 8) * MIB
    await (await own_sandbox.attach(ticking.pid)).kill()


async def _ticks(sandbox: Sandbox) -> None:
    """Wait until what counts in the guest has counted on."""
    before = await _text(sandbox, "cat ticks")
    await until(lambda: _shows_another(sandbox, before))


async def _shows_another(sandbox: Sandbox, ticks: str) -> bool:
    # It is empty in the moment in which it is written.
    return (await _text(sandbox, "cat ticks")) not in ("", ticks)


@pytest.mark.parametrize("mib", [0.5, pytest.param(24, marks=LONG)])
async def test_the_tenth_generation_has_the_bytes_of_all_and_few_layers(
    qemu: str, soon: None, mib: float
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(Sandbox.create(timeout=3600))
        elders = {}
        ticking = await sandbox.start(TICKS)
        for generation in range(10):
            await _write(sandbox, f"f{generation}", mib)
            (child,) = await sandbox.fork()
            await stack.enter_async_context(child)
            if generation in (1, 6):
                elders[generation] = sandbox
            else:
                await sandbox.kill()
            sandbox = child
            assert _depth(sandbox) <= 7
        await _ticks(sandbox)
        # Those that live have what they had.
        for generation, elder in elders.items():
            assert await _whole(elder) == [f"f{number}" for number in range(generation + 1)]
            await elder.kill()
        await until(lambda: _depth(sandbox) <= 3)
        assert await _whole(sandbox) == [f"f{number}" for number in range(10)]
        await (await sandbox.attach(ticking.pid)).kill()


async def test_one_that_is_saved_too_often_is_merged_before_it_is_saved_again(
    own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "_MANY", 2)
    monkeypatch.setattr(merging, "_TOO_MANY", 3)
    monkeypatch.setattr(merging, "_DELAY", 600.0)
    for turn in range(6):
        await _write(own_sandbox, f"f{turn}", 0.25)
        snapshot = await own_sandbox.snapshot()
        assert _depth(own_sandbox) == turn % 3 + 1
        await Sandbox.remove_snapshot(snapshot.id)
    assert await _whole(own_sandbox) == [f"f{turn}" for turn in range(6)]


@pytest.fixture
async def merging_now(
    own_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Sandbox]:
    """A sandbox whose layers are being merged, and will be for long; `base` was saved of it."""
    monkeypatch.setattr(merging, "_MANY", 0)
    monkeypatch.setattr(merging, "_DELAY", 0.0)
    monkeypatch.setattr(merging, "_SMALL", 1 << 40)
    monkeypatch.setattr(merging, "_SPEED", 2 * MIB)
    await _write(own_sandbox, "f0", 12)
    await own_sandbox.snapshot("base")
    await until(lambda: _is_copied(own_sandbox, 2))
    yield own_sandbox
    with contextlib.suppress(NovaError):
        await Sandbox.remove_snapshot("base")


def _is_copied(sandbox: Sandbox, mib: int) -> bool:
    """Whether some of the layers below lies in its own by now, and some does not."""
    return mib * MIB < _allocated(disk_of(registry.get(sandbox.id))) and _depth(sandbox) > 0


async def test_it_works_while_its_layers_are_merged(
    merging_now: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _text(merging_now, "dd if=/dev/urandom of=f0 bs=64k seek=100 count=8 conv=notrunc")
    await _text(merging_now, "sha256sum f0 >sums")
    assert await _whole(merging_now) == ["f0"]
    assert _depth(merging_now) == 1
    async with Sandbox.create(snapshot="base") as other:
        # It has what was saved, not what was written since.
        assert await _whole(other) == ["f0"]
    # What is shared is never written: the snapshot is what it was, also after the end.
    monkeypatch.setattr(merging, "_SPEED", 64 * MIB)
    await Sandbox.remove_snapshot((await merging_now.snapshot()).id)
    await _is_merged(merging_now)
    assert await _whole(merging_now) == ["f0"]
    async with Sandbox.create(snapshot="base") as other:
        assert await _whole(other) == ["f0"]


@pytest.mark.parametrize("verb", ["snapshot", "fork", "hibernate", "rollback", "pause"])
async def test_it_is_saved_while_its_layers_are_merged(merging_now: Sandbox, verb: str) -> None:
    await _write(merging_now, "f1", 1)
    if verb == "hibernate":
        await merging_now.hibernate()
        assert await _whole(merging_now) == ["f0", "f1"]
    elif verb == "fork":
        (child,) = await merging_now.fork()
        async with child:
            assert await _whole(child) == ["f0", "f1"]
    elif verb == "snapshot":
        await merging_now.snapshot("more")
        async with Sandbox.create(snapshot="more") as other:
            assert await _whole(other) == ["f0", "f1"]
        await Sandbox.remove_snapshot("more")
    elif verb == "rollback":
        await merging_now.rollback("base")
        assert await _whole(merging_now) == ["f0"]
        return
    else:
        await merging_now.pause()
        await merging_now.hibernate()
        awake = await Sandbox.wake(merging_now.id)
        await awake.resume()
        assert await _whole(awake) == ["f0", "f1"]
        await awake.kill()
        return
    assert await _whole(merging_now) == ["f0", "f1"]


async def test_a_vmm_killed_while_it_merges_harms_no_snapshot(merging_now: Sandbox) -> None:
    os.kill(_pid(merging_now), signal.SIGKILL)
    await until(lambda: merging_now.state is SandboxState.FAILED)
    async with Sandbox.create(snapshot="base") as again:
        assert await _whole(again) == ["f0"]


_OWNER = """
    from novasandbox.core import merging
    merging._MANY, merging._DELAY, merging._SMALL = 0, 0, 1 << 40
    merging._SPEED = 4 << 20
    sandbox = await Sandbox.create(timeout=600)
    async def write(name):
        await sandbox.exec(
            f"dd if=/dev/urandom of={name} bs=1M count=12 2>/dev/null;"
            f"sha256sum {name} >>sums; sync", check=True)
    await write("f0")
"""


async def test_an_owner_killed_while_it_merges_leaves_the_snapshot_and_nothing_else(
    own_home: Path, qemu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        _OWNER
        + """
    await sandbox.snapshot("left")
    print(sandbox.id, flush=True)
    await asyncio.sleep(60)
    """
    )
    async with elsewhere.started(body) as owner:
        assert owner.stdout is not None
        identity = (await owner.stdout.readline()).decode().strip()
        record = registry.get(identity)
        await until(lambda: _allocated(disk_of(record)) > 2 * MIB)
        owner.kill()
        await owner.wait()
    await until(lambda: all(map(is_gone, elsewhere.pids(record))), within=10)
    async with Sandbox.create(snapshot="left") as again:
        assert await _whole(again) == ["f0"]
    await Sandbox.remove_snapshot("left")
    monkeypatch.setattr(layers, "_YOUNG", 0.0)
    await clean()
    assert identity not in elsewhere.living(own_home)
    assert not list(layers_dir().iterdir())


async def test_an_owner_killed_while_it_merges_and_sleeps_leaves_it_as_it_was(
    own_home: Path, qemu: str
) -> None:
    """SIGKILL around the end of a merge, in a hibernation that calls it off."""
    for delay in (0.02, 0.12):
        body = (
            _OWNER
            + """
    await sandbox.hibernate()
    await write("f1")
    print(sandbox.id, flush=True)
    await sandbox.hibernate()
    await asyncio.sleep(60)
        """
        )
        async with elsewhere.started(body) as owner:
            assert owner.stdout is not None
            identity = (await owner.stdout.readline()).decode().strip()
            await asyncio.sleep(delay)
            owner.kill()
            await owner.wait()
        record = registry.get(identity)
        if record.state is SandboxState.HIBERNATED:
            sandbox = await Sandbox.connect(identity)
            assert await _whole(sandbox) == ["f0", "f1"]
            await sandbox.kill()
        else:
            await until(lambda rec=record: all(map(is_gone, elsewhere.pids(rec))), within=10)
            await asyncio.to_thread(registry.collect_leftovers)
        assert identity not in elsewhere.living(own_home)


async def test_a_keeper_killed_while_it_merges_is_followed_by_one_that_knows_the_disk(
    own_home: Path, qemu: str
) -> None:
    async with Sandbox.create(detach=True, timeout=600) as sandbox:
        for turn in range(2):
            await _write(sandbox, f"f{turn}", 16)
            (child,) = await sandbox.fork()
            await child.kill()
        assert _depth(sandbox) == 2
        await until(lambda: _is_copied(sandbox, 2))
        elsewhere.end_keeper(own_home, signal.SIGKILL)
        again = await Sandbox.connect(sandbox.id)
        assert await _whole(again) == ["f0", "f1"]
        (child,) = await again.fork()
        assert await _whole(child) == ["f0", "f1"]
        await child.kill()
        await again.hibernate()
        assert await _whole(again) == ["f0", "f1"]
        await again.kill()
    elsewhere.end_keeper(own_home)


async def test_a_snapshot_can_go_whose_layers_a_child_has_merged(
    qemu: str, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "_MANY", 0)
    async with Sandbox.create(timeout=600) as sandbox:
        await _write(sandbox, "f0", 2)
        await sandbox.snapshot("base")
    async with Sandbox.create(snapshot="base") as child:
        await _is_merged(child)
        # It is the snapshot's still, which starts others.
        async with Sandbox.create(snapshot="base") as other:
            assert await _whole(other) == ["f0"]
        await Sandbox.remove_snapshot("base")
        assert not list(layers_dir().iterdir())
        assert await _whole(child) == ["f0"]


async def test_a_merged_disk_is_full_where_it_was_full_before(
    qemu: str, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "_SMALL", 1 << 40)
    async with Sandbox.create(disk_mib=24, timeout=600) as sandbox:
        for turn in range(3):
            await _text(sandbox, "rm -f fill; dd if=/dev/urandom of=fill bs=64k; sync; true")
            await sandbox.hibernate()
            assert "No space left" in (await sandbox.exec("head -c 1M /dev/zero >more")).stderr
            if turn % 2:
                await _is_merged(sandbox)
        before = await _text(sandbox, "sha256sum fill")
        await _is_merged(sandbox)
        assert (await sandbox.exec("echo 3 >/proc/sys/vm/drop_caches", user="root")).ok
        assert await _text(sandbox, "sha256sum fill") == before
        assert _allocated(disk_of(registry.get(sandbox.id))) < 32 * MIB
        await _text(sandbox, "rm fill; echo room >more")
