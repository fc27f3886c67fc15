"""QEMU: with KVM where that truly works, with emulation everywhere else."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from novasandbox.core import sockets
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
from novasandbox.providers import (
    accelerator,
    process_metrics,
    qemu_disk,
    qemu_merge,
    qemu_state,
    tsc,
)
from novasandbox.providers.accelerator import Verdict, host_cpu
from novasandbox.providers.jail import JailedProcess, Reduction, launch
from novasandbox.providers.qemu_command import FORMAT, Hardware, cpu_model
from novasandbox.providers.qemu_jail import jail_for, resources
from novasandbox.providers.qemu_program import Program, find_program
from novasandbox.providers.qmp import Qmp


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
            reason = f"{error.what} ({error.why})" if error.why else error.what
            return Probe(False, reason, fix=error.fix)
        verdict = self._verdict(program)
        return Probe(
            True,
            verdict.reason,
            accelerator=verdict.accelerator,
            fix=verdict.fix,
            version=program.version,
            capabilities=Capabilities(snapshot=True, live_fork=True, jail=True),
        )

    def _verdict(self, program: Program) -> Verdict:
        known = accelerator.remembered(program.version, _verdicts())
        return known or accelerator.candidate()

    async def boot(self, spec: MachineSpec) -> QemuMachine:
        return await self._start(spec)

    async def restore(self, spec: MachineSpec, state: Path, memory: Path | None) -> QemuMachine:
        return await self._start(spec, state, memory)

    async def _start(
        self, spec: MachineSpec, state: Path | None = None, memory: Path | None = None
    ) -> QemuMachine:
        program = await find_program()
        hardware = await hardware_for(program, spec.kernel, spec.vcpus, spec.memory_mib)
        async with resources(spec, state) as given:
            jail = await asyncio.to_thread(
                jail_for, program, hardware, spec, given, _cache(), memory
            )
            process = await launch(jail)
        return QemuMachine(spec.run_dir, process, hardware.accelerator, spec.memory_mib)

    async def signature(self, kernel: Path, vcpus: int, memory_mib: int) -> Mapping[str, Any]:
        program = await find_program()
        hardware = await hardware_for(program, kernel, vcpus, memory_mib)
        return {
            "provider": self.name,
            "version": program.version,
            "state": FORMAT,
            "accelerator": hardware.accelerator,
            "host": host_cpu() if hardware.accelerator != "tcg" else None,
            "cpu": cpu_model(hardware),
            "tsc_khz": hardware.tsc_khz,
            "vcpus": vcpus,
            "memory_mib": memory_mib,
        }

    async def adopt(self, run_dir: Path, record: Mapping[str, Any]) -> QemuMachine:
        process = Owner.load(record)
        supervisor = Owner.load(record.get("supervisor"))
        if process is None or supervisor is None or not process.alive:
            raise VmmCrashed("the machine no longer runs")
        reductions = tuple(Reduction(*line.split(": ", 1)) for line in record["reductions"])
        jailed = JailedProcess(supervisor, process, reductions)
        return QemuMachine(
            run_dir, jailed, record["accelerator"], record["memory_mib"], is_adopted=True
        )

    def findings(self) -> list[Finding]:
        from novasandbox.providers import qemu_doctor

        return qemu_doctor.findings()


async def hardware_for(program: Program, kernel: Path, vcpus: int, memory_mib: int) -> Hardware:
    """The machine that this host can give: on KVM where a kernel was seen running on it."""
    verdict = await accelerator.proven(
        accelerator.candidate(kernel), str(program.path), program.version, kernel, _verdicts()
    )
    return Hardware(
        arch=host_arch(),
        accelerator=verdict.accelerator,
        vcpus=vcpus,
        memory_mib=memory_mib,
        tsc_khz=await asyncio.to_thread(tsc.rate_khz, _cache() / "tsc.json"),
    )


class QemuMachine(Machine):
    """One QEMU process."""

    def __init__(
        self,
        run_dir: Path,
        process: JailedProcess,
        accelerator_name: str,
        memory_mib: int,
        *,
        is_adopted: bool = False,
    ) -> None:
        self.accelerator = accelerator_name
        self._memory = memory_mib << 20
        self.pid = process.pid
        self.pid_started = process.process.started
        self._run_dir = run_dir
        self._process = process
        self._qmp = Qmp(run_dir / "qmp.sock")
        # Whether QEMU has flushed the disk since it last wrote to it.
        self._is_flushed = False
        # What the layer that is ready shall lie on.
        self._lies_on = ""
        # An earlier holder may have died before it could take back what writes a frozen layer.
        self._has_frozen = is_adopted

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        return await sockets.dial(self._run_dir / "agent.sock", protocol)

    async def pause(self) -> None:
        await self._qmp.execute("stop")
        self._is_flushed = True

    async def resume(self) -> None:
        self._is_flushed = False
        await self._qmp.execute("cont")
        if self._has_frozen:
            await qemu_disk.take_back_writers(self._qmp)
            self._has_frozen = False
        await self._qmp.close_given_back()

    async def save(self, folder: Path) -> None:
        if not self._is_flushed:
            # It stands still already; told so again, QEMU flushes what a merge wrote since.
            await self._qmp.execute("stop")
        found = await qemu_state.devices(self._qmp)
        await asyncio.to_thread(qemu_state.write, folder, found, self.pid, self._memory)

    async def ready_layer(self, layer: Path) -> None:
        self._lies_on = await qemu_disk.make_ready(self._qmp, layer)

    async def freeze_disk(self, layer: Path) -> None:
        # Also where it fails: it may have been done all the same.
        self._has_frozen = True
        await qemu_disk.lay_on(self._qmp, self._lies_on, layer)

    async def disk_layers(self) -> tuple[str, ...]:
        await qemu_merge.call_off(self._qmp)
        return tuple(map(qemu_disk.layer_of, await qemu_merge.drop_unused(self._qmp)))

    async def merge_disk(self, onto: str | None, speed: int | None = None) -> None:
        self._is_flushed = False
        await qemu_merge.merge(self._qmp, qemu_disk.node_of(onto) if onto else None, speed)

    async def wait(self) -> str:
        ending = await self._process.wait()
        log = _tail(self._run_dir / "vmm.log")
        return f"{ending}; QEMU said: {log}" if log else str(ending)

    async def kill(self) -> None:
        await self._qmp.close()
        await self._process.kill()

    def outlive_owner(self) -> None:
        self._process.outlive_owner()

    async def let_go(self) -> None:
        await self._qmp.close()
        self._process.let_go()

    async def metrics(self) -> MachineMetrics:
        return await asyncio.to_thread(process_metrics.read, self._process.process)

    async def cpu_seconds(self) -> float:
        return process_metrics.cpu_seconds(self._process.process)

    def console(self) -> bytes:
        with contextlib.suppress(OSError):
            return (self._run_dir / "console.log").read_bytes()
        return b""

    def record(self) -> dict[str, Any]:
        return {
            **self._process.process.as_data(),
            "supervisor": self._process.supervisor.as_data(),
            "accelerator": self.accelerator,
            "memory_mib": self._memory >> 20,
            "reductions": [f"{r.part}: {r.why}" for r in self._process.reductions],
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
