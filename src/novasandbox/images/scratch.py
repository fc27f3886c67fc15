"""What a sandbox's own disk starts from: an empty file system, made once a size and shared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from novasandbox.errors import InvalidConfig
from novasandbox.images import ext4

if TYPE_CHECKING:
    from pathlib import Path

    from novasandbox.images.store import Artifact, Store

IMAGE = "scratch.ext4"
MINIMUM_MIB = 16
MAXIMUM_MIB = 1 << 22
_REVISION = 1
_EPOCH = 1_700_000_000


async def obtain(store: Store, disk_mib: int) -> Artifact:
    """The empty ext4 image of a size; sparse, it takes a few MiB.

    Raises InvalidConfig where the size cannot be had, TemplateBuildFailed,
    HostResourceExhausted.
    """
    if not MINIMUM_MIB <= disk_mib <= MAXIMUM_MIB:
        raise InvalidConfig(
            f"disk_mib={disk_mib} cannot be had",
            why=f"a disk has {MINIMUM_MIB} to {MAXIMUM_MIB} MiB",
        )

    async def build(folder: Path) -> None:
        await ext4.make_empty(folder / IMAGE, disk_mib << 20, label="scratch", epoch=_EPOCH)

    made_from = {"revision": _REVISION, "mib": disk_mib}
    return await store.obtain("scratch", made_from, build, needed=8 << 20)
