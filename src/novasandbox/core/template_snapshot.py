"""A template's snapshot: its guest, booted and warmed once, which every sandbox is a copy of.

It is an artifact like others, keyed by all that it depends on: what no longer fits is made
anew and never restored. Sizes other than the template's have one of their own, made when
they are first asked for; of those that nobody uses the oldest go.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from novasandbox.core import provider_choice, registry
from novasandbox.core.booting import boot
from novasandbox.core.ground import Ground
from novasandbox.core.hypervisor import (
    MEMORY,
    STATE,
    BaseHypervisor,
    Machine,
    MachineSpec,
    SandboxConfig,
)
from novasandbox.core.owner import owner_descriptor
from novasandbox.core.preparation import Prepared, prepare
from novasandbox.core.warming import warm, warmth
from novasandbox.errors import HostResourceExhausted, InvalidRequest, NovaError, SnapshotInvalid
from novasandbox.guest.channel import Channel

if TYPE_CHECKING:
    from novasandbox.images.locks import Hold
    from novasandbox.images.progress import Progress
    from novasandbox.images.store import Store

log = logging.getLogger(__name__)

KIND = "snapshot"
DISK = "disk.qcow2"
_REVISION = 1
# Of the sizes that were once asked for; each takes some 100 MiB.
_KEPT = 8
# Beside the guest's memory in use: its devices and what it wrote to its disk.
_ROOM = 192 << 20
_HOSTNAME = "nova"
# Seconds until what could not be made is tried again: twice as long each time.
_FIRST_PAUSE, _LONGEST_PAUSE = 30.0, 3600.0


@dataclass(frozen=True)
class _Failure:
    """until: by the monotonic clock."""

    pause: float
    until: float

    @classmethod
    def after(cls, earlier: _Failure | None) -> _Failure:
        pause = _FIRST_PAUSE if earlier is None else min(_LONGEST_PAUSE, 2 * earlier.pause)
        return cls(pause, time.monotonic() + pause)


_failed: dict[str, _Failure] = {}


@dataclass(frozen=True)
class Origin:
    """What copies are restored from; its files are held as long as the hold is open.

    ground: that of the copies. memory: None for one whose state holds all of it.
    """

    ground: Ground
    state: Path
    memory: Path | None
    layers: tuple[Path, ...]
    hold: Hold | None = None


async def make_ready(name: str, progress: Progress | None = None) -> bool:
    """Make the snapshot of a template in its own sizes; whether there is one.

    Raises as building the template does, and ProviderUnavailable.
    """
    from novasandbox.core.template_manager import TemplateManager

    resources = (await TemplateManager().get(name)).resources
    config = SandboxConfig(
        template=name,
        vcpus=resources.vcpus,
        memory_mib=resources.memory_mib,
        disk_mib=resources.disk_mib,
    )
    provider, _ = await provider_choice.choose("auto")
    told = progress or (lambda *_: None)
    with await prepare(config) as prepared:
        told(f"warming {name}", 0, 1)
        origin = await obtain(provider, prepared, config, progress)
        told(f"warming {name}", 1, 1)
    if origin is None or origin.hold is None:
        return False
    origin.hold.close()
    return True


async def obtain(
    provider: BaseHypervisor,
    prepared: Prepared,
    config: SandboxConfig,
    progress: Progress | None = None,
) -> Origin | None:
    """The snapshot for these sizes, made where it is missing; None where it cannot be made.

    Two askers at once: one makes it, the other waits.
    """
    from novasandbox.images.store import Store

    made_from = await _made_from(provider, prepared, config)
    store = Store()
    key = store.key(KIND, made_from)
    failure = _failed.get(key)
    if failure is not None and time.monotonic() < failure.until:
        return None
    try:
        hold = await _hold(store, key, made_from, provider, prepared, config, progress)
    except (HostResourceExhausted, InvalidRequest):
        raise
    except (NovaError, OSError) as error:
        _failed[key] = _Failure.after(failure)
        log.warning("template %s has no snapshot: %s", prepared.ground.template, error)
        return None
    _failed.pop(key, None)
    folder = store.objects / key
    # Its age counts from here on.
    os.utime(folder)
    await asyncio.to_thread(_evict, store)
    return Origin(
        ground=replace(prepared.ground, layers=(f"{key}/{DISK}",), memory=f"{key}/{MEMORY}"),
        state=folder / STATE,
        memory=folder / MEMORY,
        layers=(folder / DISK,),
        hold=hold,
    )


async def _made_from(
    provider: BaseHypervisor, prepared: Prepared, config: SandboxConfig
) -> dict[str, Any]:
    return {
        "revision": _REVISION,
        "parts": [prepared.ground.bundle],
        "scratch": prepared.ground.scratch,
        "machine": dict(await provider.signature(prepared.kernel, config.vcpus, config.memory_mib)),
        "warmth": warmth(prepared.template),
    }


async def _hold(
    store: Store,
    key: str,
    made_from: dict[str, Any],
    provider: BaseHypervisor,
    prepared: Prepared,
    config: SandboxConfig,
    progress: Progress | None,
) -> Hold:
    from novasandbox.images.progress import quiet

    async def build(folder: Path) -> None:
        await _Build(provider, prepared, config, folder).run()

    while True:
        await store.obtain(
            KIND,
            made_from,
            build,
            needed=min(config.memory_mib << 20, _ROOM),
            progress=progress or quiet,
        )
        try:
            return await asyncio.to_thread(store.hold, key)
        except FileNotFoundError:
            continue  # removed in the moment between


class _Build:
    """Boots, warms and saves one guest into an artifact's folder."""

    def __init__(
        self, provider: BaseHypervisor, prepared: Prepared, config: SandboxConfig, folder: Path
    ) -> None:
        self._provider = provider
        self._prepared = prepared
        self._folder = folder
        self._run_dir = folder / "run"
        self._config = config

    async def run(self) -> None:
        self._run_dir.mkdir(mode=0o700)
        owner = owner_descriptor()
        try:
            machine, channel = await boot(self._provider, self._spec(owner), _channel)
        finally:
            if owner is not None:
                os.close(owner)
        try:
            await warm(channel, self._prepared, hostname=_HOSTNAME)
            await channel.close()
            await machine.pause()
            await machine.save(self._folder)
        finally:
            await asyncio.shield(asyncio.ensure_future(_give_back(machine, channel)))
        from novasandbox.images.tree import remove_tree

        await asyncio.to_thread(remove_tree, self._run_dir)

    def _spec(self, owner: int | None) -> MachineSpec:
        prepared, config = self._prepared, self._config
        return MachineSpec(
            id=f"template-{secrets.token_hex(4)}",
            run_dir=self._run_dir,
            kernel=prepared.kernel,
            initramfs=prepared.initramfs,
            rootfs=prepared.rootfs,
            scratch_base=prepared.scratch,
            scratch_mib=config.disk_mib,
            disk=self._folder / DISK,
            vcpus=config.vcpus,
            memory_mib=config.memory_mib,
            owner_fd=owner,
            hold_fds=prepared.hold_fds,
        )


async def _give_back(machine: Machine, channel: Channel) -> None:
    await channel.close()
    await machine.kill()


def _channel(machine: Machine) -> Channel:
    return Channel(machine.dial, holder=secrets.token_bytes(16))


def _evict(store: Store) -> None:
    """Remove the oldest snapshots that nobody uses, beyond some."""
    found = [key for key in store.keys() if key.startswith(f"{KIND}-")]  # noqa: SIM118
    if len(found) <= _KEPT:
        return
    # Another process may remove some at this moment; the next one who makes one looks again.
    try:
        used = registry.used_artifacts()
        by_age = sorted(found, key=lambda key: (store.objects / key).stat().st_mtime)
    except (OSError, SnapshotInvalid):
        return
    for key in by_age[: len(found) - _KEPT]:
        if key not in used:
            store.remove(key)
