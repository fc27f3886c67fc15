"""A machine's own disk: layers, of which it writes the topmost only.

To keep what a disk holds at one moment costs the same however much that is: a new empty
layer is laid on top, and the one below is written no more. Everything goes by descriptor:
QEMU opens the layer below anew, to read only, and by its name it would find another file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from novasandbox.errors import VmmCrashed
from novasandbox.providers.qemu_command import DISK, writer_of
from novasandbox.providers.qmp import Qmp
from novasandbox.providers.scratch_layer import write_empty_layer

_LAYER = "layer-"
_WRITER = writer_of("")


def node_of(layer: str) -> str:
    """QEMU's name for a layer: that of its file, which no other of the disk has."""
    return _LAYER + layer


def layer_of(node: str) -> str:
    """The other way round."""
    return node.removeprefix(_LAYER)


def make_layer(path: Path, size: int) -> None:
    """Make an empty layer of `size` bytes, mode 0600. Raises FileExistsError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        write_empty_layer(descriptor, size)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


async def top_node(qmp: Qmp) -> str:
    """The name of the layer that is written. Raises VmmCrashed."""
    return str((await _disk(qmp))["inserted"]["node-name"])


async def layer_nodes(qmp: Qmp) -> list[str]:
    """The names of all layers that are open, in no order. Raises VmmCrashed."""
    nodes = await qmp.execute("query-named-block-nodes", {"flat": True})
    return [node["node-name"] for node in nodes if node["node-name"].startswith(_LAYER)]


async def node_in_sets(qmp: Qmp, node: str) -> list[int]:
    """The sets of descriptors by which a layer was handed over. Raises VmmCrashed."""
    marks = (node, writer_of(node))
    return [
        fdset["fdset-id"]
        for fdset in await qmp.execute("query-fdsets")
        if any(each.get("opaque") in marks for each in fdset["fds"])
    ]


async def make_ready(qmp: Qmp, layer: Path) -> str:
    """Make and open a new empty layer, the file `layer`; gives the node that it shall lie on.

    Raises FileExistsError, VmmCrashed, OperationFailed.
    """
    disk = await _disk(qmp)
    node = node_of(layer.stem)
    make_layer(layer, int(disk["inserted"]["image"]["virtual-size"]))
    number = await _hand_over(qmp, layer, node)
    file = {"driver": "file", "filename": f"/dev/fdset/{number}", "locking": "off"}
    await qmp.execute(
        "blockdev-add",
        {"driver": "qcow2", "node-name": node, "backing": None, "discard": "unmap", "file": file},
    )
    return str(disk["inserted"]["node-name"])


async def lay_on(qmp: Qmp, below: str, layer: Path) -> None:
    """Put a layer that is ready on the disk of a machine that stands still.

    Raises VmmCrashed, OperationFailed; then `top_node` says whether it was done.
    """
    await qmp.execute("blockdev-snapshot", {"node": below, "overlay": node_of(layer.stem)})


async def take_back_writers(qmp: Qmp) -> None:
    """Nobody can write what lies below the topmost layer any more: not even this QEMU.

    The guest runs. Raises VmmCrashed, OperationFailed.
    """
    own = writer_of(await top_node(qmp))
    for fdset in await qmp.execute("query-fdsets"):
        for each in fdset["fds"]:
            mark = str(each.get("opaque"))
            if mark.startswith(_LAYER) and mark.endswith(_WRITER) and mark != own:
                await qmp.give_back(fdset["fdset-id"], each["fd"])


async def _hand_over(qmp: Qmp, layer: Path, node: str) -> int:
    writer = os.open(layer, os.O_RDWR | os.O_CLOEXEC)
    try:
        given = await qmp.execute("add-fd", {"opaque": writer_of(node)}, descriptor=writer)
    finally:
        os.close(writer)
    number = int(given["fdset-id"])
    reader = os.open(layer, os.O_RDONLY | os.O_CLOEXEC)
    try:
        await qmp.execute("add-fd", {"fdset-id": number, "opaque": node}, descriptor=reader)
    finally:
        os.close(reader)
    return number


async def _disk(qmp: Qmp) -> dict[str, Any]:
    for device in await qmp.execute("query-block"):
        if f"/{DISK}/" in str(device.get("qdev")):
            return dict(device)
    raise VmmCrashed("QEMU has lost the machine's disk")
