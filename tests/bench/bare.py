"""A copy by hand: QEMU as a plain child, restored from the files that a sandbox is copied from.

Sockets and monitor are spoken to as a script would, one step after the other. No jail, no
record, no event loop, and nothing of this library's but the bytes of its protocol.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.floor import Floor
from bench.port import Port
from novasandbox.core import provider_choice, sockets, template_snapshot
from novasandbox.core.hypervisor import SandboxConfig
from novasandbox.core.preparation import prepare
from novasandbox.providers.qemu_command import Descriptors, command
from novasandbox.providers.scratch_layer import write_empty_layer

_DEADLINE = 60.0


@dataclass(frozen=True, slots=True)
class Saved:
    """What a machine is restored from. scratch: what its disk stands on. size: bytes of that."""

    scratch: Path
    state: Path
    memory: Path
    layers: tuple[Path, ...]
    size: int


@contextlib.asynccontextmanager
async def template(floor: Floor, config: SandboxConfig) -> AsyncIterator[Saved]:
    """The files of the template's snapshot for these sizes, made where they are missing."""
    provider, _ = await provider_choice.choose("auto")
    with await prepare(config) as prepared:
        origin = await template_snapshot.obtain(provider, prepared, config)
        assert origin is not None
        assert origin.memory is not None
        assert origin.hold is not None
        # A copy: without the jail that lends it to read only, QEMU opens it for writing.
        memory = floor.beside / f"memory-{config.disk_mib}"
        if not memory.exists():
            subprocess.run(["cp", "--sparse=always", origin.memory, memory], check=True)
            memory.chmod(0o600)
        try:
            size = config.disk_mib << 20
            yield Saved(prepared.scratch, origin.state, memory, origin.layers, size)
        finally:
            origin.hold.close()


class Monitor:
    """QMP over a blocking socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_DEADLINE)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.execute("qmp_capabilities")

    def close(self) -> None:
        """Close it."""
        self._lines.close()
        self._socket.close()

    def execute(self, name: str, **arguments: Any) -> Any:
        """What a command returns. Raises RuntimeError where QEMU refuses it."""
        message = {"execute": name, "arguments": arguments}
        self._socket.sendall(json.dumps(message).encode())
        while True:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                raise RuntimeError(f"{name}: {answer['error']}")
            if "return" in answer:
                return answer["return"]


@dataclass
class Bare:
    """A machine that was restored by hand.

    agent, socket: of its agent and of its monitor, each for one who connects. disk, node: the
    layer that it writes, and QEMU's name of it. saved: what it stands on.
    """

    child: subprocess.Popen[bytes]
    folder: Path
    agent: Path
    socket: Path
    disk: Path
    node: str
    saved: Saved
    _port: Port | None = field(default=None)
    _monitor: Monitor | None = field(default=None)

    @property
    def port(self) -> Port:
        """A connection to its agent, made when it is first needed."""
        if self._port is None:
            self._port = Port(str(self.agent))
        return self._port

    @property
    def monitor(self) -> Monitor:
        """Its monitor, connected when it is first needed."""
        if self._monitor is None:
            self._monitor = Monitor(self.socket)
        return self._monitor

    def new_layer(self) -> Path:
        """An empty layer for its disk."""
        path = self.folder / f"{secrets.token_hex(8)}.qcow2"
        write_layer(path, self.saved.size)
        return path

    def end(self) -> None:
        """Kill it and wait; its files stay."""
        if self._monitor is not None:
            self._monitor.close()
        if self._port is not None:
            self._port.close()
        self.child.kill()
        self.child.wait()


def write_layer(path: Path, size: int) -> None:
    """Make an empty qcow2 layer."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_empty_layer(descriptor, size)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def restored(floor: Floor, saved: Saved, folder: Path) -> Iterator[Bare]:
    """A restored machine whose agent has not been spoken to; it ends with the block."""
    machine = restore(floor, saved, folder)
    try:
        yield machine
    finally:
        machine.end()


def restore(floor: Floor, saved: Saved, folder: Path) -> Bare:
    """Start QEMU with what was saved, in a folder of its own. The caller ends it."""
    node = f"own-{secrets.token_hex(8)}"
    disk = folder / f"{node}.qcow2"
    write_layer(disk, saved.size)
    # A socket's name must be short, and the folder's need not be.
    qmp, agent = floor.folder / f"{node}.qmp", floor.folder / f"{node}.agent"
    with contextlib.ExitStack() as stack:

        def opened(path: Path, flags: int) -> int:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, descriptor)
            return descriptor

        state = opened(saved.state, os.O_RDONLY)
        fds = Descriptors(
            qmp=stack.enter_context(sockets.listen(qmp)).fileno(),
            agent=stack.enter_context(sockets.listen(agent)).fileno(),
            disk=opened(disk, os.O_RDWR),
            disk_reader=opened(disk, os.O_RDONLY),
            console=opened(folder / "console.log", os.O_WRONLY),
            layers=tuple(opened(layer, os.O_RDONLY) for layer in saved.layers),
            state=state,
        )
        kept = (fds.qmp, fds.agent, fds.disk, fds.disk_reader, fds.console, *fds.layers, state)
        files = replace(floor.files, memory=str(saved.memory), scratch_base=str(saved.scratch))
        child = subprocess.Popen(
            [floor.program.path, *command(floor.hardware, files, fds, node)],
            pass_fds=kept,
            stdin=subprocess.DEVNULL,
        )
    return Bare(child, folder, agent, qmp, disk, node, saved)
