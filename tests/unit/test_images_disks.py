"""Images and layers: owners without root, sizes, and headers that QEMU accepts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from novasandbox.errors import InvalidConfig, TemplateBuildFailed
from novasandbox.images import ext4, scratch
from novasandbox.images.store import Store
from novasandbox.images.unpack import Tree, prepare
from support.tools import check_filesystem, debugfs

if TYPE_CHECKING:
    from pathlib import Path

EPOCH = 1_700_000_000


def tree_in(folder: Path) -> Tree:
    tree = Tree(folder / "tree")
    prepare(tree, "x86_64")
    tree.write("etc/motd", "hello\n")
    tree.write("bin/tool", "#!", 0o4755)
    tree.write("home/user/a b", "mine")
    for name in ("home/user", "home/user/a b"):
        tree.owners[name] = (1000, 1000)
    tree.owners["bin/tool"] = (0, 70_000)
    tree.owners["not/there"] = (5, 5)
    for name in ("etc/motd", "home/user/a b"):
        os.utime(tree.path(name), (1_600_000_000, 1_600_000_000))
    return tree


async def image_in(folder: Path) -> Path:
    folder.mkdir()
    await ext4.make_from_tree(tree_in(folder), folder / "image", label="root", epoch=EPOCH)
    return folder / "image"


async def test_an_image_has_the_guests_owners_whoever_made_it(tmp_path: Path) -> None:
    image = await image_in(tmp_path / "a")
    check_filesystem(image)
    assert "User:     0   Group:     0" in debugfs(image, "stat /etc/motd")
    assert "User:  1000   Group:  1000" in debugfs(image, "stat /home/user")
    assert "User:  1000   Group:  1000" in debugfs(image, 'stat "/home/user/a b"')
    tool = debugfs(image, "stat /usr/bin/tool")
    assert "Group: 70000" in tool
    assert "Mode:  04755" in tool
    assert debugfs(image, "cat /etc/motd") == "hello\n"


async def test_times_come_from_packages_or_are_one_and_the_same(tmp_path: Path) -> None:
    image = await image_in(tmp_path / "a")
    for name, time in (("/etc/motd", "5f5e1000"), ('"/home/user/a b"', "5f5e1000")):
        assert f"mtime: 0x{time}" in debugfs(image, f"stat {name}")
    for name in ("/etc", "/home/user", "/usr/bin/tool"):
        assert "mtime: 0x6553f100" in debugfs(image, f"stat {name}")
        assert "ctime: 0x6553f100" in debugfs(image, f"stat {name}")


async def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    first = (await image_in(tmp_path / "a")).read_bytes()
    assert (await image_in(tmp_path / "b")).read_bytes() == first


async def test_without_mke2fs_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(ext4, "_SBIN", ())
    with pytest.raises(TemplateBuildFailed, match="apt-get install e2fsprogs"):
        await ext4.make_empty(tmp_path / "image", 16 << 20, label="x", epoch=EPOCH)


async def test_a_failure_of_mke2fs_carries_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(TemplateBuildFailed) as error:
        await ext4.make_empty(tmp_path / "no" / "image", 16 << 20, label="x", epoch=EPOCH)
    assert "No such file" in error.value.log


# --- a sandbox's own disk ---


async def test_an_empty_disk_is_made_once_and_takes_next_to_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = await scratch.obtain(store, 2048)
    assert await scratch.obtain(store, 2048) == first
    status = (first.path / scratch.IMAGE).stat()
    assert status.st_size == 2048 << 20
    assert status.st_blocks * 512 < 1 << 20
    check_filesystem(first.path / scratch.IMAGE)


@pytest.mark.parametrize("size", [0, 15, -1, 1 << 40])
async def test_a_size_that_cannot_be_had_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(InvalidConfig, match="16 to 4194304 MiB"):
        await scratch.obtain(Store(tmp_path), size)
