"""Trees in and out: what is kept, what is refused, and what a hostile guest cannot touch."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from novasandbox import Sandbox
from novasandbox.errors import FileError

pytestmark = [pytest.mark.vm, pytest.mark.security]


@pytest.fixture
async def place(sandbox: Sandbox) -> str:
    """An empty folder in the guest."""
    await sandbox.exec("rm -rf /tmp/place; mkdir /tmp/place", user="root", check=True)
    await sandbox.exec("chown user /tmp/place", user="root", check=True)
    return "/tmp/place"


def _everything(folder: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """Mode and content of all that is below a folder, links not followed."""
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        content: bytes | str | None = None
        if stat.S_ISLNK(mode):
            content = os.readlink(path)
        elif stat.S_ISREG(mode):
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (mode, content)
    return found


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that nothing may touch, beside the target."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("untouched")
    (folder / "sub").mkdir()
    return folder


async def test_a_tree_comes_back_as_it_went(sandbox: Sandbox, place: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a/b").mkdir(parents=True)
    (source / "empty").mkdir(mode=0o750)
    (source / "a/run.sh").write_text("#!/bin/sh\necho ran\n")
    (source / "a/run.sh").chmod(0o755)
    (source / "a/b/secret").write_bytes(bytes(range(256)) * 300)
    (source / "a/b/secret").chmod(0o600)
    (source / "link").symlink_to("a/run.sh")
    (source / "to-folder").symlink_to("a")
    (source / "a/b/up").symlink_to("../run.sh")
    (source / "dead").symlink_to("nowhere")
    (source / "odd \N{GRINNING FACE}\n'name").write_text("odd")
    (source / "locked").mkdir()
    (source / "locked/file").write_text("kept")
    (source / "locked").chmod(0o555)
    before = _everything(source)
    assert await sandbox.upload(source, f"{place}/tree") == []
    (dead,) = [each for each in await sandbox.files.list(f"{place}/tree") if each.name == "dead"]
    assert (dead.kind, dead.target) == ("link", "nowhere")
    assert (await sandbox.exec("cat dead", cwd=f"{place}/tree")).exit_code == 1
    assert await sandbox.download(f"{place}/tree", tmp_path / "back") == []
    assert _everything(tmp_path / "back") == before


async def test_what_cannot_be_uploaded_is_named(
    sandbox: Sandbox, place: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "pipe")
    (source / "file").write_text("fine")
    (refused,) = await sandbox.upload(source, f"{place}/tree")
    assert refused.path == "pipe"
    assert await sandbox.files.read(f"{place}/tree/file") == b"fine"
    with pytest.raises(FileNotFoundError):
        await sandbox.upload(tmp_path / "missing", place)
    with pytest.raises(FileError):
        await sandbox.download(f"{place}/missing", tmp_path / "x")


async def test_one_file_goes_where_it_is_told(sandbox: Sandbox, place: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    await sandbox.upload(tmp_path / "one", place)
    await sandbox.upload(tmp_path / "one", f"{place}/two")
    assert [each.name for each in await sandbox.files.list(place)] == ["one", "two"]
    (tmp_path / "into").mkdir()
    await sandbox.download(f"{place}/one", tmp_path / "into")
    await sandbox.download(f"{place}/one", tmp_path / "three")
    assert (tmp_path / "into/one").read_text() == (tmp_path / "three").read_text() == "1"


async def test_links_that_lead_outside_are_refused_and_harmless_ones_kept(
    sandbox: Sandbox, place: str, tmp_path: Path, outside: Path
) -> None:
    harmless = {"here": "sub/file", "self": ".", "dead": "nowhere", "d/in": "../sub"}
    hostile = {
        "absolute": "/etc",
        "etc": "/etc/passwd",
        "above": "../outside",
        "deep": "sub/../../outside/file",
        "d/above": "../../outside",
        "through": "d/../../outside",
        "dots": "./.././../outside",
    }
    await sandbox.exec("mkdir -p sub d; echo x > sub/file", cwd=place, check=True)
    for name, target in {**harmless, **hostile}.items():
        await sandbox.files.symlink(f"{place}/{name}", target)
    before = _everything(outside)
    refused = await sandbox.download(place, tmp_path / "target")
    assert {each.path for each in refused} == set(hostile)
    for name, target in harmless.items():
        assert os.readlink(tmp_path / "target" / name) == target
    for name in hostile:
        assert not os.path.lexists(tmp_path / "target" / name)
    assert _everything(outside) == before
    # Again into what is there now, whose links the guest chose.
    assert len(await sandbox.download(place, tmp_path / "target")) == len(hostile)
    assert _everything(outside) == before


async def test_devices_pipes_and_sockets_are_refused(
    sandbox: Sandbox, place: str, tmp_path: Path
) -> None:
    make = (
        "mkfifo pipe; mknod null c 1 3; mknod disk b 254 0; echo x > file;"
        "python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('sock')\""
    )
    await sandbox.exec(make, cwd=place, user="root", check=True)
    refused = await sandbox.download(place, tmp_path / "target")
    assert {each.path for each in refused} == {"pipe", "null", "disk", "sock"}
    assert os.listdir(tmp_path / "target") == ["file"]


async def test_set_id_bits_do_not_come_along(sandbox: Sandbox, place: str, tmp_path: Path) -> None:
    make = "cp /bin/true suid; chmod 6755 suid; mkdir d; chmod 3777 d; chmod 7777 ."
    await sandbox.exec(make, cwd=place, user="root", check=True)
    assert await sandbox.download(place, tmp_path / "target") == []
    assert stat.S_IMODE((tmp_path / "target/suid").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "target/d").stat().st_mode) == 0o777
    await sandbox.download(f"{place}/suid", tmp_path / "single")
    assert stat.S_IMODE((tmp_path / "single").stat().st_mode) == 0o755


async def test_links_that_lie_in_the_target_are_not_followed(
    sandbox: Sandbox, place: str, tmp_path: Path, outside: Path
) -> None:
    make = "mkdir sub; echo evil > sub/file; echo evil > file; ln -s x link"
    await sandbox.exec(make, cwd=place, check=True)
    target = tmp_path / "target"
    target.mkdir()
    (target / "sub").symlink_to(outside)
    (target / "file").symlink_to(outside / "file")
    (target / "link").symlink_to(outside / "file")
    before = _everything(outside)
    (refused,) = await sandbox.download(place, target)
    assert refused.path == "sub"
    assert _everything(outside) == before
    assert not (target / "file").is_symlink()
    assert (target / "file").read_text() == "evil\n"
    assert os.readlink(target / "link") == "x"


async def test_a_folder_swapped_for_a_link_meanwhile_gives_nothing_of_the_hosts(
    sandbox: Sandbox, place: str, tmp_path: Path, outside: Path
) -> None:
    swap = (
        f"mkdir -p real; echo guest > real/file; ln -s {outside} trap; mkdir dirs;"
        "for i in $(seq 20); do cp -r real dirs/d$i; done; echo ready;"
        "while :; do for i in $(seq 20); do"
        "  rm -rf dirs/d$i; cp -P trap dirs/d$i; rm -f dirs/d$i; cp -r real dirs/d$i;"
        "done; done"
    )
    process = await sandbox.start(swap, cwd=place)
    async for output in process:
        assert output.text == "ready\n"
        break
    before = _everything(outside)
    for number in range(3):
        await sandbox.download(f"{place}/dirs", tmp_path / f"target{number}")
        await sandbox.download(f"{place}/dirs", tmp_path / "target0")
    await process.kill()
    await process.wait()
    assert _everything(outside) == before
    for path in tmp_path.glob("target*/**/*"):
        assert not path.is_symlink()
        assert path.is_dir() or path.read_text() in ("guest\n", "")


async def test_folders_three_hundred_deep_are_cut_off_and_named(
    sandbox: Sandbox, place: str, tmp_path: Path
) -> None:
    make = "mkdir -p $(printf 'd/%.0s' $(seq 300)); echo x > z; echo x > d/z"
    await sandbox.exec(make, cwd=place, check=True)
    (refused,) = await sandbox.download(place, tmp_path / "target")
    assert "deep" in refused.why
    assert (tmp_path / "target/z").read_text() == "x\n"
    assert (tmp_path / "target/d/z").read_text() == "x\n"


async def test_a_cancelled_download_leaves_no_half_file(
    sandbox: Sandbox, place: str, tmp_path: Path
) -> None:
    await sandbox.exec("head -c 20000000 /dev/zero > big", cwd=place, check=True)
    target = tmp_path / "target"
    running = asyncio.create_task(sandbox.download(place, target))
    while not (target.is_dir() and os.listdir(target)):
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert os.listdir(target) == []


async def test_what_may_not_be_read_is_named_and_the_rest_comes(
    sandbox: Sandbox, place: str, tmp_path: Path
) -> None:
    make = (
        "echo x > open; mkdir shut; echo x > shut/f; echo x > hidden;"
        "chmod 700 shut; chmod 600 hidden"
    )
    await sandbox.exec(make, cwd=place, user="root", check=True)
    refused = await sandbox.download(place, tmp_path / "target")
    assert {each.path for each in refused} == {"shut", "hidden"}
    assert (tmp_path / "target/open").read_text() == "x\n"
