"""`TemplateManager` without an event loop; `novasandbox.core.template_manager` explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from novasandbox.core import template_manager as core
from novasandbox.images.kernel import DEFAULT_SUITE
from novasandbox.sync.handle import Handle

if TYPE_CHECKING:
    from novasandbox.core.template import Template
    from novasandbox.core.template_manager import Artifacts, TemplateInfo
    from novasandbox.images.locks import Hold
    from novasandbox.images.progress import Progress
    from novasandbox.images.store import Store


class TemplateManager(Handle):
    """Templates and what was built from them; the arguments are those of its async twin."""

    def __init__(
        self,
        *,
        paths: Sequence[Path] = (),
        store: Store | None = None,
        kernel: Path | None = None,
        kernel_suite: str = DEFAULT_SUITE,
        mirrors: Sequence[str] | None = None,
        keys: Path | None = None,
        agent: Path | None = None,
        arch: str | None = None,
        transports: Sequence[str] = ("pci", "mmio"),
        modules: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._manager = core.TemplateManager(
            paths=paths,
            store=store,
            kernel=kernel,
            kernel_suite=kernel_suite,
            mirrors=mirrors,
            keys=keys,
            agent=agent,
            arch=arch,
            transports=transports,
            modules=modules,
        )

    @property
    def store(self) -> Store:
        """The store of artifacts, made when it is first needed."""
        return self._manager.store

    def list(self) -> Sequence[TemplateInfo]:
        """All templates that are found, by name; a file that is not one is passed over."""
        return self._call(self._manager.list)

    def get(self, name: str) -> Template:
        """A template by name, or by the path of its file.

        Raises TemplateNotFound with the nearest names, InvalidConfig where it is damaged.
        """
        return self._call(lambda: self._manager.get(name))

    def validate(self, template: str | Path | Mapping[str, Any]) -> Template:
        """The template in a file, or in what was read from one.

        Raises InvalidConfig and names each wrong field.
        """
        return self._call(lambda: self._manager.validate(template))

    def build(
        self, name: str, *, force: bool = False, progress: Progress | None = None
    ) -> Artifacts:
        """Build a template, or take what is there. Ctrl-C leaves nothing that is ever used.

        force: ask the mirror for newer packages, and read every byte of what is kept.
        progress: told what happens, in another thread.

        Raises TemplateNotFound, InvalidConfig, DownloadFailed, TemplateBuildFailed,
        HostResourceExhausted.
        """
        return self._call(lambda: self._manager.build(name, force=force, progress=progress))

    def artifacts(self, name: str, *, progress: Progress | None = None) -> Artifacts:
        """What a sandbox of a template boots from; built where it is missing or damaged."""
        return self._call(lambda: self._manager.artifacts(name, progress=progress))

    def hold(self, artifacts: Artifacts) -> Hold:
        """Keep artifacts from being collected, as long as the hold or its descriptor is open.

        Raises FileNotFoundError where they were collected meanwhile: build them anew.
        """
        return self._manager.hold(artifacts)

    def remove(self, name: str) -> dict[str, int]:
        """Remove what was built of a template, and what of that no other template uses.

        Raises TemplateNotFound; InvalidRequest where a sandbox uses it.
        """
        return self._call(lambda: self._manager.remove(name))

    def prune(self) -> dict[str, int]:
        """Remove artifacts that neither a template nor a sandbox uses, and old downloads."""
        return self._call(self._manager.prune)
