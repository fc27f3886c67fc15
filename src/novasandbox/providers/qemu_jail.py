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
from novasandbox.providers.qemu_disk import make_layer, node_of
from novasandbox.providers.qemu_program import Program
from novasandbox.providers.room import qemu_room

_MIB = 1 << 20
_MEMORY = "/memory"
# Beside the guest's memory: up to 1 GiB of translated code, QEMU's heap, its page tables.
_OWN_MEMORY_MIB = 1536
_ADDRESS_SPACE_MIB = 4096


@dataclass(frozen=True, slots=True)
class Given:
    """Descriptors for QEMU, and a uid of its own where we may give one."""

    fds: Descriptors
    lease: uids.UidLease | None


@contextlib.asynccontextmanager
async def resources(spec: MachineSpec, state: Path | None = None) -> AsyncIterator[Given]:
    """What a machine is given by descriptor; our copies are closed when the block ends.

    state: the file that it is restored from; None: it boots.
    """
    with contextlib.ExitStack() as stack:
        qmp = stack.enter_context(sockets.listen(spec.run_dir / "qmp.sock"))
        agent = stack.enter_context(sockets.listen(spec.run_dir / "agent.sock"))
        if not spec.disk.exists():
            make_layer(spec.disk, spec.scratch_mib * _MIB)

        def opened(path: Path, flags: int) -> int:
            descriptor = os.open(path, flags | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            return descriptor

        disk = opened(spec.disk, os.O_RDWR)
        reader = opened(spec.disk, os.O_RDONLY)
        layers = tuple(opened(layer, os.O_RDONLY) for layer in spec.layers)
        start = opened(state, os.O_RDONLY) if state is not None else None
        lease = stack.enter_context(uids.lease()) if os.geteuid() == 0 else None
        # The console's pipe is made in the jail; its number must be none of those handed on.
        console = max(qmp.fileno(), agent.fileno(), disk, reader, *layers, start or 0) + 1
        fds = Descriptors(qmp.fileno(), agent.fileno(), disk, reader, console, layers, start)
        yield Given(fds, lease)


def jail_for(
    program: Program,
    hardware: Hardware,
    spec: MachineSpec,
    given: Given,
    cache: Path,
    memory: Path | None = None,
) -> JailSpec:
    """The jail of one machine. cache: a folder for what is worked out once. memory: the file
    that a restored machine's memory starts as.

    Raises ProviderUnavailable where a strict one was asked for and the host cannot give it.
    """
    places = _places(spec.strict)
    room = qemu_room(program.path, cache)
    own_root = jail_check.can_build_room()
    files, shared = _files(spec, memory, starts=given.fds.state is None, own_root=own_root)
    binds = [*room.binds, *(Bind(str(path), inside) for inside, path in shared.items())]
    if hardware.accelerator == "kvm":
        binds.append(Bind("/dev/kvm", "/dev/kvm", "device"))
    limits = cgroups.Limits((spec.memory_mib + _OWN_MEMORY_MIB) * _MIB)
    return JailSpec(
        program=room.program,
        arguments=tuple(
            command(
                hardware,
                files,
                given.fds,
                node_of(spec.disk.stem),
                tuple(node_of(layer.stem) for layer in spec.layers),
            )
        ),
        binds=tuple(binds),
        keep_fds=_kept(given.fds),
        hold_fds=spec.hold_fds,
        env=room.env,
        limits=_limits(spec, given),
        cgroups=cgroups.cgroups(spec.id, limits, places),
        lease=given.lease,
        consoles=(Console(given.fds.console, spec.run_dir / "console.log"),),
        log=spec.run_dir / "vmm.log",
        owner_fd=spec.owner_fd,
        strict=spec.strict,
        open_read_only=files.memory,
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


def _files(
    spec: MachineSpec, memory: Path | None, *, starts: bool, own_root: bool
) -> tuple[Files, dict[str, Path]]:
    """The shared files under their names in the jail, and where they are on the host."""
    shared = {ROOTFS: spec.rootfs, SCRATCH_BASE: spec.scratch_base}
    if starts:
        shared |= {KERNEL: spec.kernel, INITRAMFS: spec.initramfs}
    if memory is not None:
        shared[_MEMORY] = memory

    def name(inside: str) -> str:
        return inside if own_root else str(shared.get(inside, ""))

    files = Files(
        kernel=name(KERNEL),
        initramfs=name(INITRAMFS),
        rootfs=name(ROOTFS),
        scratch_base=name(SCRATCH_BASE),
        memory=name(_MEMORY) if memory is not None else None,
    )
    return files, shared


def _kept(fds: Descriptors) -> tuple[int, ...]:
    own = (fds.qmp, fds.agent, fds.disk, fds.disk_reader, *fds.layers)
    return own if fds.state is None else (*own, fds.state)


def _limits(spec: MachineSpec, given: Given) -> dict[str, int]:
    return {
        "nofile": given.fds.console + 512,
        "core": 0,
        # All of the disk written, each cluster once, and its tables; the memory is a file too.
        "fsize": max(spec.scratch_mib * 9 // 8 + 64, spec.memory_mib) * _MIB,
        "as": (spec.memory_mib + _ADDRESS_SPACE_MIB) * _MIB,
    }
