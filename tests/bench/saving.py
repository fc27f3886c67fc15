"""Saving a bare machine by hand: the same method as the library's, as a script would do it.

The vCPUs are stopped; QEMU writes the devices; the pages that are the machine's own, as
/proc/PID/pagemap tells them, are put before those as QEMU's stream has it; a new empty layer
is laid on the disk; the vCPUs run again.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import replace
from pathlib import Path

from bench.bare import Bare, Saved

_PAGE = 4096
_ENTRY = 8
_PIECE = 256 * _PAGE
# Of an entry's highest byte: present or swapped out, and no page of the file.
_IS_OWN = bytes(bool(top & 0xC0 and not top & 0x20) for top in range(256))
_RUN = re.compile(rb"\x01+")
_HEADER = b"QEVM\0\0\0\3"
_NAME = b"\x06memory"
_SECTION = 0x7FFF_FFFF
_ZERO, _SIZES, _FULL, _END, _SAME_BLOCK = 0x02, 0x04, 0x08, 0x10, 0x20
_NOTHING = bytes(_PAGE)


def save(machine: Bare, state: Path) -> None:
    """Write what a machine is that stands still, apart from its disk."""
    devices = state.with_suffix(".devices")
    machine.monitor.execute("xen-save-devices-state", filename=str(devices), live=False)
    _write(state, devices.read_bytes(), machine.child.pid, machine.saved.memory.stat().st_size)
    devices.unlink()


def freeze_disk(machine: Bare) -> Saved:
    """Lay a new layer on the disk; gives what a copy is restored from, but for its state."""
    layer = machine.new_layer()
    file = {"driver": "file", "filename": str(layer), "locking": "off"}
    node = f"own-{layer.stem}"
    machine.monitor.execute(
        "blockdev-add",
        **{"driver": "qcow2", "node-name": node, "backing": None, "discard": "unmap", "file": file},
    )
    machine.monitor.execute("blockdev-snapshot", node=machine.node, overlay=node)
    machine.saved = replace(machine.saved, layers=(*machine.saved.layers, machine.disk))
    machine.disk, machine.node = layer, node
    return machine.saved


def fork(machine: Bare, state: Path) -> Saved:
    """What a child is restored from; the parent goes on."""
    machine.monitor.execute("stop")
    save(machine, state)
    saved = freeze_disk(machine)
    machine.monitor.execute("cont")
    # It has missed that time.
    machine.port.set_clock()
    return replace(saved, state=state)


def hibernate(machine: Bare, state: Path) -> Saved:
    """Bring all that a machine is to the disk, and end it."""
    machine.monitor.execute("stop")
    save(machine, state)
    for path in (state, machine.disk, state.parent):
        _sync(path)
    machine.end()
    saved = machine.saved
    return replace(saved, state=state, layers=(*saved.layers, machine.disk))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(state: Path, devices: bytes, pid: int, size: int) -> None:
    start = _mapping(pid, size)
    with (
        open(f"/proc/{pid}/mem", "rb", buffering=0) as memory,
        open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap,
        state.open("xb", buffering=0) as file,
    ):
        count = size // _PAGE
        entries = os.pread(pagemap.fileno(), count * _ENTRY, start // _PAGE * _ENTRY)
        own = entries[_ENTRY - 1 :: _ENTRY].translate(_IS_OWN)
        head = struct.pack(">BIB3sII", 4, _SECTION, 3, b"ram", 0, 4)
        file.write(_HEADER + head + struct.pack(">Q", size | _SIZES) + _NAME + size.to_bytes(8))
        name, same = _NAME, 0
        for run in _RUN.finditer(own):
            for first in range(run.start() * _PAGE, run.end() * _PAGE, _PIECE):
                end = min(first + _PIECE, run.end() * _PAGE)
                data = os.pread(memory.fileno(), end - first, start + first)
                parts = []
                for at in range(0, len(data), _PAGE):
                    page = data[at : at + _PAGE]
                    empty = page == _NOTHING
                    flags = (_ZERO if empty else _FULL) | same
                    parts += [(first + at | flags).to_bytes(8) + name, b"\0" if empty else page]
                    name, same = b"", _SAME_BLOCK
                file.write(b"".join(parts))
        tail = _END.to_bytes(8) + struct.pack(">BI", 0x7E, _SECTION)
        file.write(tail + devices[len(_HEADER) :] + struct.pack(">BI", 6, 2) + b"{}")


def _mapping(pid: int, size: int) -> int:
    """Where the guest's memory lies in QEMU's."""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            start, end = (int(each, 16) for each in line.split(maxsplit=1)[0].split("-"))
            if end - start == size and "/memory-" in line:
                return start
    raise RuntimeError("the machine's memory was not found in its process")
