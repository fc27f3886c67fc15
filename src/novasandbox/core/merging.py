"""Keeping the chain of a disk's layers short, beside the work of the sandbox.

Each snapshot, fork and waking lays one more layer on a disk. What lies in the newest of them
is copied into the sandbox's own layer, while it runs, until the disk stands on few. No layer
is changed but its own, so nobody else notices, and what was saved stays what it was.

The record names at least the layers that the disk stands on: it is written after they are
merged and before any is removed. As long as something is being saved nothing is merged.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from novasandbox.core import copying, registry
from novasandbox.core.ground import Ground, layer_path, stem_of
from novasandbox.core.home import run_dir
from novasandbox.core.hypervisor import SandboxState
from novasandbox.core.registry import Record
from novasandbox.core.whole import whole
from novasandbox.errors import NovaError
from novasandbox.images.locks import locked

if TYPE_CHECKING:
    from novasandbox.core.holder import Holder

log = logging.getLogger(__name__)

# What many sandboxes share is copied only where a disk stands on more layers than these.
_MANY = 8
# With these it is saved no more before they are merged, for as long as that is given.
_TOO_MANY, _LONGEST = 24, 30.0
# So much is copied whatever it spares.
_SMALL = 8 << 20
# A sandbox that is at once put to sleep again, or ends, has no use of it.
_DELAY = 2.0
# Bytes a second. At twice as much a guest under emulation began to notice.
_SPEED = 32 << 20
# What is left free on the host's disk, where a guest could not even read without it.
_SPARE = 512 << 20


def how_many_stay(sizes: Sequence[int], is_shared: Sequence[bool], own: int) -> int:
    """How many of a disk's layers, from the oldest on, are not merged.

    sizes: their bytes, the oldest first, a template's left out. is_shared: whether others
    need them. own: bytes of the layer on top.

    A layer that is larger than all above it together stays, and what is below it. So those
    that stay are few, each less than half of the one below; and a byte is copied a few times
    only, since it comes to lie in a layer of twice the size.
    """
    stay, above = len(sizes), own
    for number in reversed(range(len(sizes))):
        if is_shared[number] and len(sizes) <= _MANY:
            break
        if sizes[number] <= above + _SMALL:
            stay = number
        above += sizes[number]
    return min(stay, _MANY)


class Merging:
    """Merges the layers of one sandbox, for its holder."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._wanted = False
        self._put_off = 0
        self._putting_off = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Merge soon, and again after each time that something was saved."""
        self._wanted = True
        idle = self._task is None or self._task.done()
        if idle and not self._put_off and self._layers():
            self._task = asyncio.create_task(self._run())

    async def end(self) -> None:
        """Merge no more; returns when nothing is copied."""
        self._wanted = False
        await self._call_off()

    @asynccontextmanager
    async def put_off(self) -> AsyncIterator[None]:
        """In this block nothing is merged, and the record says what the disk stands on.

        It is there for all of a saving, until what was saved is named in a record of its own.
        """
        self._put_off += 1
        try:
            async with self._putting_off:
                await self._call_off()
                # Else another saving is in its block already.
                if self._put_off == 1 and self._layers() >= _TOO_MANY:
                    await self._make_short()
            yield
        finally:
            self._put_off -= 1
            if self._wanted:
                self.begin()

    async def settle(self) -> None:
        """Write down what the disk stands on, and remove the layers that nobody needs any more.

        A merge that is under way is called off. Raises VmmCrashed, OperationFailed, OSError.
        """
        holder = self._holder
        before = set(copying.ground_of(holder.record).own_layers)
        found = await copying.found_disk(holder.require_machine(), holder.record)
        if found:
            holder.record = registry.change(holder.record, **found)
        gone = before - set(copying.ground_of(holder.record).own_layers)
        if gone:
            holder.note("merged", layers=len(gone))
            await asyncio.to_thread(registry.sweep, gone)

    def _layers(self) -> int:
        ground = Ground.load(self._holder.record.ground)
        return 0 if ground is None else len(ground.own_layers)

    async def _call_off(self) -> None:
        # It is kept until it is done: were the caller cancelled, the next one waits for it.
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        try:
            if self._layers() <= 2 * _MANY:
                await asyncio.sleep(_DELAY)
            # One at a time of all sandboxes of this user, so that many do no more to the host.
            async with locked(run_dir() / ".merge.lock"):
                if self._holder.state is SandboxState.RUNNING:
                    await self._merge(_SPEED)
        except (NovaError, OSError) as error:
            # That of a sandbox that ends is no news.
            if self._holder.failure is None:
                log.warning("layers of %s were not merged: %s", self._holder.id, error)

    async def _make_short(self) -> None:
        """Merge at once, before one more layer is laid on."""
        try:
            async with asyncio.timeout(_LONGEST):
                await self._merge(None)
        except (NovaError, OSError) as error:
            log.warning("%s has many layers that were not merged: %s", self._holder.id, error)

    async def _merge(self, speed: int | None) -> None:
        kept = await asyncio.to_thread(_kept, self._holder.record)
        if kept is None:
            return
        try:
            onto = stem_of(kept[-1]) if kept else None
            await self._holder.require_machine().merge_disk(onto, speed)
        finally:
            # Also where it was called off: it may have come to its end in that moment.
            await whole(self.settle())


def _kept(record: Record) -> tuple[str, ...] | None:
    """The layers that are not merged; None where there is nothing to merge, or no room for it."""
    ground, disk = copying.ground_of(record), copying.disk_of(record)
    own = ground.own_layers
    others = registry.used_layers(besides=record.id)
    sizes = [_allocated(layer_path(layer)) for layer in own]
    stay = how_many_stay(sizes, [layer in others for layer in own], _allocated(disk))
    needed = sum(sizes[stay:]) + _SPARE
    if stay == len(own) or shutil.disk_usage(disk.parent).free < needed:
        return None
    return ground.layers[: len(ground.layers) - len(own) + stay]


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512
