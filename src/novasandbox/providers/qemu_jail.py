"""What a QEMU gets in its jail: descriptors, files, limits, and nothing else."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from novasandbox.core import sockets, uids
from novasandbox.core.hypervisor import MachineSpec
from novasandbox.errors import ProviderUnavailable
from novasandbox.providers import cgroups, jail_check
from novasandbox.providers.jail import Bind, Console, JailSpec
from novasandbox.providers.qemu_command import Descriptors, Files, Hardware, command
from novasandbox.providers.qemu_program import Program
from novasandbox.providers.room import qemu_room
from novasandbox.providers.scratch_layer import write_empty_layer

_MIB = 1 << 20
# Beside the guest's memory: up to 1 GiB of translated code, QEMU's heap, its page tables.
_OWN_MEMORY_MIB = 1536
_ADDRESS_SPACE_MIB = 4096


@dataclass(frozen=True, slots=True)
class Given:
    """Descriptors for QEMU, and a uid of its own where we may give one."""

    fds: Descriptors
    lease: uids.UidLease | None


@contextlib.asynccontextmanager
async def resources(spec: MachineSpec) -> AsyncIterator[Given]:
    """What a machine is given by descriptor; our copies are closed when the block ends."""
    with contextlib.ExitStack() as stack:
        qmp = stack.enter_context(sockets.listen(spec.run_dir / "qmp.sock"))
        agent = stack.enter_context(sockets.listen(spec.run_dir / "agent.sock"))
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        disk = os.open(spec.run_dir / "scratch.qcow2", flags, 0o600)
        stack.callback(os.close, disk)
        write_empty_layer(disk, spec.scratch_mib * _MIB)
        lease = stack.enter_context(uids.lease()) if os.geteuid() == 0 else None
        # The console's pipe is made in the jail; its number must be none of those handed on.
        console = max(qmp.fileno(), agent.fileno(), disk) + 1
        yield Given(Descriptors(qmp.fileno(), agent.fileno(), disk, console), lease)


def jail_for(
    program: Program, hardware: Hardware, spec: MachineSpec, given: Given, cache: Path
) -> JailSpec:
    """The jail of one machine. cache: a folder for what is worked out once.

    Raises ProviderUnavailable where a strict one was asked for and the host cannot give it.
    """
    places = _places(spec.strict)
    room = qemu_room(program.path, cache)
    own_root = jail_check.can_build_room()
    files = Files() if own_root else _host_files(spec)
    shared = {
        files.kernel: spec.kernel,
        files.initramfs: spec.initramfs,
        files.rootfs: spec.rootfs,
        files.scratch_base: spec.scratch_base,
    }
    binds = [*room.binds, *(Bind(str(path), inside) for inside, path in shared.items())]
    if hardware.accelerator == "kvm":
        binds.append(Bind("/dev/kvm", "/dev/kvm", "device"))
    limits = cgroups.Limits((spec.memory_mib + _OWN_MEMORY_MIB) * _MIB)
    return JailSpec(
        program=room.program,
        arguments=tuple(command(hardware, files, given.fds)),
        binds=tuple(binds),
        keep_fds=(given.fds.qmp, given.fds.agent, given.fds.disk),
        hold_fds=spec.hold_fds,
        env=room.env,
        limits=_limits(spec, given),
        cgroups=cgroups.cgroups(spec.id, limits, places),
        lease=given.lease,
        consoles=(Console(given.fds.console, spec.run_dir / "console.log"),),
        log=spec.run_dir / "vmm.log",
        owner_fd=spec.owner_fd,
        strict=spec.strict,
    )


@functools.cache
def _found_places() -> tuple[cgroups.Place, ...]:
    places = cgroups.find_places()
    cgroups.collect(places)
    return places


def _places(strict: bool) -> tuple[cgroups.Place, ...]:
    places = _found_places()
    missing = cgroups.missing(places)
    if strict and missing:
        raise ProviderUnavailable(
            "the jail is incomplete on this host, and a strict one was asked for",
            why=f"no control group can limit {', '.join(missing)}",
            fix="See `nova doctor` for what mends it, or unset NOVA_STRICT_JAIL.",
        )
    return places


def _host_files(spec: MachineSpec) -> Files:
    return Files(str(spec.kernel), str(spec.initramfs), str(spec.rootfs), str(spec.scratch_base))


def _limits(spec: MachineSpec, given: Given) -> dict[str, int]:
    return {
        "nofile": given.fds.console + 512,
        "core": 0,
        # All of the disk written, each cluster once, and its tables.
        "fsize": spec.scratch_mib * _MIB * 9 // 8 + 64 * _MIB,
        "as": (spec.memory_mib + _ADDRESS_SPACE_MIB) * _MIB,
    }
