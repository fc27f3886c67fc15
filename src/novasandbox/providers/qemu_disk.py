"""A machine's own disk: layers, of which it writes the topmost only.

To keep what a disk holds at one moment costs the same however much that is: a new empty
layer is laid on top, and the one below is written no more. Everything goes by descriptor:
QEMU opens the layer below anew, to read only, and by its name it would find another file.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from novasandbox.errors import NovaError, VmmCrashed
from novasandbox.providers.qemu_command import DISK, writer_of
from novasandbox.providers.qmp import Qmp
from novasandbox.providers.scratch_layer import write_empty_layer

_LAYER = "layer-"


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


async def lay_on(qmp: Qmp, layer: Path) -> None:
    """Put a new empty layer, the file `layer`, on the disk of a machine that stands still.

    Raises FileExistsError, VmmCrashed, OperationFailed; then `top_node` says whether it was done.
    """
    disk = await _disk(qmp)
    below, node = str(disk["inserted"]["node-name"]), node_of(layer.stem)
    size = int(disk["inserted"]["image"]["virtual-size"])
    make_layer(layer, size)
    try:
        number = await _hand_over(qmp, layer, node)
        file = {"driver": "file", "filename": f"/dev/fdset/{number}", "locking": "off"}
        await qmp.execute(
            "blockdev-add",
            {
                "driver": "qcow2",
                "node-name": node,
                "backing": None,
                "discard": "unmap",
                "file": file,
            },
        )
        await qmp.execute("blockdev-snapshot", {"node": below, "overlay": node})
    except BaseException:
        # An answer that came too late is none that says no.
        with contextlib.suppress(NovaError):
            if await top_node(qmp) != node:
                layer.unlink(missing_ok=True)
        raise
    # Once the guest runs again nobody can write what lies below: not even this QEMU.
    await _take_back_writer(qmp, below)


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


async def _take_back_writer(qmp: Qmp, node: str) -> None:
    for fdset in await qmp.execute("query-fdsets"):
        for each in fdset["fds"]:
            if each.get("opaque") == writer_of(node):
                await qmp.give_back(fdset["fdset-id"], each["fd"])


async def _disk(qmp: Qmp) -> dict[str, Any]:
    for device in await qmp.execute("query-block"):
        if f"/{DISK}/" in str(device.get("qdev")):
            return dict(device)
    raise VmmCrashed("QEMU has lost the machine's disk")
