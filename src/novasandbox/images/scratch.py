"""A sandbox's own disk: an empty file system made once a size, and layers over it.

The guest's writes go to a qcow2 layer of the sandbox's own. Its file takes some 200 bytes
when it is new and is written by hand, since starting qemu-img takes longer than a fork
of a whole machine.
"""

from __future__ import annotations

import asyncio
import os
import struct
from typing import TYPE_CHECKING

from novasandbox.errors import InvalidConfig
from novasandbox.images import ext4

if TYPE_CHECKING:
    from pathlib import Path

    from novasandbox.images.store import Artifact, Store

IMAGE = "scratch.ext4"
MINIMUM_MIB = 16
MAXIMUM_MIB = 1 << 22
_REVISION = 1
_EPOCH = 1_700_000_000

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_BACKING_FORMAT = 0xE2792ACA


async def obtain(store: Store, disk_mib: int) -> Artifact:
    """The empty ext4 image of a size; sparse, it takes a few MiB.

    Raises InvalidConfig where the size cannot be had, TemplateBuildFailed,
    HostResourceExhausted.
    """
    if not MINIMUM_MIB <= disk_mib <= MAXIMUM_MIB:
        raise InvalidConfig(
            f"disk_mib={disk_mib} cannot be had",
            why=f"a disk has {MINIMUM_MIB} to {MAXIMUM_MIB} MiB",
        )

    async def build(folder: Path) -> None:
        await ext4.make_empty(folder / IMAGE, disk_mib << 20, label="scratch", epoch=_EPOCH)

    made_from = {"revision": _REVISION, "mib": disk_mib}
    return await store.obtain("scratch", made_from, build, needed=8 << 20)


def scratch_image(disk_mib: int) -> Path:
    """The same from the data directory's store, for callers without a loop (a thread)."""
    from novasandbox.images.store import Store

    return asyncio.run(obtain(Store(), disk_mib)).path / IMAGE


def write_overlay(target: Path | int, size: int, backing: Path | None = None) -> None:
    """Write an empty qcow2 layer.

    target: a path, where a file must not be yet (it gets mode 0600), or the descriptor of
        an empty file.
    size: bytes of the disk: those of the image below, or more.
    backing: the raw image below, named in the header; None where the hypervisor is told
        of it in another way.

    Raises OSError.
    """
    content = _layer(size, backing)
    if isinstance(target, int):
        _write(target, content)
        return
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _write(descriptor, content)
    finally:
        os.close(descriptor)


def _layer(size: int, backing: Path | None) -> dict[int, bytes]:
    """The parts of the file, by offset: header, refcount table, refcount block; then the L1.

    See docs/interop/qcow2.txt in QEMU. The L1 table is zeros, a hole: no cluster is there.
    """
    entries = -(-size // (_CLUSTER * _CLUSTER // 8))  # an L1 entry maps 512 MiB
    l1_clusters = -(-entries * 8 // _CLUSTER)
    name = os.fsencode(backing) if backing else b""
    raw = struct.pack(">II8s", _BACKING_FORMAT, 3, b"raw") if name else b""
    extensions = raw + bytes(8)
    start = _HEADER.size + len(extensions)
    if len(name) > 1023:
        raise OSError(f"the name of the image below is too long: {len(name)} bytes")
    header = _HEADER.pack(
        b"QFI\xfb",
        3,
        start if name else 0,
        len(name),
        _CLUSTER_BITS,
        size,
        0,  # not encrypted
        entries,
        3 * _CLUSTER,  # the L1 table
        1 * _CLUSTER,  # the refcount table
        1,
        *(0, 0),  # no snapshots
        *(0, 0, 0),  # no feature bits
        4,  # 16-bit refcounts
        _HEADER.size,
    )
    return {
        0: header + extensions + name,
        _CLUSTER: struct.pack(">Q", 2 * _CLUSTER),
        2 * _CLUSTER: struct.pack(">H", 1) * (3 + l1_clusters),
        (3 + l1_clusters) * _CLUSTER: b"",
    }


def _write(descriptor: int, content: dict[int, bytes]) -> None:
    os.ftruncate(descriptor, max(content))
    for offset, part in content.items():
        os.pwrite(descriptor, part, offset)
