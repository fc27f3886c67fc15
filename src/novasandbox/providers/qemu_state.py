"""What a machine is, as one file: pages of its memory, and its devices.

The file is a migration stream, as QEMU takes it with `-incoming` (migration/savevm.c and
migration/ram.c; their versions 3 and 4 are those of QEMU 2.x to 10). QEMU writes the devices
by `xen-save-devices-state`, and the pages are put before them here: only those that differ
from the file that the restored machine maps.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from novasandbox.core.hypervisor import MEMORY as STORED_MEMORY
from novasandbox.core.hypervisor import STATE
from novasandbox.errors import OperationFailed
from novasandbox.providers.guest_memory import PAGE, GuestMemory, Run
from novasandbox.providers.qemu_command import MEMORY
from novasandbox.providers.qmp import Qmp

_HEADER = b"QEVM\0\0\0\3"
_SECTION_FULL, _SECTION_FOOTER, _DESCRIPTION = 0x04, 0x7E, 0x06
# A number that no section of QEMU's own reaches.
_SECTION = 0x7FFF_FFFF
_RAM_VERSION = 4
_ZERO, _SIZES, _PAGE, _END, _SAME_BLOCK = 0x02, 0x04, 0x08, 0x10, 0x20
_NOTHING = bytes(PAGE)
# Vectors of one writev: a page and its header are two (IOV_MAX is 1024).
_VECTORS = 1024
_NAME = bytes([len(MEMORY)]) + MEMORY.encode()


async def devices(qmp: Qmp) -> bytes:
    """The devices of a machine that stands still. Raises VmmCrashed, OperationFailed."""
    file = os.memfd_create("devices", os.MFD_CLOEXEC)
    try:
        # QEMU takes a descriptor with just the rights that it asks for.
        writer = os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            given = await qmp.execute("add-fd", descriptor=writer)
        finally:
            os.close(writer)
        number = given["fdset-id"]
        try:
            await qmp.execute(
                "xen-save-devices-state", {"filename": f"/dev/fdset/{number}", "live": False}
            )
        finally:
            qmp.give_back_later(number)
        data = os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)
    if not data.startswith(_HEADER):
        raise OperationFailed("QEMU saved the machine's devices in an unknown form")
    return data


def write(folder: Path, devices: bytes, pid: int, memory_size: int) -> None:
    """Write the files of `Machine.save`. pid: QEMU's."""
    with GuestMemory(pid, memory_size) as memory:
        pages = memory.runs()
        if memory.is_whole:
            with (folder / STORED_MEMORY).open("xb", buffering=0) as file:
                # Whoever maps it has a uid of its own; the folder is closed to others.
                os.fchmod(file.fileno(), 0o444)
                write_memory(file.fileno(), memory_size, pages)
            pages = iter(())
        with (folder / STATE).open("xb", buffering=0) as file:
            write_state(file.fileno(), devices, memory_size, pages)


def write_state(descriptor: int, devices: bytes, memory_size: int, pages: Iterable[Run]) -> None:
    """Write the stream. pages: of the guest's memory, of `memory_size` bytes."""
    os.write(descriptor, _HEADER)
    _write_all(descriptor, _memory_section(memory_size, pages))
    # QEMU looks for a description of the sections at the end, and complains without one.
    tail = struct.pack(">BI", _DESCRIPTION, 2) + b"{}"
    _write_all(descriptor, iter((devices[len(_HEADER) :], tail)))


def write_memory(descriptor: int, size: int, pages: Iterable[Run]) -> None:
    """Write a file that a restored machine can map; what is zero is left a hole."""
    os.ftruncate(descriptor, size)
    for run in pages:
        for first, end in _stretches(run.data):
            _write_at(descriptor, run.data[first:end], run.at + first)


def _memory_section(size: int, pages: Iterable[Run]) -> Iterator[bytes]:
    yield struct.pack(">BIB3sII", _SECTION_FULL, _SECTION, 3, b"ram", 0, _RAM_VERSION)
    yield struct.pack(">Q", size | _SIZES) + _NAME + struct.pack(">Q", size)
    # The first page of a section names its block, the others refer to it.
    same = 0
    for run in pages:
        for at in range(0, len(run.data), PAGE):
            page = run.data[at : at + PAGE]
            flag = _ZERO if page == _NOTHING else _PAGE
            name = b"" if same else _NAME
            yield struct.pack(">Q", run.at + at | flag | same) + name
            yield b"\0" if flag == _ZERO else page
            same = _SAME_BLOCK
    yield struct.pack(">Q", _END) + struct.pack(">BI", _SECTION_FOOTER, _SECTION)


def _write_all(descriptor: int, parts: Iterator[bytes]) -> None:
    waiting: list[bytes] = []
    for part in parts:
        waiting.append(part)
        if len(waiting) == _VECTORS:
            _write_vectors(descriptor, waiting)
            waiting = []
    if waiting:
        _write_vectors(descriptor, waiting)


def _write_vectors(descriptor: int, parts: list[bytes]) -> None:
    wanted = sum(map(len, parts))
    written = os.writev(descriptor, parts)
    if written < wanted:
        # A file takes less only when its disk is full, and then says so.
        rest = memoryview(b"".join(parts))[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def _stretches(data: bytes) -> Iterator[tuple[int, int]]:
    """Where something other than zeros lies, in whole pages."""
    first: int | None = None
    for at in range(0, len(data), PAGE):
        if data[at : at + PAGE] != _NOTHING:
            first = at if first is None else first
        elif first is not None:
            yield first, at
            first = None
    if first is not None:
        yield first, len(data)


def _write_at(descriptor: int, data: bytes, at: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, at)
        rest, at = rest[written:], at + written
