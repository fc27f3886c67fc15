"""Sandboxes that lie on disk: put to sleep by their holder, woken by whoever wants them next.

Asleep, a sandbox has no process. Its record says HIBERNATED, and that one write is the
moment at which it is: before it the machine goes on as if nothing had been, after it the
saved state counts. What a woken machine writes to its disk goes to a new layer, so that the
saved state stays whole until the sandbox runs again.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from novasandbox.core import copying, layers, registry
from novasandbox.core.copying import disk_of, ground_of
from novasandbox.core.ground import Ground, layer_path
from novasandbox.core.hypervisor import STATE, SandboxState, require_state
from novasandbox.core.idle import IDLE, TIMEOUT, NotDue
from novasandbox.core.owner import Owner
from novasandbox.core.preparation import Prepared, stand_on
from novasandbox.core.registry import Record
from novasandbox.core.snapshots import Kept
from novasandbox.core.template_snapshot import Origin
from novasandbox.core.whole import whole
from novasandbox.errors import IllegalTransition, SnapshotInvalid

if TYPE_CHECKING:
    from novasandbox.core.holder import Holder

log = logging.getLogger(__name__)

_POLL = 0.02


async def hibernate(
    holder: Holder, *, rests: str | None = None, is_due: Callable[[], bool] = lambda: True
) -> None:
    """Put a sandbox to sleep. Whatever goes wrong, it runs on as before.

    rests: why it goes to sleep by itself: `timeout` (awake again it has all of its time) or
    `idle`. is_due: whether it still shall, asked when nothing can come between any more.

    Raises NotDue where it no longer is, or a call came while an idle one was being saved.
    """
    folder = holder.record.directory / f"asleep-{secrets.token_hex(4)}"
    async with holder.merging.put_off(), holder.still(is_due=is_due) as machine:
        ground = ground_of(holder.record)
        try:
            folder.mkdir(mode=0o700)
            await whole(machine.save(folder))
            ground = await copying.with_memory(ground, folder)
            signature = await copying.signature(holder.record, ground)
            if rests == IDLE and holder.is_wanted:
                raise NotDue
            disk = disk_of(holder.record)
            await _lie_down(holder, folder, ground, disk, signature, rests=rests)
        except BaseException:
            await whole(copying.give_back(folder, ground))
            raise
        await holder.slumber.fall_asleep(asleep_error(holder.id))


async def go_back(holder: Holder, kept: Kept) -> None:
    """Put a sandbox to sleep as it was at a snapshot; what it is now is lost.

    Raises SnapshotInvalid for one that is damaged or does not fit this host; then it runs on.
    """
    folder = holder.record.directory / f"asleep-{secrets.token_hex(4)}"
    async with copying.of_snapshot(kept), holder.merging.put_off(), holder.still():
        left = ground_of(holder.record).own_layers
        *below, layer = kept.ground.layers
        disk = holder.record.directory / f"{layer}.qcow2"
        try:
            folder.mkdir(mode=0o700)
            await asyncio.to_thread(_link_saved, kept, folder, layer, disk)
            ground = replace(kept.ground, layers=tuple(below))
            await _lie_down(holder, folder, ground, disk, kept.signature, origin=kept.id)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise
        await holder.slumber.fall_asleep(asleep_error(holder.id), briefly=True)
        await asyncio.to_thread(registry.sweep, left)


def _link_saved(kept: Kept, folder: Path, layer: str, disk: Path) -> None:
    try:
        os.link(kept.folder / STATE, folder / STATE)
        if not disk.exists():
            os.link(layer_path(layer), disk)
    except FileNotFoundError as error:
        raise SnapshotInvalid("the snapshot was removed meanwhile", why=str(error)) from error


def asleep_error(identity: str) -> IllegalTransition:
    """What streams end with when a sandbox is put to sleep."""
    return IllegalTransition(
        "the sandbox was hibernated",
        current=SandboxState.HIBERNATED,
        required=(SandboxState.RUNNING,),
        sandbox_id=identity,
    )


def _remaining(record: Record, rests: str | None) -> float | None:
    if TIMEOUT in (rests, record.rests):
        timeout = record.config["timeout"]
        return None if timeout is None else float(timeout)
    return None if record.deadline is None else record.deadline - time.time()


async def _lie_down(
    holder: Holder,
    folder: Path,
    ground: Ground,
    disk: Path,
    signature: Mapping[str, Any],
    *,
    origin: str | None = None,
    rests: str | None = None,
) -> None:
    state_hash, disk_stamp, *_ = await asyncio.gather(
        asyncio.to_thread(_hash, folder / STATE),
        asyncio.to_thread(_seal_disk, disk),
        asyncio.to_thread(_sync, folder / STATE, *map(layer_path, ground.own_layers)),
    )
    if holder.failure is not None:
        raise holder.failure
    record = holder.record  # Only now: its timeout may have been changed meanwhile.
    was_paused = record.state is SandboxState.PAUSED and record.rests is None
    asleep = {
        "folder": folder.name,
        "signature": dict(signature),
        "hash": state_hash,
        "disk": disk_stamp,
        "remaining": _remaining(record, rests),
        "paused": was_paused and origin is None,
        "copied": origin is not None,
    }
    # The machine stays in the record: were we to die now, it would be ended by the next.
    holder.record = registry.change(
        record,
        state=SandboxState.HIBERNATED,
        ground=ground.as_data(),
        disk=disk.stem,
        origin=origin or record.origin,
        asleep=asleep,
        deadline=None,
        rests=rests,
        ports=record.ports if origin is not None or rests is not None else {},
    )


def is_asleep(record: Record) -> bool:
    """Whether it is to be woken. Raises IllegalTransition where it can neither be nor runs."""
    if record.state is SandboxState.HIBERNATED:
        return True
    require_state(record.state, (SandboxState.RUNNING, SandboxState.PAUSED), "wake it", record.id)
    return False


def is_in_hands(record: Record, holder: Holder | None) -> bool:
    """Whether another holder than this one has not yet let go of a hibernated sandbox.

    He ends its machine, or wakes it himself at once; what is written meanwhile he overwrites.
    """
    owner = record.owner
    is_own = holder is not None and holder.record.token == record.token
    return not is_own and owner is not None and owner.alive


@asynccontextmanager
async def saved(record: Record) -> AsyncIterator[tuple[Prepared, Origin]]:
    """What a sleeping sandbox is restored from. Raises SnapshotInvalid."""
    machine = Owner.load(record.machine)
    if machine is not None:
        machine.kill()
        await machine.wait()
    asleep = dict(record.asleep or {})
    folder = record.directory / str(asleep.get("folder"))
    ground, disk = ground_of(record), disk_of(record)
    await asyncio.to_thread(_check, record, folder / STATE, disk)
    await asyncio.to_thread(_collect, record, folder, disk)
    with await asyncio.to_thread(stand_on, ground) as prepared:
        await copying.check_signature(
            str(record.provider), asleep.get("signature"), prepared, record.id
        )
        layer = await asyncio.to_thread(_as_layer, disk)
        try:
            yield prepared, copying.origin_of(ground.with_layer(layer), folder)
        except BaseException:
            await asyncio.to_thread(registry.sweep, (layer,))
            raise


def forget(slept: Record) -> None:
    """Remove what woke a sandbox, once it runs."""
    folder = (slept.asleep or {}).get("folder")
    if folder:
        shutil.rmtree(slept.directory / str(folder), ignore_errors=True)
    disk_of(slept).unlink(missing_ok=True)


def _as_layer(disk: Path) -> str:
    layer = disk.stem
    if not layer_path(layer).exists():
        layers.leave(disk)
    layers.settle(layer)
    return layer


def _collect(record: Record, folder: Path, disk: Path) -> None:
    """Remove what wakings and hibernations left that were killed half-way."""
    for path in record.directory.iterdir():
        if path.name.startswith("asleep-") and path != folder:
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix == ".qcow2" and path != disk:
            path.unlink(missing_ok=True)


def _hash(path: Path) -> str:
    from novasandbox.images.manifest import content_hash

    return content_hash(path)


def _sync(*paths: Path) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _seal_disk(path: Path) -> list[int]:
    _sync(path)
    return layers.stamp(path)


def _check(record: Record, state: Path, disk: Path) -> None:
    """Raise SnapshotInvalid unless state and disk are what was saved."""
    asleep = dict(record.asleep or {})
    damaged = None
    try:
        if _hash(state) != asleep.get("hash"):
            damaged = state
        elif layers.stamp(disk) != asleep.get("disk"):
            damaged = disk
    except FileNotFoundError as error:
        damaged = error.filename
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise SnapshotInvalid(
            "the sandbox cannot be woken",
            why=f"what was saved cannot be read: {error}",
            fix="It sleeps on, and can be woken once the host's disk is mended.",
            sandbox_id=record.id,
        ) from error
    if damaged is not None:
        raise SnapshotInvalid(
            "the sandbox cannot be woken",
            why=f"{damaged} is missing, or not what was saved",
            fix=f"What it held is lost: nova kill {record.id}",
            sandbox_id=record.id,
        )


@asynccontextmanager
async def alone(identity: str) -> AsyncIterator[None]:
    """One process wakes a sandbox at a time."""
    record = await asyncio.to_thread(registry.get, identity)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(record.directory / "wake.lock", flags, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_POLL)
        yield
    finally:
        os.close(descriptor)
