"""QEMU: with KVM where that truly works, with emulation everywhere else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from novasandbox.core import sockets, uids
from novasandbox.core.home import home
from novasandbox.core.hypervisor import (
    BaseHypervisor,
    Capabilities,
    Finding,
    Machine,
    MachineMetrics,
    MachineSpec,
    Probe,
)
from novasandbox.core.owner import Owner
from novasandbox.errors import ProviderUnavailable, VmmCrashed
from novasandbox.native import host_arch
from novasandbox.providers import accelerator, process_metrics, tsc
from novasandbox.providers.accelerator import Verdict
from novasandbox.providers.jail import Bind, Console, JailedProcess, JailSpec, launch
from novasandbox.providers.qemu_command import (
    INITRAMFS,
    KERNEL,
    ROOTFS,
    SCRATCH_BASE,
    Descriptors,
    Files,
    Hardware,
    command,
)
from novasandbox.providers.qemu_program import Program, find_program
from novasandbox.providers.qmp import Qmp
from novasandbox.providers.room import qemu_room
from novasandbox.providers.scratch_layer import write_empty_layer

# The console's pipe has this number in QEMU; below it are the ones that we hand on.
_CONSOLE = 500
_MIB = 1 << 20


class QemuHypervisor(BaseHypervisor):
    """Machines as QEMU processes, each in a jail of its own."""

    name = "qemu"

    async def probe(self) -> Probe:
        if sys.platform != "linux":
            return Probe(
                False,
                "the jail around QEMU is made of Linux's namespaces, and this is another system",
                fix="Run it on Linux; a virtual machine will do, with or without KVM.",
            )
        try:
            program = await find_program()
        except ProviderUnavailable as error:
            return Probe(False, error.why or error.what, fix=error.fix)
        verdict = self._verdict(program)
        return Probe(
            True,
            verdict.reason,
            accelerator=verdict.accelerator,
            fix=verdict.fix,
            version=program.version,
            capabilities=Capabilities(jail=True),
        )

    def _verdict(self, program: Program) -> Verdict:
        known = accelerator.remembered(program.version, _verdicts())
        return known or accelerator.candidate()

    async def boot(self, spec: MachineSpec) -> QemuMachine:
        program = await find_program()
        verdict = await accelerator.proven(
            accelerator.candidate(spec.kernel),
            str(program.path),
            program.version,
            spec.kernel,
            _verdicts(),
        )
        hardware = Hardware(
            arch=host_arch(),
            accelerator=verdict.accelerator,
            vcpus=spec.vcpus,
            memory_mib=spec.memory_mib,
            tsc_khz=tsc.rate_khz(),
        )
        async with _resources(spec) as (fds, lease):
            process = await launch(_jail(program, hardware, spec, fds, lease))
        return QemuMachine(spec.run_dir, process, verdict.accelerator)

    async def adopt(self, run_dir: Path, record: Mapping[str, Any]) -> QemuMachine:
        process = Owner.load(record)
        supervisor = Owner.load(record.get("supervisor"))
        if process is None or supervisor is None or not process.alive:
            raise VmmCrashed("the machine no longer runs")
        return QemuMachine(run_dir, JailedProcess(supervisor, process), record["accelerator"])

    def findings(self) -> list[Finding]:
        from novasandbox.providers import qemu_doctor

        return qemu_doctor.findings()


class QemuMachine(Machine):
    """One QEMU process."""

    def __init__(self, run_dir: Path, process: JailedProcess, accelerator_name: str) -> None:
        self.accelerator = accelerator_name
        self.pid = process.pid
        self.pid_started = process.process.started
        self._run_dir = run_dir
        self._process = process
        self._qmp = Qmp(run_dir / "qmp.sock")

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        return await sockets.dial(self._run_dir / "agent.sock", protocol)

    async def pause(self) -> None:
        await self._qmp.execute("stop")

    async def resume(self) -> None:
        await self._qmp.execute("cont")

    async def wait(self) -> str:
        ending = await self._process.wait()
        log = _tail(self._run_dir / "vmm.log")
        return f"{ending}; QEMU said: {log}" if log else str(ending)

    async def kill(self) -> None:
        await self._qmp.close()
        await self._process.kill()

    async def let_go(self) -> None:
        await self._qmp.close()
        self._process.let_go()

    async def metrics(self) -> MachineMetrics:
        return await asyncio.to_thread(process_metrics.read, self._process.process)

    def console(self) -> bytes:
        with contextlib.suppress(OSError):
            return (self._run_dir / "console.log").read_bytes()
        return b""

    def record(self) -> dict[str, Any]:
        return {
            **self._process.process.as_data(),
            "supervisor": self._process.supervisor.as_data(),
            "accelerator": self.accelerator,
            "reductions": [f"{r.part}: {r.why}" for r in self._process.reductions],
        }


@contextlib.asynccontextmanager
async def _resources(spec: MachineSpec) -> AsyncIterator[tuple[Descriptors, uids.UidLease | None]]:
    """What a machine is given by descriptor; ours are closed once it has its own."""
    with contextlib.ExitStack() as stack:
        qmp = stack.enter_context(sockets.listen(spec.run_dir / "qmp.sock"))
        agent = stack.enter_context(sockets.listen(spec.run_dir / "agent.sock"))
        disk = os.open(
            spec.run_dir / "scratch.qcow2",
            os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC,
            0o600,
        )
        stack.callback(os.close, disk)
        write_empty_layer(disk, spec.scratch_mib * _MIB)
        lease = stack.enter_context(uids.lease()) if os.geteuid() == 0 else None
        yield Descriptors(qmp.fileno(), agent.fileno(), disk, _CONSOLE), lease


def _jail(
    program: Program,
    hardware: Hardware,
    spec: MachineSpec,
    fds: Descriptors,
    lease: uids.UidLease | None,
) -> JailSpec:
    room = qemu_room(program.path, _cache())
    binds = [
        *room.binds,
        Bind(str(spec.kernel), KERNEL),
        Bind(str(spec.initramfs), INITRAMFS),
        Bind(str(spec.rootfs), ROOTFS),
        Bind(str(spec.scratch_base), SCRATCH_BASE),
    ]
    if hardware.accelerator == "kvm":
        binds.append(Bind("/dev/kvm", "/dev/kvm", "device"))
    return JailSpec(
        program=room.program,
        arguments=tuple(command(hardware, Files(), fds)),
        binds=tuple(binds),
        keep_fds=(fds.qmp, fds.agent, fds.disk),
        hold_fds=spec.hold_fds,
        env=room.env,
        limits=_limits(spec),
        lease=lease,
        consoles=(Console(fds.console, spec.run_dir / "console.log"),),
        log=spec.run_dir / "vmm.log",
        owner_fd=spec.owner_fd,
        hostname="sandbox",
        strict=os.environ.get("NOVA_STRICT_JAIL") == "1",
    )


def _limits(spec: MachineSpec) -> dict[str, int]:
    return {
        "nofile": 1024,
        "core": 0,
        # All of the disk written, each cluster once, and its tables.
        "fsize": spec.scratch_mib * _MIB * 9 // 8 + 64 * _MIB,
        # The guest's memory, 1 GiB of translated code, QEMU's heap and its libraries.
        "as": (spec.memory_mib + 4096) * _MIB,
    }


def _cache() -> Path:
    path = home() / "cache"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _verdicts() -> Path:
    return _cache() / "accelerator.json"


def _tail(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return path.read_bytes()[-400:].decode("utf-8", "replace").strip() or None
    return None
