"""How a sandbox's machine comes to be: copied from a saved guest, else booted from its kernel."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from novasandbox.core.booting import boot, restore
from novasandbox.core.ground import Ground
from novasandbox.core.hypervisor import BaseHypervisor, Machine, MachineSpec, SandboxConfig
from novasandbox.core.owner import owner_descriptor
from novasandbox.core.preparation import Prepared
from novasandbox.core.template_snapshot import Origin
from novasandbox.errors import (
    BootFailed,
    GuestPanicked,
    GuestUnreachable,
    ProviderUnavailable,
    VmmCrashed,
)
from novasandbox.guest.channel import Channel

log = logging.getLogger(__name__)

_FALLS_BACK = (BootFailed, GuestPanicked, GuestUnreachable, ProviderUnavailable, VmmCrashed)


@dataclass(frozen=True)
class Place:
    """Where a machine is made, and for whom.

    config: its sizes. open_channel: told of each machine whose process runs, and whether its
    guest had another holder before.
    """

    id: str
    directory: Path
    config: SandboxConfig
    open_channel: Callable[[Machine, bool], Channel]

    def new_disk(self) -> Path:
        """The file of a layer that does not exist yet."""
        return self.directory / f"{secrets.token_hex(8)}.qcow2"


@dataclass(frozen=True)
class Made:
    """A machine whose guest answers. ground: what it stands on. disk: its own layer."""

    machine: Machine
    channel: Channel
    ground: Ground
    disk: Path


def is_strict(config: SandboxConfig) -> bool:
    """Whether a host that cannot give every part of the jail is refused."""
    return os.environ.get("NOVA_STRICT_JAIL") == "1" if config.strict is None else config.strict


async def make(
    provider: BaseHypervisor, place: Place, prepared: Prepared, origin: Origin | None
) -> Made:
    """A copy of the template's guest, or where that cannot be had one that boots.

    Raises what `booting.boot` raises. Whatever goes wrong, no machine is left.
    """
    if origin is not None:
        try:
            return await copy(provider, place, prepared, origin)
        except _FALLS_BACK as error:
            log.warning("no copy could be made, and %s is booted: %s", place.id, error)
    disk = place.new_disk()
    owner = owner_descriptor()
    try:
        spec = _spec(place, prepared, disk, owner)
        machine, channel = await boot(
            provider, spec, lambda machine: place.open_channel(machine, False)
        )
    finally:
        _close(owner)
    return Made(machine, channel, prepared.ground, disk)


async def copy(
    provider: BaseHypervisor,
    place: Place,
    prepared: Prepared,
    origin: Origin,
    disk: Path | None = None,
) -> Made:
    """A machine that goes on where a saved one stood.

    disk: its own layer, where it has one already. Raises what `booting.restore` raises.
    """
    own = disk or place.new_disk()
    owner = owner_descriptor()
    try:
        spec = _spec(place, prepared, own, owner, origin)
        machine, channel = await restore(
            provider,
            spec,
            origin.state,
            origin.memory,
            lambda machine: place.open_channel(machine, True),
        )
    except BaseException:
        if disk is None:
            await asyncio.to_thread(own.unlink, missing_ok=True)
        raise
    finally:
        _close(owner)
    return Made(machine, channel, origin.ground, own)


def _spec(
    place: Place,
    prepared: Prepared,
    disk: Path,
    owner: int | None,
    origin: Origin | None = None,
) -> MachineSpec:
    held = (origin.hold.fileno(),) if origin is not None and origin.hold is not None else ()
    config = place.config
    return MachineSpec(
        id=place.id,
        run_dir=place.directory,
        kernel=prepared.kernel,
        initramfs=prepared.initramfs,
        rootfs=prepared.rootfs,
        scratch_base=prepared.scratch,
        scratch_mib=config.disk_mib,
        disk=disk,
        layers=origin.layers if origin is not None else (),
        vcpus=config.vcpus,
        memory_mib=config.memory_mib,
        owner_fd=owner,
        hold_fds=(*prepared.hold_fds, *held),
        strict=is_strict(config),
    )


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
