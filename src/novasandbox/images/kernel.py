"""The guest's kernel: Debian's cloud kernel, or one of the user's own.

Debian's package is fetched, verified and unpacked, and never installed: its hooks would
touch the host's own boot. Of it only the kernel and the few modules that a guest may
need are kept. x86_64 is proven; aarch64 has not been booted by the authors.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from novasandbox.errors import DownloadFailed, InvalidConfig, TemplateBuildFailed
from novasandbox.images import deb, vmlinux
from novasandbox.images.apt import ARCHITECTURES
from novasandbox.images.elf import NotElf
from novasandbox.images.manifest import sha256_of
from novasandbox.images.modules import WANTED, MissingModule, Modules, module_name
from novasandbox.images.progress import Progress, quiet
from novasandbox.images.work import Stop, in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from novasandbox.images.apt import Archive
    from novasandbox.images.packages import Index, Package
    from novasandbox.images.store import Artifact, Store

DEFAULT_SUITE = "bookworm"
"""Linux 6.1, which boots on QEMU 7.2 as well as on 10; see docs on later ones."""

IMAGE = "vmlinux"
_REVISION = 1  # of what this file makes of a package
_NEEDED = 160 << 20
_VMLINUZ = re.compile(r"\./boot/vmlinuz-(.+)")
_BUILTIN = re.compile(r"\./(?:usr/)?lib/modules/[^/]+/modules\.builtin")
_MODULE = re.compile(r"\./(?:usr/)?lib/modules/[^/]+/kernel/(.+\.ko(?:\.xz|\.zst|\.gz)?)")


@dataclass(frozen=True)
class KernelFiles:
    """A kernel in the store: the image to start, and its modules."""

    key: str
    image: Path
    modules: Modules

    @classmethod
    def of(cls, artifact: Artifact) -> KernelFiles:
        """The files in an artifact of kind `kernel`."""
        return cls(artifact.key, artifact.path / IMAGE, _modules_of(artifact.path))


@functools.lru_cache(maxsize=8)
def _modules_of(artifact: Path) -> Modules:
    # What an artifact holds never changes, and every sandbox asks.
    return Modules.of(artifact)


async def debian_kernel(
    store: Store,
    open_index: Callable[[], Awaitable[tuple[Archive, Index]]],
    *,
    arch: str,
    suite: str = DEFAULT_SUITE,
    fresh: bool = False,
    progress: Progress = quiet,
) -> KernelFiles:
    """Debian's cloud kernel of a release, from the store or the archive.

    open_index: gives the archive and the release's packages; called only when needed.
    fresh: ask the archive also where there is one already.

    Raises DownloadFailed, TemplateBuildFailed, HostResourceExhausted.
    """

    async def make() -> Artifact:
        archive, index = await open_index()
        package = find_package(index, arch)

        async def build(folder: Path) -> None:
            (path,) = await archive.fetch([package], "fetching the kernel", progress)
            progress("unpacking the kernel", 0, 1)
            await in_thread(lambda stop: unpack(path, folder, arch, stop))
            progress("unpacking the kernel", 1, 1)

        made_from = {
            "revision": _REVISION,
            "arch": arch,
            "package": package.name,
            "version": package.version,
            "sha256": package.sha256,
        }
        return await store.obtain(
            "kernel",
            made_from,
            build,
            needed=_NEEDED,
            thorough=fresh,
            progress=progress,
        )

    inputs = {"kind": "kernel", "suite": suite, "arch": arch, "revision": _REVISION}
    return KernelFiles.of(await store.recall(inputs, make, fresh=fresh, progress=progress))


async def own_kernel(
    store: Store, path: Path, *, arch: str, progress: Progress = quiet
) -> KernelFiles:
    """A kernel of the user's own.

    path: a vmlinux, bzImage or arm64 Image. A folder `modules` beside it may hold its
        modules and its `modules.builtin`, in any depth (what `make modules_install`
        gives); without them all that a guest needs must be built in.

    Raises InvalidConfig where it is not a kernel for this architecture.
    """
    own = await asyncio.to_thread(_OwnKernel.of, path)
    made_from = {
        "revision": _REVISION,
        "arch": arch,
        "own": own.sha256,
        "modules": {name: sha256 for name, (_, sha256) in own.modules.items()},
    }

    async def build(folder: Path) -> None:
        def copy() -> None:
            (folder / IMAGE).write_bytes(_image(path, path.read_bytes(), arch))
            for name, (found, _) in own.modules.items():
                target = folder / "modules" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(found.read_bytes())

        await asyncio.to_thread(copy)

    return KernelFiles.of(
        await store.obtain("kernel", made_from, build, needed=own.size * 6, progress=progress)
    )


@dataclass(frozen=True)
class _OwnKernel:
    """A kernel of the user's as it lies there: modules are paths and hashes, by name."""

    sha256: str
    size: int
    modules: dict[str, tuple[Path, str]]

    @classmethod
    def of(cls, path: Path) -> _OwnKernel:
        if not path.is_file():
            raise InvalidConfig(
                f"{path} is not a kernel",
                why="there is no such file",
                fix="NOVA_KERNEL and --kernel take a vmlinux, a bzImage or an arm64 Image",
            )
        beside = path.parent / "modules"
        modules = {
            str(found.relative_to(beside)): (found, sha256_of(found))
            for found in sorted(beside.rglob("*"))
            if found.is_file() and _is_wanted(found.name)
        }
        return cls(sha256_of(path), path.stat().st_size, modules)


def find_package(index: Index, arch: str) -> Package:
    """The package with the kernel: what the metapackage `linux-image-cloud-…` depends on."""
    meta_name = f"linux-image-cloud-{ARCHITECTURES[arch]}"
    meta = index.get(meta_name)
    for clause in meta.clauses if meta else ():
        for name in clause:
            if name.startswith("linux-image-") and (found := index.get(name)):
                return found
    raise DownloadFailed(
        f"The archive has no kernel package {meta_name}",
        fix="Name a release that has one, or give a kernel with NOVA_KERNEL",
    )


def unpack(package: Path, folder: Path, arch: str, stop: Stop) -> None:
    """Take kernel, modules and `modules.builtin` out of a package into a folder.

    Raises TemplateBuildFailed where they are not in it.
    """
    image, version = b"", ""
    try:
        with deb.opened(package) as archive:
            for member in archive:
                stop.check()
                if not member.isfile() or (stream := archive.extractfile(member)) is None:
                    continue
                if match := _VMLINUZ.fullmatch(member.name):
                    image, version = stream.read(), match[1]
                elif _BUILTIN.fullmatch(member.name):
                    (folder / "modules.builtin").write_bytes(stream.read())
                elif match := _MODULE.fullmatch(member.name):
                    target = folder / "modules" / match[1]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(stream.read())
        (folder / IMAGE).write_bytes(vmlinux.kernel_image(image, arch))
        (folder / "kernel.json").write_text(json.dumps({"release": version, "arch": arch}))
        _keep_wanted(folder)
    except (deb.BadPackage, vmlinux.NotAKernel, NotElf, MissingModule) as error:
        raise TemplateBuildFailed(
            f"{package.name} is not a kernel package that can be used",
            step="unpacking the kernel",
            why=str(error),
        ) from error


def _keep_wanted(folder: Path) -> None:
    """Remove the modules that no guest of ours loads: most of a thousand."""
    modules = Modules.of(folder)
    keep = set(modules.load_order((), optional=WANTED))
    for name, path in modules.files.items():
        if name not in keep:
            path.unlink()
    for directory in sorted(folder.rglob("*"), reverse=True):
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()


def _is_wanted(file: str) -> bool:
    return file == "modules.builtin" or module_name(file) != file.replace("-", "_")


def _image(path: Path, data: bytes, arch: str) -> bytes:
    try:
        return vmlinux.kernel_image(data, arch)
    except vmlinux.NotAKernel as error:
        raise InvalidConfig(
            f"{path} is not a kernel for {arch}",
            why=str(error),
            fix="NOVA_KERNEL and --kernel take a vmlinux, a bzImage or an arm64 Image",
        ) from error
