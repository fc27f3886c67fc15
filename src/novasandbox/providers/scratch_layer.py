"""A machine's own disk: an empty qcow2 layer over a shared, formatted image.

Written by hand, since starting qemu-img costs more than the rest of a copy. The layout is
that of qemu's docs/interop/qcow2.rst, version 3.
"""

from __future__ import annotations

import os
import struct

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_HEADER_SIZE = 104
_REFCOUNT_ORDER = 4  # 16 bits a cluster


def write_empty_layer(descriptor: int, size: int) -> None:
    """Fill an empty file with a qcow2 image of `size` bytes that holds nothing yet.

    No backing file is named in it: whoever opens it says what lies below.
    """
    table_entries = -(-size // (_CLUSTER * (_CLUSTER // 8)))
    table_clusters = max(1, -(-table_entries * 8 // _CLUSTER))
    header = _HEADER.pack(
        b"QFI\xfb",
        3,
        0,  # offset and
        0,  # length of the backing file's name
        _CLUSTER_BITS,
        size,
        0,  # not encrypted
        table_entries,
        3 * _CLUSTER,
        1 * _CLUSTER,
        1,  # cluster of the refcount table
        0,  # internal snapshots and
        0,  # where they are
        0,  # incompatible,
        0,  # compatible and
        0,  # autoclear features
        _REFCOUNT_ORDER,
        _HEADER_SIZE,
    )
    used = 3 + table_clusters
    os.ftruncate(descriptor, used * _CLUSTER)
    os.pwrite(descriptor, header, 0)
    os.pwrite(descriptor, struct.pack(">Q", 2 * _CLUSTER), _CLUSTER)
    os.pwrite(descriptor, struct.pack(">H", 1) * used, 2 * _CLUSTER)
