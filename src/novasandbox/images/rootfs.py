"""The root image of a template whose source is Debian: packages, unpacked and made to work."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from novasandbox.errors import InvalidConfig, TemplateBuildFailed
from novasandbox.images import ext4
from novasandbox.images.bytecode import compile_library
from novasandbox.images.configure import configure
from novasandbox.images.deb import BadPackage
from novasandbox.images.packages import BadIndex, Package, Unsatisfiable
from novasandbox.images.progress import Progress, quiet
from novasandbox.images.tree import remove_tree
from novasandbox.images.unpack import BadTree, Tree, prepare, unpack
from novasandbox.images.work import Stop, in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from novasandbox.images.apt import Archive
    from novasandbox.images.packages import Index
    from novasandbox.images.store import Artifact, Store

IMAGE = "rootfs.ext4"
_REVISION = 2  # of what this file and configure.py make of the packages
_EPOCH = 1_700_000_000
# It would convert a root with an unmerged /usr, and draws all of perl in.
_NEVER = ("usrmerge",)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DebianRoot:
    """What root image is wanted.

    packages: beside Debian's essential ones. exclude: packages that nothing draws in.
    user: the name of the account with uid 1000.
    """

    suite: str
    packages: tuple[str, ...]
    exclude: tuple[str, ...]
    user: str
    arch: str

    def inputs(self) -> dict[str, object]:
        """It as plain data, the key under which the result is remembered."""
        return {
            "kind": "rootfs",
            "revision": _REVISION,
            "suite": self.suite,
            "packages": sorted(self.packages),
            "exclude": sorted(self.exclude),
            "user": self.user,
            "arch": self.arch,
        }


async def obtain(
    store: Store,
    wanted: DebianRoot,
    open_index: Callable[[], Awaitable[tuple[Archive, Index]]],
    *,
    fresh: bool = False,
    progress: Progress = quiet,
) -> Artifact:
    """The root image, from the store or built.

    open_index: gives the archive and the release's packages; called only when needed.
    fresh: ask the archive for newer packages also where there is an image already.

    Raises InvalidConfig where a package does not exist, TemplateBuildFailed,
    DownloadFailed, HostResourceExhausted.
    """

    async def make() -> Artifact:
        archive, index = await open_index()
        packages = await asyncio.to_thread(_resolve, index, wanted)
        installed = sum(package.installed_size for package in packages)

        async def build(folder: Path) -> None:
            await _build(folder, wanted, archive, packages, progress)

        made_from = {
            **wanted.inputs(),
            "resolved": {package.name: package.sha256 for package in packages},
        }
        return await store.obtain(
            "rootfs",
            made_from,
            build,
            needed=int(installed * 2.5) + sum(package.size for package in packages),
            thorough=fresh,
            progress=progress,
        )

    return await store.recall(dict(wanted.inputs()), make, fresh=fresh, progress=progress)


def _resolve(index: Index, wanted: DebianRoot) -> list[Package]:
    exclude = {*wanted.exclude, *_NEVER}
    essential = sorted(index.essential - exclude)
    try:
        return index.closure([*wanted.packages, *essential], exclude)
    except Unsatisfiable as error:
        raise InvalidConfig(
            f"The template's packages are not all in Debian {wanted.suite}",
            why=str(error),
            fix="Correct source.packages in the template",
        ) from error
    except BadIndex as error:
        raise TemplateBuildFailed(
            "The archive's package index cannot be read", step="resolving", why=str(error)
        ) from error


async def _build(
    folder: Path,
    wanted: DebianRoot,
    archive: Archive,
    packages: list[Package],
    progress: Progress,
) -> None:
    files = await archive.fetch(packages, "fetching packages", progress)
    tree = Tree(folder / "tree")
    total = len(packages)

    def fill(stop: Stop) -> None:
        def tell(done: int) -> None:
            stop.check()
            progress("unpacking packages", done, total)

        prepare(tree, wanted.arch)
        unpack(tree, list(zip(packages, files, strict=True)), tell)
        progress("configuring", 0, 1)
        configure(tree, wanted.arch, wanted.user)
        progress("configuring", 1, 1)

    try:
        await in_thread(fill)
    except (BadPackage, BadTree) as error:
        raise TemplateBuildFailed(
            "A package cannot be unpacked", step="unpacking packages", why=str(error)
        ) from error
    progress("compiling Python's library", 0, 1)
    if not_done := await compile_library(tree, wanted.arch):
        log.warning(not_done)
    progress("compiling Python's library", 1, 1)
    progress("making the image", 0, 1)
    await ext4.make_from_tree(tree, folder / IMAGE, label="root", epoch=_EPOCH)
    await asyncio.to_thread(remove_tree, tree.root)
    listing = {package.name: package.version for package in packages}
    (folder / "packages.json").write_text(json.dumps(listing, indent=1, sort_keys=True))
    progress("making the image", 1, 1)
