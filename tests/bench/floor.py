"""The floor: QEMU as a plain child process, and in its guest just floor_init.c.

Kernel, modules, root, scratch disk and the whole machine are those of a sandbox; what is
missing is all that this library adds: jail, agent, protocol, users, limits, event loop.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import build as native_build
from novasandbox.core.template_manager import Artifacts, TemplateManager
from novasandbox.images import initramfs, scratch
from novasandbox.images.modules import Modules
from novasandbox.providers.qemu import hardware_for
from novasandbox.providers.qemu_command import Descriptors, Files, Hardware, command
from novasandbox.providers.qemu_program import Program, find_program
from novasandbox.providers.scratch_layer import write_empty_layer

VCPUS, MEMORY_MIB, DISK_MIB = 1, 256, 2048
"""The machine of a sandbox that is made without a word."""

_REQUEST = struct.Struct("<B3xI")
_LENGTH = struct.Struct("<I")
_BLOCK = 1 << 18
_DEADLINE = 120.0
_SOURCES = native_build.Component("floor-init", Path(__file__).parent)


@dataclass(frozen=True, slots=True)
class Floor:
    """What every bare machine boots from.

    folder: in memory. beside: on the file system on which sandboxes lie, for what the same by
    hand has to write there too.
    """

    artifacts: Artifacts
    program: Program
    hardware: Hardware
    files: Files
    folder: Path
    beside: Path

    @contextlib.contextmanager
    def process(self) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """A bare machine that has just been started, and the folder with its sockets."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folder = Path(name)
            child = self._start(folder)
            try:
                yield child, folder
            finally:
                child.kill()
                child.wait()

    def _start(self, folder: Path) -> subprocess.Popen[bytes]:
        # Ours are closed at once: a machine that ends resets who still waits for it.
        with contextlib.ExitStack() as stack:
            fds = Descriptors(
                _listen(stack, folder / "qmp.sock"),
                _listen(stack, folder / "agent.sock"),
                _create(stack, folder / "scratch.qcow2", os.O_RDWR),
                _create(stack, folder / "scratch.qcow2", os.O_RDONLY),
                _create(stack, folder / "console.log", os.O_WRONLY),
            )
            write_empty_layer(fds.disk, DISK_MIB << 20)
            return subprocess.Popen(
                [self.program.path, *command(self.hardware, self.files, fds, "own-scratch")],
                pass_fds=(fds.qmp, fds.agent, fds.disk, fds.disk_reader, fds.console),
                stdin=subprocess.DEVNULL,
            )

    @contextlib.contextmanager
    def guest(self) -> Iterator[FloorGuest]:
        """A bare machine whose guest takes requests."""
        with self.process() as (child, folder):
            port = _connect(folder / "agent.sock")
            with port:
                guest = FloorGuest(port, child, folder)
                guest.wait_until_ready()
                yield guest


class FloorGuest:
    """Speaks to floor_init.c over its port, one request after the other."""

    def __init__(self, port: socket.socket, child: subprocess.Popen[bytes], folder: Path) -> None:
        self._port = port
        self._child = child
        self._folder = folder

    def wait_until_ready(self) -> None:
        """Wait for the first bytes. Raises RuntimeError with the guest's last words."""
        try:
            self._exactly(5)
        except OSError as error:
            words = (self._folder / "console.log").read_text(errors="replace")[-400:]
            raise RuntimeError(f"the bare guest did not come up: {words}") from error

    def echo(self, data: bytes) -> None:
        """A round trip of some bytes."""
        self._ask("e", data)
        self._reply()

    def spawn(self, command: str) -> None:
        """Start a program and wait for it: a path as it is, anything else by the shell."""
        self._ask("s", command.encode())
        if self._reply() != bytes(4):
            raise RuntimeError(f"the bare guest could not run {command!r}")

    def answer(self) -> bytes:
        """What Python prints for 6 * 7."""
        self._ask("a")
        return self._reply()

    def put(self, source: Path) -> None:
        """Copy a file into the guest, as dd on both sides of the port would."""
        self._ask("p", number=source.stat().st_size)
        with source.open("rb", buffering=0) as file:
            while piece := file.read(_BLOCK):
                self._port.sendall(piece)
        self._reply()

    def get(self, target: Path, size: int) -> None:
        """Copy that file out of the guest."""
        self._ask("g", number=size)
        block = bytearray(_BLOCK)
        with target.open("wb", buffering=0) as file:
            while size > 0:
                count = self._port.recv_into(block)
                if count == 0:
                    raise ConnectionResetError("the bare machine has ended")
                file.write(memoryview(block)[:count])
                size -= count

    def _ask(self, operation: str, data: bytes = b"", number: int | None = None) -> None:
        number = len(data) if number is None else number
        self._port.sendall(_REQUEST.pack(ord(operation), number) + data)

    def _reply(self) -> bytes:
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return bytes(self._exactly(length))

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._port.recv_into(view)
            if count == 0:
                raise ConnectionResetError("the bare machine has ended")
            view = view[count:]
        return data


async def prepare(folder: Path, beside: Path) -> Floor:
    """Build the template where it is missing, compile floor_init.c, and pack its initramfs."""
    manager = TemplateManager()
    artifacts = await manager.artifacts("debian-python")
    disk = await scratch.obtain(manager.store, DISK_MIB)
    program = await find_program()
    hardware = await hardware_for(program, artifacts.kernel, VCPUS, MEMORY_MIB)
    hardware = replace(hardware, seccomp=False)
    init = folder / "floor-init"
    native_build.compile_static(_SOURCES, hardware.arch, init)
    ram = folder / "floor.cpio"
    modules = Modules.of(artifacts.kernel.parent)
    initramfs.write(ram, modules, init, ("pci", "mmio"))
    files = Files(
        str(artifacts.kernel), str(ram), str(artifacts.rootfs), str(disk.path / scratch.IMAGE)
    )
    return Floor(artifacts, program, hardware, files, folder, beside)


def first_words(path: Path) -> bytes:
    """What a monitor at `path` says first, as soon as it listens."""
    with _connect(path) as monitor:
        return monitor.recv(4096)


def milliseconds(since: float) -> float:
    """How long ago that was; `since` is a time.perf_counter()."""
    return (time.perf_counter() - since) * 1000


def _connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(_DEADLINE)
    client.connect(str(path))
    return client


def _listen(stack: contextlib.ExitStack, path: Path) -> int:
    server = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    server.bind(str(path))
    server.listen(1)
    return server.fileno()


def _create(stack: contextlib.ExitStack, path: Path, access: int) -> int:
    descriptor = os.open(path, access | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, descriptor)
    return descriptor
