"""The initramfs: the guest agent as /init, and just the modules that must load."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from novasandbox.errors import InvalidConfig
from novasandbox.images import elf
from novasandbox.images.compression import BadCompression
from novasandbox.images.cpio import CpioWriter
from novasandbox.images.manifest import sha256_of
from novasandbox.images.modules import ESSENTIAL, TRANSPORTS, MissingModule

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from novasandbox.images.kernel import KernelFiles
    from novasandbox.images.modules import Modules
    from novasandbox.images.store import Artifact, Store

IMAGE = "initramfs.cpio"
_REVISION = 1


async def obtain(
    store: Store,
    kernel: KernelFiles,
    agent: Path,
    *,
    transports: Sequence[str] = ("pci", "mmio"),
    optional: Sequence[str] = (),
) -> Artifact:
    """The initramfs for a kernel and an agent.

    transports: of `pci`, `mmio` and `vsock`, those that the hypervisor has.
    optional: names of further modules, taken where the kernel has them.

    Raises InvalidConfig where the kernel lacks a driver that no guest can do without.
    """
    for name in transports:
        if name not in TRANSPORTS:
            raise InvalidConfig(f"{name!r} is no transport", fix=f"It is one of {[*TRANSPORTS]}")
    made_from = {
        "revision": _REVISION,
        "kernel": kernel.key,
        "agent": await asyncio.to_thread(sha256_of, agent),
        "transports": sorted(transports),
        "optional": sorted(optional),
    }

    async def build(folder: Path) -> None:
        await asyncio.to_thread(write, folder / IMAGE, kernel.modules, agent, transports, optional)

    return await store.obtain("initramfs", made_from, build, needed=8 << 20)


def write(
    target: Path,
    modules: Modules,
    agent: Path,
    transports: Sequence[str],
    optional: Sequence[str] = (),
) -> None:
    """Write the archive, uncompressed: it is small, and unpacking is slow under emulation.

    Raises InvalidConfig where the kernel lacks a driver.
    """
    needed = [name for transport in transports for name in TRANSPORTS[transport]]
    try:
        order = modules.load_order([*needed, *ESSENTIAL], optional)
        contents = [modules.read(name) for name in order]
    except (MissingModule, elf.NotElf, BadCompression) as error:
        raise InvalidConfig(
            "This kernel cannot be a guest's",
            why=str(error),
            fix="Build it with these drivers, or put its modules into a folder `modules` beside it",
        ) from error
    with target.open("wb") as stream:
        archive = CpioWriter(stream)
        # The kernel opens /dev/console for init before init can mount anything.
        archive.directory("dev")
        archive.device("dev/console", 5, 1)
        for name in ("proc", "sys", "modules"):
            archive.directory(name)
        for number, (name, content) in enumerate(zip(order, contents, strict=True)):
            archive.file(f"modules/{number:02d}-{name}.ko", content)
        archive.file("init", agent.read_bytes(), 0o755)
        archive.close()
