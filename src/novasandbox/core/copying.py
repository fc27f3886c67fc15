"""Saving a sandbox that runs: its snapshot, its children, its sleep.

What is saved is one moment: memory, devices and disk, while the vCPUs stand still. Of the
memory only what differs from the template's is written, of the disk nothing at all: what
was written so far becomes a layer that is shared (`core/layers.py`).
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from novasandbox.core import layers, provider_choice, registry, snapshots
from novasandbox.core.ground import MEMORY_KIND, Ground
from novasandbox.core.hypervisor import MEMORY, STATE, Machine, SandboxState
from novasandbox.core.preparation import Prepared, stand_on
from novasandbox.core.registry import Record
from novasandbox.core.snapshots import Kept, Snapshot
from novasandbox.core.template_snapshot import Origin
from novasandbox.core.whole import whole
from novasandbox.errors import NovaError, SnapshotInvalid

if TYPE_CHECKING:
    from novasandbox.core.holder import Holder


async def take(holder: Holder, folder: Path) -> Ground:
    """Save a sandbox into `folder` and let it go on; gives what a copy of it stands on.

    Raises OperationFailed, OSError, VmmCrashed; the sandbox is then as it was.
    """
    top = holder.record.directory / f"{secrets.token_hex(8)}.qcow2"
    try:
        async with holder.still(lambda machine: machine.ready_layer(top)) as machine:
            # Who is cancelled removes the folder, and must not do so under a thread that writes.
            await whole(machine.save(folder))
            # A layer that is written and that no record names would be lost.
            ground = await whole(_freeze(holder, machine, top))
    except BaseException:
        await whole(_drop(holder, top))
        raise
    await asyncio.to_thread(layers.settle, ground.own_layers[-1])
    return await with_memory(ground, folder)


async def _drop(holder: Holder, layer: Path) -> None:
    """Saving has failed: a layer that was made ready, and not laid on, goes."""
    if not layer.exists() or disk_of(holder.record) == layer:
        return
    with suppress(NovaError):
        if (await holder.require_machine().disk_layers())[-1] == layer.stem:
            return
    layer.unlink(missing_ok=True)


async def _freeze(holder: Holder, machine: Machine, top: Path) -> Ground:
    """Share what the sandbox wrote to its disk so far; it writes to a new layer."""
    record = holder.record
    ground, disk = ground_of(record), disk_of(record)
    layer = await asyncio.to_thread(layers.leave, disk)
    failure: Exception | None = None
    try:
        await machine.freeze_disk(top)
    except Exception as error:
        # It may have been done all the same: then what the machine says of its disk counts.
        if not await _writes_to(machine, top):
            await asyncio.to_thread(registry.sweep, (layer,))
            raise
        failure = error
    ground = ground.with_layer(layer)
    # Not `record`: a timeout may have been set meanwhile, or a port exposed.
    holder.record = registry.change(holder.record, ground=ground.as_data(), disk=top.stem)
    with suppress(OSError):
        disk.unlink()
    if failure is not None:
        raise failure
    return ground


async def _writes_to(machine: Machine, disk: Path) -> bool:
    try:
        return (await machine.disk_layers())[-1:] == (disk.stem,)
    except NovaError:
        return False  # It is gone.


async def with_memory(ground: Ground, folder: Path) -> Ground:
    """What a copy stands on: memory that was written whole becomes an artifact, to be shared."""
    memory = folder / MEMORY
    if not memory.exists():
        return ground
    from novasandbox.images.store import Store

    async def build(place: Path) -> None:
        memory.rename(place / MEMORY)

    artifact = await Store().obtain(MEMORY_KIND, {"id": secrets.token_hex(16)}, build)
    return replace(ground, memory=f"{artifact.key}/{MEMORY}")


async def snapshot(holder: Holder, name: str | None) -> Snapshot:
    """Keep this moment of a sandbox under a name or an id."""
    await asyncio.to_thread(snapshots.check_name, name)
    async with holder.merging.put_off():
        return await _snapshot(holder, name)


async def _snapshot(holder: Holder, name: str | None) -> Snapshot:
    folder = snapshots.new_folder()
    ground = None
    try:
        created = time.time()
        ground = await take(holder, folder)
        for layer in ground.own_layers[-1:]:
            await asyncio.to_thread(layers.make_sure, layer)
        kept = Kept(
            id=snapshots.new_id(),
            name=name,
            parent=holder.record.origin,
            sandbox=holder.id,
            created=created,
            provider=str(holder.record.provider),
            signature=await signature(holder.record, ground),
            ground=ground,
            config=dict(holder.record.config),
        )
        await whole(asyncio.to_thread(registry.keep_snapshot, folder, kept))
    except BaseException:
        await whole(give_back(folder, ground))
        raise
    async with holder.moving:
        # Asleep by now it may be another's, and ended it has no record.
        if holder.failure is None and holder.state in (SandboxState.RUNNING, SandboxState.PAUSED):
            with suppress(OSError):  # The snapshot is kept, whatever comes of this.
                holder.record = registry.change(holder.record, origin=kept.id)
    return kept.public


@asynccontextmanager
async def moment(holder: Holder) -> AsyncIterator[tuple[Prepared, Origin]]:
    """A sandbox saved for as long as the block lasts, to make children from."""
    folder = snapshots.new_folder()
    ground = None
    try:
        async with holder.merging.put_off():
            ground = await take(holder, folder)
            with await asyncio.to_thread(stand_on, ground) as prepared:
                yield prepared, origin_of(ground, folder)
    finally:
        # What it stands on stays where children were made.
        await whole(give_back(folder, ground))


async def give_back(folder: Path, ground: Ground | None) -> None:
    """Remove what was saved into `folder`, and what only a copy of it would have stood on."""
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    if ground is not None:
        await asyncio.to_thread(registry.let_go_of, ground)


@asynccontextmanager
async def of_snapshot(kept: Kept) -> AsyncIterator[tuple[Prepared, Origin]]:
    """What a copy of a snapshot is made from. Raises SnapshotInvalid."""
    await asyncio.to_thread(snapshots.check, kept)
    with await asyncio.to_thread(stand_on, kept.ground) as prepared:
        of_what = f"the snapshot {kept.name or kept.id}"
        await check_signature(kept.provider, kept.signature, prepared, of_what)
        yield prepared, origin_of(kept.ground, kept.folder)


def origin_of(ground: Ground, folder: Path) -> Origin:
    """What was saved into `folder`. Raises SnapshotInvalid where a layer is not whole."""
    from novasandbox.images.store import Store

    return Origin(
        ground=ground,
        state=folder / STATE,
        memory=Store().objects / ground.memory if ground.memory else None,
        layers=tuple(
            layers.check(layer) if "/" not in layer else Store().objects / layer
            for layer in ground.layers
        ),
    )


async def found_disk(machine: Machine, record: Record) -> dict[str, Any]:
    """What a record must say of the disk of a machine that was taken over.

    Whoever held it may have died after a new layer was laid on, or some were merged, and
    before he wrote it down.
    """
    if record.disk is None:
        return {}
    *below, disk = await machine.disk_layers()
    ground = ground_of(record)
    known = ground if disk == record.disk else ground.with_layer(record.disk)
    if known is not ground:
        await asyncio.to_thread(layers.settle, record.disk)
    found = known.only(below)
    return {} if found == ground else {"ground": found.as_data(), "disk": disk}


def ground_of(record: Record) -> Ground:
    """What a sandbox with a machine stands on. Raises SnapshotInvalid for an unreadable one."""
    ground = Ground.load(record.ground)
    if ground is None or record.disk is None:
        raise SnapshotInvalid(
            "the sandbox cannot be saved",
            why="its record does not say what it stands on",
            sandbox_id=record.id,
        )
    return ground


def disk_of(record: Record) -> Path:
    """The file of a sandbox's own layer."""
    return record.directory / f"{record.disk}.qcow2"


async def signature(record: Record, ground: Ground) -> dict[str, Any]:
    """What a sandbox's machine depends on (`BaseHypervisor.signature`)."""
    provider, sizes = provider_choice.load(str(record.provider)), record.settings
    with await asyncio.to_thread(stand_on, ground) as prepared:
        found = await provider.signature(prepared.kernel, sizes.vcpus, sizes.memory_mib)
    return dict(found)


async def check_signature(
    provider_name: str, known: Mapping[str, Any] | None, prepared: Prepared, of_what: str
) -> None:
    """Raise SnapshotInvalid where a saved machine does not fit this host any more."""
    provider = provider_choice.load(provider_name)
    saved = dict(known or {})
    vcpus, memory_mib = int(saved.get("vcpus", 1)), int(saved.get("memory_mib", 0))
    current = dict(await provider.signature(prepared.kernel, vcpus, memory_mib))
    differs = sorted(n for n in {*saved, *current} if saved.get(n) != current.get(n))
    if differs:
        raise SnapshotInvalid(
            f"{of_what} does not fit this host any more",
            why="; ".join(f"{n}: {saved.get(n)!r} then, {current.get(n)!r} now" for n in differs),
            fix="Go back to the hypervisor and host that it was made with, or make it anew.",
        )
