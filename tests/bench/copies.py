"""Measures of copies: a sandbox made and asked, a live cell, children, sleep."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from bench.floor import DISK_MIB, MEMORY_MIB, VCPUS, Floor, milliseconds
from bench.result import Result, Target
from novasandbox import Sandbox
from novasandbox.core import provider_choice, sockets, template_snapshot
from novasandbox.core.hypervisor import SandboxConfig
from novasandbox.core.preparation import prepare
from novasandbox.core.template_snapshot import Origin
from novasandbox.guest.channel import Channel
from novasandbox.guest.client import Guest
from novasandbox.guest.contexts import Contexts
from novasandbox.guest.files import Files
from novasandbox.guest.process import Processes
from novasandbox.guest.python import Interpreter
from novasandbox.providers.qemu_command import Descriptors, command
from novasandbox.providers.scratch_layer import write_empty_layer

_WARM_UP = 2
CONFIG = SandboxConfig(vcpus=VCPUS, memory_mib=MEMORY_MIB, disk_mib=DISK_MIB)
_NODE = "own-floor"


async def copy(floor: Floor, n: int) -> list[Result]:
    """Create to the first cell's result, against a bare QEMU restored from the same files."""
    provider, _ = await provider_choice.choose("auto")
    figures, floors = [], []
    with await prepare(CONFIG) as prepared:
        origin = await template_snapshot.obtain(provider, prepared, CONFIG)
        assert origin is not None
        for turn in range(_WARM_UP + n):
            bare, ours = await _bare_copy(floor, origin), await _our_copy()
            if turn >= _WARM_UP:
                floors.append(bare)
                figures.append(ours)
    return [Result("copy", "ms", figures, floors, Target("ratio", "<=", 1.2))]


async def _our_copy() -> float:
    start = time.perf_counter()
    async with _sandbox() as sandbox:
        assert (await sandbox.run_code("6*7")).text == "42"
        return milliseconds(start)


async def _bare_copy(floor: Floor, origin: Origin) -> float:
    start = time.perf_counter()
    async with bare(floor, origin) as (guest, contexts):
        await guest.configure(hostname="floor")
        assert (await contexts.run("6*7")).text == "42"
        return milliseconds(start)


@contextlib.asynccontextmanager
async def bare(floor: Floor, origin: Origin) -> AsyncIterator[tuple[Guest, Contexts]]:
    """A copy by hand: no jail, no record, no socket for others."""
    with tempfile.TemporaryDirectory(dir=floor.folder) as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        child = _restore(floor, origin, folder, stack)
        channel = Channel(
            lambda protocol: sockets.dial(folder / "agent.sock", protocol),
            holder=os.urandom(16),
            takeover=True,
        )
        try:
            await channel.open(30)
            processes, files = Processes(channel, ""), Files(channel, "")
            interpreter = Interpreter(channel, processes, files, "")
            yield Guest(channel, ""), Contexts(channel, interpreter, "")
        finally:
            await channel.close()
            child.kill()
            child.wait()


def _restore(
    floor: Floor, origin: Origin, folder: Path, stack: contextlib.ExitStack
) -> subprocess.Popen[bytes]:
    def opened(path: Path, flags: int) -> int:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, descriptor)
        return descriptor

    # Its own copy of the memory: without a jail QEMU opens it for writing.
    assert origin.memory is not None
    memory = floor.folder / "memory"
    if not memory.exists():
        subprocess.run(["cp", "--sparse=always", origin.memory, memory], check=True)
        memory.chmod(0o600)
    qmp = stack.enter_context(sockets.listen(folder / "qmp.sock"))
    agent = stack.enter_context(sockets.listen(folder / "agent.sock"))
    fds = Descriptors(
        qmp=qmp.fileno(),
        agent=agent.fileno(),
        disk=opened(folder / "own.qcow2", os.O_RDWR),
        disk_reader=opened(folder / "own.qcow2", os.O_RDONLY),
        console=opened(folder / "console.log", os.O_WRONLY),
        layers=tuple(opened(layer, os.O_RDONLY) for layer in origin.layers),
        state=opened(origin.state, os.O_RDONLY),
    )
    write_empty_layer(fds.disk, DISK_MIB << 20)
    files = replace(floor.files, memory=str(memory))
    assert fds.state is not None
    kept = (fds.qmp, fds.agent, fds.disk, fds.disk_reader, fds.console, *fds.layers, fds.state)
    return subprocess.Popen(
        [floor.program.path, *command(floor.hardware, files, fds, _NODE)],
        pass_fds=kept,
        stdin=subprocess.DEVNULL,
    )


async def run_code(n: int) -> list[Result]:
    """One small cell after the other in a live sandbox."""
    figures = []
    async with _sandbox() as sandbox:
        for turn in range(20 + n):
            start = time.perf_counter()
            assert (await sandbox.run_code("1")).text == "1"
            if turn >= 20:
                figures.append(milliseconds(start))
    return [Result("run-code", "ms", figures, target=Target("p50", "<=", 3))]


async def fork(n: int) -> list[Result]:
    """Fork to the child's first result, and how long the parent did not answer."""
    figures, pauses = [], []
    async with _sandbox() as sandbox:
        await sandbox.run_code("x = 42")
        for turn in range(_WARM_UP + n):
            gap = asyncio.create_task(_longest_gap(sandbox))
            await asyncio.sleep(0.1)
            start = time.perf_counter()
            (child,) = await sandbox.fork()
            async with child:
                assert (await child.run_code("x")).text == "42"
                took = milliseconds(start)
            gap.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gap
            if turn >= _WARM_UP:
                figures.append(took)
                pauses.append(_gaps.pop())
            _gaps.clear()
    return [Result("fork", "ms", figures), Result("fork-pause", "ms", pauses)]


_gaps: list[float] = []


async def _longest_gap(sandbox: Sandbox) -> None:
    longest = 0.0
    try:
        while True:
            start = time.perf_counter()
            await sandbox.ping()
            longest = max(longest, milliseconds(start))
    finally:
        _gaps.append(longest)


async def sleep(n: int) -> list[Result]:
    """Putting a sandbox to sleep, and waking it to its first result."""
    sleeping, waking = [], []
    async with _sandbox() as sandbox:
        await sandbox.run_code("x = 42")
        for turn in range(_WARM_UP + n):
            start = time.perf_counter()
            await sandbox.hibernate()
            asleep = milliseconds(start)
            start = time.perf_counter()
            assert (await sandbox.run_code("x")).text == "42"
            if turn >= _WARM_UP:
                sleeping.append(asleep)
                waking.append(milliseconds(start))
    return [Result("hibernate", "ms", sleeping), Result("wake", "ms", waking)]


@contextlib.asynccontextmanager
async def _sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox.create(
        vcpus=VCPUS, memory_mib=MEMORY_MIB, disk_mib=DISK_MIB, timeout=None
    ) as sandbox:
        yield sandbox
