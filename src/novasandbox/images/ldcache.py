"""The dynamic loader's cache of a tree, written without running the tree's own ldconfig.

ldconfig would need root (chroot) and the guest's architecture. The format is glibc's
`cache_file_new` (sysdeps/generic/dl-cache.h): a sorted table of names and paths.
"""

from __future__ import annotations

import os
import re
import struct
from typing import TYPE_CHECKING

from novasandbox.images import elf

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from novasandbox.images.unpack import Tree

_TRIPLETS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
# FLAG_ELF_LIBC6 with FLAG_X8664_LIB64 or FLAG_AARCH64_LIB64
_FLAGS = {"x86_64": 0x0303, "aarch64": 0x0A03}
_HEADER = struct.Struct("<17s3sIIB3xI12x")
_ENTRY = struct.Struct("<IIIIQ")
_LITTLE_ENDIAN = 2
_LIBRARY = re.compile(r"(lib|ld-).*\.so(\..*)?")


def write(tree: Tree, arch: str) -> None:
    """Write /etc/ld.so.cache, and the links that ldconfig makes from a library's own name."""
    found: dict[str, str] = {}
    for folder in _folders(tree, arch):
        for name, path in _libraries(tree, folder, arch):
            found.setdefault(name, path)
    tree.path("etc/ld.so.cache").write_bytes(encode(found, arch))


def encode(libraries: dict[str, str], arch: str) -> bytes:
    """The cache for libraries: path by name."""
    names = sorted(libraries, key=_order, reverse=True)
    strings = bytearray()
    start = _HEADER.size + _ENTRY.size * len(names)
    entries = bytearray()
    for name in names:
        key = start + len(strings)
        strings += name.encode() + b"\0"
        value = start + len(strings)
        strings += libraries[name].encode() + b"\0"
        entries += _ENTRY.pack(_FLAGS[arch], key, value, 0, 0)
    head = _HEADER.pack(b"glibc-ld.so.cache", b"1.1", len(names), len(strings), _LITTLE_ENDIAN, 0)
    return head + bytes(entries) + bytes(strings)


def _folders(tree: Tree, arch: str) -> list[str]:
    """The folders of /etc/ld.so.conf, then those that the loader knows by itself."""
    texts = [tree.path("etc/ld.so.conf"), *sorted(tree.folder("etc/ld.so.conf.d").glob("*.conf"))]
    named = [
        line.strip().strip("/")
        for path in texts
        if path.is_file()
        for line in path.read_text().splitlines()
        if line.startswith("/")
    ]
    triplet = _TRIPLETS[arch]
    usual = [f"lib/{triplet}", f"usr/lib/{triplet}", "lib", "usr/lib"]
    return list(dict.fromkeys([*named, *usual]))


def _libraries(tree: Tree, folder: str, arch: str) -> Iterator[tuple[str, str]]:
    where = tree.path(folder)
    if not where.is_dir():
        return
    for path in sorted(where.iterdir()):
        if not _LIBRARY.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        name = _soname(path, arch)
        if name is not None and "/" not in name:
            # A link of the tree's may lead to what only the guest has there.
            if not os.path.lexists(where / name):
                (where / name).symlink_to(path.name)
            yield name, f"/{folder}/{name}"


def _soname(path: Path, arch: str) -> str | None:
    try:
        data = path.read_bytes()
        return elf.soname(data) if elf.machine(data) == elf.MACHINES[arch] else None
    except (OSError, elf.NotElf):
        return None


def _order(name: str) -> list[tuple[int, int]]:
    """glibc's `_dl_cache_libcmp`: runs of digits count as numbers, and after all else."""
    return [
        (1, int(match[1])) if match[1] else (0, ord(match[2]))
        for match in re.finditer(r"([0-9]+)|(.)", name, re.DOTALL)
    ]
