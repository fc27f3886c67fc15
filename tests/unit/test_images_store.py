"""The store: artifacts whole or not at all, damage found, builders at once, disks full."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from novasandbox.errors import HostResourceExhausted
from novasandbox.images import manifest
from novasandbox.images.shelf import NotStored, Shelf
from novasandbox.images.store import Artifact, Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

WANTED = {"what": "a test"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


class Builder:
    """Builds an artifact of two files, and counts how often."""

    def __init__(self, content: str = "content") -> None:
        self.times = 0
        self._content = content

    async def __call__(self, folder: Path) -> None:
        self.times += 1
        (folder / "file").write_text(self._content)
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("more")


def failing(error: BaseException) -> Callable[[Path], Awaitable[None]]:
    async def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise error

    return build


def temporary(store: Store) -> list[str]:
    return [path.name for path in (store.root / "tmp").iterdir()]


async def test_an_artifact_is_built_once_and_is_read_only(store: Store) -> None:
    build = Builder()
    first = await store.obtain("thing", WANTED, build)
    assert await store.obtain("thing", WANTED, build) == first
    assert build.times == 1
    assert (first.path / "file").read_text() == "content"
    assert {path.stat().st_mode & 0o777 for path in first.path.rglob("*") if path.is_file()} == {
        0o444
    }
    assert temporary(store) == []


async def test_what_it_is_made_from_makes_the_key(store: Store) -> None:
    one = await store.obtain("thing", {"a": 1, "b": 2}, Builder())
    same = await store.obtain("thing", {"b": 2, "a": 1}, Builder())
    other = await store.obtain("thing", {"a": 1, "b": 3}, Builder())
    assert one.key == same.key != other.key


@pytest.mark.parametrize("error", [RuntimeError("no"), asyncio.CancelledError()])
async def test_a_build_that_fails_leaves_nothing(store: Store, error: BaseException) -> None:
    with pytest.raises(type(error)):
        await store.obtain("thing", WANTED, failing(error))
    assert store.keys() == temporary(store) == []


async def test_a_full_disk_is_an_error_that_names_folder_and_bytes(store: Store) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(HostResourceExhausted, match=r"about 12,345 bytes") as error:
        await store.obtain("thing", WANTED, failing(full), needed=12_345)
    assert str(store.root) in str(error.value)
    assert store.keys() == temporary(store) == []


async def test_what_cannot_fit_is_not_begun(store: Store) -> None:
    build = Builder()
    with pytest.raises(HostResourceExhausted, match="are free"):
        await store.obtain("thing", WANTED, build, needed=1 << 60)
    assert build.times == 0


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
async def test_a_disk_that_fills_up_during_a_build_is_left_as_it_was(store: Store) -> None:
    async def build(folder: Path) -> None:
        (folder / "begun").write_bytes(bytes(4096))
        # Every write to it ends as one to a full disk does, and no disk has to be mounted.
        (folder / "file").symlink_to("/dev/full")
        (folder / "file").write_bytes(bytes(8 << 20))

    with pytest.raises(HostResourceExhausted, match="No room to make the thing") as caught:
        await store.obtain("thing", WANTED, build)
    assert str(store.root) in str(caught.value)
    assert store.keys() == temporary(store) == []


# --- damage ---


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    path.chmod(0o644)
    path.write_text(change(path.read_text()))


async def damaged(store: Store, how: Callable[[Path], Any]) -> tuple[Artifact, Builder]:
    build = Builder()
    path = (await store.obtain("thing", WANTED, build)).path / "file"
    path.chmod(0o644)
    how(path)
    return await store.obtain("thing", WANTED, build), build


@pytest.mark.parametrize(
    "how",
    [
        lambda path: path.write_text("CONTENT"),
        lambda path: path.write_text(""),
        lambda path: path.unlink(),
        lambda path: (path.parent / "manifest.json").unlink(),
        lambda path: _rewrite(path.parent / "manifest.json", lambda _: "{"),
        lambda path: _rewrite(
            path.parent / "manifest.json", lambda text: text.replace('"hash"', '"sha256"')
        ),
    ],
)
async def test_damage_is_found_and_mended_before_use(
    store: Store, how: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    artifact, build = await damaged(store, how)
    assert build.times == 2
    assert (artifact.path / "file").read_text() == "content"
    assert "damaged" in caplog.text
    assert temporary(store) == []


async def test_a_touched_but_whole_artifact_is_kept_and_not_hashed_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, build = await damaged(store, lambda path: os.utime(path, (1, 1)))
    assert build.times == 1
    monkeypatch.setattr(manifest, "content_hash", lambda *_: pytest.fail("it was hashed"))
    assert store.find(artifact.key)


async def test_damage_behind_the_stamps_back_is_found_by_a_thorough_look(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = await store.obtain("thing", WANTED, Builder())
    monkeypatch.setattr(manifest, "content_hash", lambda *_: "0" * 64)
    assert store.find(artifact.key)
    assert store.find(artifact.key, thorough=True) is None


@pytest.mark.parametrize("lack", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_what_this_process_lacks_is_no_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch, lack: int
) -> None:
    artifact = await store.obtain("thing", WANTED, Builder())

    def lacking(*_: object, **__: object) -> bytes:
        raise OSError(lack, os.strerror(lack))

    for way in ("read_bytes", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, way, lacking)
            if way == "open":
                os.utime(artifact.path / "file")
            with pytest.raises(OSError, match=os.strerror(lack)):
                store.find(artifact.key)
    assert store.find(artifact.key) == artifact


def test_a_holes_hash_is_that_of_zeros(tmp_path: Path) -> None:
    hole, zeros, other = (tmp_path / name for name in ("hole", "zeros", "other"))
    for path, middle in ((hole, None), (zeros, bytes(300_000)), (other, b"\1" + bytes(299_999))):
        with path.open("wb") as stream:
            stream.write(b"begin")
            if middle:
                stream.write(middle)
            else:
                stream.truncate(300_005)
    assert manifest.content_hash(hole) == manifest.content_hash(zeros)
    assert manifest.content_hash(hole) != manifest.content_hash(other)


# --- several at once ---


async def test_of_two_builders_one_builds_and_the_other_waits_and_says_so(store: Store) -> None:
    go, build, told = asyncio.Event(), Builder(), list[str]()

    async def slow(folder: Path) -> None:
        await go.wait()
        await build(folder)

    first = asyncio.create_task(store.obtain("thing", WANTED, slow))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(
        Store(store.root.parent).obtain(
            "thing", WANTED, slow, progress=lambda step, *_: told.append(step)
        )
    )
    while not told:
        await asyncio.sleep(0.01)
    go.set()
    assert await first == await second
    assert build.times == 1
    assert told == ["waiting for another build of the thing"] * 2


async def test_a_waiter_can_be_cancelled_and_the_builder_goes_on(store: Store) -> None:
    go = asyncio.Event()

    async def slow(folder: Path) -> None:
        await go.wait()
        (folder / "file").write_text("x")

    first = asyncio.create_task(store.obtain("thing", WANTED, slow))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(store.obtain("thing", WANTED, slow))
    await asyncio.sleep(0.1)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    go.set()
    assert (await first).path.is_dir()


_HANGING_BUILD = """
import asyncio, sys
from pathlib import Path
from novasandbox.images.store import Store

async def build(folder):
    (folder / "half").write_text("half")
    print("ready", flush=True)
    await asyncio.sleep(60)

asyncio.run(Store(Path(sys.argv[1])).obtain("thing", {"version": 1}, build))
"""


async def test_what_a_killed_build_left_is_collected_by_the_next(store: Store) -> None:
    command = [sys.executable, "-c", _HANGING_BUILD, str(store.root.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        store.collect()
        assert len(temporary(store)) == 1, "a living build was disturbed"
        other.kill()
    await store.obtain("thing", WANTED, Builder())
    assert temporary(store) == []


# --- remembering, holding, pruning ---


async def test_inputs_are_resolved_once_and_again_when_asked(store: Store) -> None:
    times = 0

    async def make() -> Artifact:
        nonlocal times
        times += 1
        return await store.obtain("thing", {"version": times}, Builder())

    first = await store.recall({"kind": "thing"}, make)
    assert await store.recall({"kind": "thing"}, make) == first
    assert times == 1
    newer = await store.recall({"kind": "thing"}, make, fresh=True)
    assert newer.made_from == {"version": 2}
    assert await store.recall({"kind": "thing"}, make) == newer


async def test_a_shelf_gives_what_is_there_and_builds_nothing(store: Store) -> None:
    shelf = Shelf(store.root.parent)
    build = Builder()
    with pytest.raises(NotStored):
        await shelf.obtain("thing", WANTED, build)
    made = await store.obtain("thing", WANTED, build)
    assert await shelf.obtain("thing", WANTED, build) == made
    assert build.times == 1


async def test_a_held_artifact_and_its_parts_survive_a_prune(store: Store) -> None:
    part = await store.obtain("part", {}, Builder())
    whole = await store.obtain("whole", {"parts": [part.key]}, Builder())
    other = await store.obtain("other", {}, Builder())
    with store.hold(whole.key) as hold:
        os.fstat(hold.fileno())
        assert not store.remove(whole.key)
        assert set(await store.prune()) == {other.key}
    assert set(await store.prune()) == {part.key, whole.key}
    assert temporary(store) == []


async def test_a_hold_lives_in_a_child_that_inherited_it(store: Store) -> None:
    artifact = await store.obtain("thing", WANTED, Builder())
    hold = store.hold(artifact.key)
    child = subprocess.Popen(["sleep", "60"], pass_fds=[hold.fileno()])
    hold.close()
    try:
        assert await store.prune() == {}
    finally:
        child.kill()
        child.wait()
    assert set(await store.prune()) == {artifact.key}


async def test_what_is_kept_by_name_and_empty_disks_survive_a_prune(store: Store) -> None:
    kept = await store.obtain("thing", WANTED, Builder())
    disk = await store.obtain("scratch", WANTED, Builder())
    assert await store.prune([kept.key]) == {}
    assert set(await store.prune()) == {kept.key}
    assert store.keys() == [disk.key]


async def test_what_is_gone_cannot_be_held(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.hold("thing-" + "0" * 32)


async def test_an_older_format_is_not_read_and_goes_with_a_prune(store: Store) -> None:
    old = store.root.parent / "v0" / "objects" / store.key("thing", WANTED)
    old.mkdir(parents=True)
    (old / "file").write_text("old")
    artifact = await store.obtain("thing", WANTED, Builder())
    assert (artifact.path / "file").read_text() == "content"
    assert "v0" in await store.prune([artifact.key])
    assert not old.exists()
