"""Finding, building, keeping and collecting templates."""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from novasandbox import native
from novasandbox.core import registry
from novasandbox.core import template as templates
from novasandbox.core.home import home
from novasandbox.core.template import DebianSource, Template
from novasandbox.errors import (
    InvalidConfig,
    InvalidRequest,
    ProviderUnavailable,
    TemplateNotFound,
)
from novasandbox.images import initramfs, kernel, rootfs
from novasandbox.images.indices import Indices
from novasandbox.images.progress import Progress, quiet
from novasandbox.images.shelf import NotStored, Shelf
from novasandbox.images.store import Artifact, Store
from novasandbox.images.tree import remove_tree, tree_size

if TYPE_CHECKING:
    from novasandbox.images.kernel import KernelFiles
    from novasandbox.images.locks import Hold

PACKAGED = Path(__file__).parents[1] / "templates"
DEFAULT = "debian-python"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifacts:
    """What a guest of a template boots from; read-only files, shared by all its sandboxes.

    key: names them in the store; `TemplateManager.hold` keeps them there.
    """

    template: Template
    key: str
    arch: str
    kernel: Path
    initramfs: Path
    rootfs: Path


@dataclass(frozen=True)
class TemplateInfo:
    """A row of the list of templates.

    path: its JSON file. built: whether a sandbox of it can start without a build.
    size: bytes that its files take on the disk, kernel included; 0 where it is not built.
    """

    template: Template
    path: Path
    built: bool
    size: int


class TemplateManager:
    """Templates and what was built from them.

    paths: further JSON files, or folders of them, looked at before the user's own
        (`<home>/templates`) and those of the package.
    store: where artifacts are kept; the data directory's where not given.
    kernel: a kernel of one's own instead of Debian's; `NOVA_KERNEL` else.
    kernel_suite: the Debian release whose cloud kernel is taken.
    mirrors: addresses of Debian's archive; `NOVA_MIRROR` else, apt's configuration else.
    keys: a folder with the public keys that sign that archive, where they are not Debian's.
    agent: the guest agent's binary; the package's where not given.
    arch: the guest's architecture, `x86_64` or `aarch64`; this machine's where not given.
    transports, modules: see `images.initramfs.obtain`.
    """

    def __init__(
        self,
        *,
        paths: Sequence[Path] = (),
        store: Store | None = None,
        kernel: Path | None = None,
        kernel_suite: str = kernel.DEFAULT_SUITE,
        mirrors: Sequence[str] | None = None,
        keys: Path | None = None,
        agent: Path | None = None,
        arch: str | None = None,
        transports: Sequence[str] = ("pci", "mmio"),
        modules: Sequence[str] = (),
    ) -> None:
        own = os.environ.get("NOVA_KERNEL")
        self._paths = tuple(paths)
        self._store = store
        self._kernel = kernel or (Path(own) if own else None)
        self._kernel_suite = kernel_suite
        self._mirrors = mirrors
        self._keys = keys
        self._agent = agent
        self._arch = arch or native.host_arch()
        self._transports = tuple(transports)
        self._modules = tuple(modules)

    @property
    def store(self) -> Store:
        """The store of artifacts, made when it is first needed."""
        if self._store is None:
            self._store = Store()
        return self._store

    async def list(self) -> Sequence[TemplateInfo]:
        """All templates that are found, by name; a file that is not one is passed over."""
        files = await asyncio.to_thread(self._files)
        rows = []
        for name, path in sorted(files.items()):
            try:
                template = await asyncio.to_thread(templates.load, path)
            except InvalidConfig as error:
                log.warning("passing over the template %s: %s", name, error)
                continue
            built = await self._built(template)
            size = await asyncio.to_thread(_size, built) if built else 0
            rows.append(TemplateInfo(template, path, built is not None, size))
        return rows

    async def get(self, name: str) -> Template:
        """A template by name, or by the path of its file.

        Raises TemplateNotFound with the nearest names, InvalidConfig where it is damaged.
        """
        return await asyncio.to_thread(self._get, name)

    async def validate(self, template: str | Path | Mapping[str, Any]) -> Template:
        """The template in a file, or in what was read from one.

        Raises InvalidConfig and names each wrong field.
        """
        if isinstance(template, Mapping):
            return templates.parse(dict(template))
        return await asyncio.to_thread(templates.load, Path(template))

    async def build(
        self, name: str, *, force: bool = False, progress: Progress | None = None
    ) -> Artifacts:
        """Build a template, or take what is there.

        force: ask the mirror for newer packages, and read every byte of what is kept.
        progress: told what happens; see `images.progress.Progress`.

        Two builders at once: one builds, the other waits and uses the result. Cancelled
        or killed, a build leaves nothing that is ever used.

        Raises TemplateNotFound, InvalidConfig, DownloadFailed, TemplateBuildFailed,
        HostResourceExhausted.
        """
        template = await self.get(name)
        return await self._build(template, self.store, force=force, progress=progress or quiet)

    async def artifacts(self, name: str, *, progress: Progress | None = None) -> Artifacts:
        """What a sandbox of a template boots from; built where it is missing or damaged."""
        return await self.build(name, progress=progress)

    def hold(self, artifacts: Artifacts) -> Hold:
        """Keep artifacts from being collected, as long as the hold or its descriptor is open.

        Raises FileNotFoundError where they were collected meanwhile: build them anew.
        """
        return self.store.hold(artifacts.key)

    async def remove(self, name: str) -> dict[str, int]:
        """Remove what was built of a template, and what of that no other template uses.

        Gives the keys of what went, with their sizes in bytes. The JSON file stays.

        Raises TemplateNotFound; InvalidRequest where a sandbox uses it.
        """
        template = await self.get(name)
        built = await self._built(template)
        if built is None:
            return {}
        held = await asyncio.to_thread(self.store.is_held, built.key)
        if held or built.key in await asyncio.to_thread(registry.used_artifacts):
            raise InvalidRequest(
                f"The template {template.name} is in use",
                why="there are sandboxes or snapshots that were made from it",
                fix="nova ps and nova snapshot ls list them",
            )
        return await self.store.prune(await self._used(without=template.name))

    async def prune(self) -> dict[str, int]:
        """Remove artifacts that neither a template nor a sandbox uses, and old downloads.

        Gives the keys of what went, with their sizes in bytes.
        """
        removed = await self.store.prune(await self._used())
        downloads = self._downloads
        size = await asyncio.to_thread(tree_size, downloads)
        await asyncio.to_thread(remove_tree, downloads)
        return {**removed, **({"downloads": size} if size else {})}

    @property
    def _downloads(self) -> Path:
        return self.store.root.parent / "downloads"

    async def _build(
        self, template: Template, store: Store, *, force: bool = False, progress: Progress = quiet
    ) -> Artifacts:
        wanted = self._root(template)
        agent = self._agent or native.path("nova-agent", self._arch)
        with Indices(self._mirrors, self._keys, self._downloads, self._arch, progress) as indices:
            try:
                async with asyncio.TaskGroup() as group:
                    first = group.create_task(self._get_kernel(store, indices, force, progress))
                    second = group.create_task(
                        rootfs.obtain(
                            store,
                            wanted,
                            indices.of(wanted.suite),
                            fresh=force,
                            progress=progress,
                        )
                    )
            except ExceptionGroup as failed:
                error = failed.exceptions[0]
                raise error from error.__cause__
        files, root = first.result(), second.result()
        ram = await initramfs.obtain(
            store, files, agent, transports=self._transports, optional=self._modules
        )
        bundle = await _bundle(store, template, files, ram, root)
        return Artifacts(
            template=template,
            key=bundle.key,
            arch=self._arch,
            kernel=files.image,
            initramfs=ram.path / initramfs.IMAGE,
            rootfs=root.path / rootfs.IMAGE,
        )

    async def _get_kernel(
        self, store: Store, indices: Indices, force: bool, progress: Progress
    ) -> KernelFiles:
        if self._kernel is not None:
            return await kernel.own_kernel(store, self._kernel, arch=self._arch, progress=progress)
        return await kernel.debian_kernel(
            store,
            indices.of(self._kernel_suite),
            arch=self._arch,
            suite=self._kernel_suite,
            fresh=force,
            progress=progress,
        )

    def _root(self, template: Template) -> rootfs.DebianRoot:
        source = template.source
        if not isinstance(source, DebianSource):
            raise InvalidConfig(
                f"The template {template.name} cannot be built",
                why=f"its source is the OCI image {source.image}, and this version builds only "
                "sources of type debian",
                fix=f"Take {DEFAULT}, or a template of your own with such a source",
            )
        if template.steps:
            raise InvalidConfig(
                f"The template {template.name} cannot be built",
                why="it has steps, and this version runs none",
                fix="Name what it needs in source.packages",
            )
        return rootfs.DebianRoot(
            suite=source.suite,
            packages=source.packages,
            exclude=source.exclude,
            user=template.user if template.user != "root" else "user",
            arch=self._arch,
        )

    async def _built(self, template: Template) -> Artifacts | None:
        """What is built of a template; nothing is asked for or made."""
        shelf = Shelf(self.store.root.parent)
        try:
            return await self._build(template, shelf)
        except (NotStored, InvalidConfig, ProviderUnavailable):
            return None

    async def _used(self, without: str = "") -> set[str]:
        """The keys of what the templates that are found use, and sandboxes and snapshots."""
        files = await asyncio.to_thread(self._files)
        keys = await asyncio.to_thread(registry.used_artifacts)
        for name, path in files.items():
            try:
                built = await self._built(await asyncio.to_thread(templates.load, path))
            except InvalidConfig:
                continue
            if built and name != without:
                keys.add(built.key)
        return keys

    def _get(self, name: str) -> Template:
        if "/" in name or name.endswith(".json"):
            return templates.load(Path(name))
        files = self._files()
        if name not in files:
            near = difflib.get_close_matches(name, files, n=3, cutoff=0.5)
            known = ", ".join(near or sorted(files))
            raise TemplateNotFound(
                f"There is no template {name!r}",
                fix=f"Did you mean {' or '.join(near)}?" if near else f"There are: {known}",
            )
        return templates.load(files[name])

    def _files(self) -> dict[str, Path]:
        """Template files by name; what is named first hides what comes later."""
        found: dict[str, Path] = {}
        for place in (*self._paths, home() / "templates", PACKAGED):
            files = sorted(place.glob("*.json")) if place.is_dir() else [place]
            for path in files:
                if path.is_file():
                    found.setdefault(path.stem, path)
        return found


async def _bundle(
    store: Store, template: Template, files: KernelFiles, ram: Artifact, root: Artifact
) -> Artifact:
    """The artifact that stands for the three together, so that one hold keeps all."""
    text = template.model_dump_json(indent=1)
    parts = [files.key, ram.key, root.key]

    async def build(folder: Path) -> None:
        (folder / "template.json").write_text(text)

    return await store.obtain("template", {"parts": parts, "template": text}, build)


def _size(artifacts: Artifacts) -> int:
    files = (artifacts.kernel, artifacts.initramfs, artifacts.rootfs)
    return sum(path.stat().st_blocks * 512 for path in files)
