"""ext4 images made by mke2fs without root, the same tree giving the same owners and times."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import shutil
import struct
from typing import TYPE_CHECKING

from novasandbox.errors import TemplateBuildFailed
from novasandbox.images.work import run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from novasandbox.images.unpack import Tree

# All features by name: the defaults in mke2fs.conf differ from one distribution to the next.
# No journal and no checksums: nobody writes to a template's root, and both cost boot time.
_FEATURES = "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file"
_FEATURES += ",dir_nlink,extra_isize"
_UUID = "6e6f7661-7361-6e64-626f-780000000000"
_BLOCK = 4096
_INODE = 256
_SUPERBLOCK = 1024
_SBIN = ("/usr/sbin", "/sbin", "/opt/homebrew/opt/e2fsprogs/sbin", "/usr/local/opt/e2fsprogs/sbin")


async def make_from_tree(tree: Tree, target: Path, *, label: str, epoch: int) -> None:
    """Write a tree as an image that is just large enough.

    epoch: the time of creation that the image carries, in seconds.

    Raises TemplateBuildFailed with what mke2fs said, OSError where the disk is full.
    """
    blocks, inodes = await asyncio.to_thread(_measure, tree.root)
    marks = await asyncio.to_thread(_mark, tree, epoch)
    size = (blocks + blocks // 50 + inodes * _INODE // _BLOCK + 1024) * _BLOCK
    extra = ["-d", str(tree.root), "-N", str(inodes + 64)]
    await _format(target, size, label, epoch, _FEATURES, extra)
    await asyncio.to_thread(_set_owners, target, marks)


async def make_empty(target: Path, size: int, *, label: str, epoch: int) -> None:
    """Make an empty image of `size` bytes that takes next to none of them.

    Inode tables and bitmaps stay unwritten (`uninit_bg`), since a hole reads as zeros. For
    the same reason the guest's kernel need not clear them in the background, and is told so
    by a mount option in the superblock.

    Raises TemplateBuildFailed, OSError.
    """
    await _format(target, size, label, epoch, f"{_FEATURES},uninit_bg")
    with target.open("r+b") as stream:
        stream.seek(_SUPERBLOCK + 0x200)  # s_mount_opts
        stream.write(b"noinit_itable\0")


async def _format(
    target: Path, size: int, label: str, epoch: int, features: str, extra: Sequence[str] = ()
) -> None:
    await _run_mke2fs(
        [
            *("-q", "-F", "-t", "ext4", "-O", features, "-b", str(_BLOCK), "-I", str(_INODE)),
            *("-m", "0", "-L", label, "-U", _UUID),
            *("-E", f"root_owner=0:0,hash_seed={_UUID},nodiscard,lazy_itable_init=1"),
            *extra,
            *(str(target), f"{size // 1024}k"),
        ],
        target,
        epoch,
    )


async def _run_mke2fs(arguments: Sequence[str], target: Path, epoch: int) -> None:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "SOURCE_DATE_EPOCH": str(epoch),
        "E2FSPROGS_FAKE_TIME": str(epoch),
        "MKE2FS_CONFIG": os.devnull,
    }
    ended = await run([find_mke2fs(), *arguments], environment)
    if ended.status:
        if "No space left" in ended.output or "Disk quota" in ended.output:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        raise TemplateBuildFailed(
            f"mke2fs cannot make {target.name}",
            step="making the image",
            log=ended.output[-2000:],
            why=f"it ended with status {ended.status}",
        )


def find_mke2fs() -> str:
    """The path of mke2fs. Raises TemplateBuildFailed where it is missing."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN))
    found = shutil.which("mke2fs", path=path)
    if found is None:
        raise TemplateBuildFailed(
            "mke2fs is missing",
            step="making the image",
            fix="Debian, Ubuntu: apt-get install e2fsprogs. macOS: brew install e2fsprogs",
        )
    return found


def _measure(root: Path) -> tuple[int, int]:
    """Blocks and inodes that a tree takes in the image, rounded up."""
    blocks, inodes = 0, 1
    for folder, folders, names in os.walk(root):
        inodes += len(folders) + len(names)
        blocks += 1 + (len(folders) + len(names)) // 64
        for name in names:
            status = os.lstat(os.path.join(folder, name))
            blocks += -(-status.st_size // _BLOCK)
    return blocks, inodes


def _mark(tree: Tree, epoch: int) -> dict[int, tuple[int, int, int]]:
    """Give every path with an owner of its own a time of its own, to find its inode by.

    mke2fs copies times but cannot be told an owner by path. The times are seconds 1, 2, 3 …
    of the epoch, which no file has; the true time comes back: owner, group and time by mark.
    What was made by this build, not by a package, gets the one time `epoch`.
    """
    marks: dict[int, tuple[int, int, int]] = {}
    for folder, folders, names in os.walk(tree.root):
        for name in (*folders, *names):
            path = os.path.join(folder, name)
            mtime = os.lstat(path).st_mtime
            if mtime >= tree.begun or 0 < mtime <= len(tree.owners) + 1:
                os.utime(path, (epoch, epoch), follow_symlinks=False)
    for number, (name, (uid, gid)) in enumerate(sorted(tree.owners.items()), 1):
        path = os.path.join(tree.root, name)
        if os.path.lexists(path):
            marks[number] = (uid, gid, int(os.lstat(path).st_mtime))
            os.utime(path, (number, number), follow_symlinks=False)
    return marks


def _set_owners(image: Path, marks: dict[int, tuple[int, int, int]]) -> None:
    """Set every inode's owner to root or its mark's, and its other times to that of its content."""
    with image.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as disk:
        inodes, per_group = _number(disk, _SUPERBLOCK), _number(disk, _SUPERBLOCK + 40)
        for group in range(-(-inodes // per_group)):
            table = _number(disk, _BLOCK + 32 * group + 8) * _BLOCK
            for index in range(min(per_group, inodes - group * per_group)):
                at = table + index * _INODE
                mode, links = disk[at : at + 2], disk[at + 26 : at + 28]
                if mode == b"\0\0" or links == b"\0\0":
                    continue
                mtime = _number(disk, at + 16)
                uid, gid, mtime = marks.get(mtime, (0, 0, mtime))
                struct.pack_into("<H", disk, at + 2, uid & 0xFFFF)
                struct.pack_into("<III", disk, at + 8, mtime, mtime, mtime)
                struct.pack_into("<H", disk, at + 24, gid & 0xFFFF)
                struct.pack_into("<HH", disk, at + 120, uid >> 16, gid >> 16)
                # The second halves: ctime, mtime, atime; then the time of creation.
                struct.pack_into("<IIIII", disk, at + 132, 0, 0, 0, mtime, 0)
        disk.flush()


def _number(disk: mmap.mmap, at: int) -> int:
    return int(struct.unpack_from("<I", disk, at)[0])
