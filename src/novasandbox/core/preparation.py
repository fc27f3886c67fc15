"""From a configuration to the files that a machine boots from."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from novasandbox.core.ground import Ground
from novasandbox.core.hypervisor import DEFAULT_TEMPLATE, SandboxConfig
from novasandbox.errors import InvalidConfig, SnapshotInvalid

if TYPE_CHECKING:
    from novasandbox.core.template import Template
    from novasandbox.images.locks import Hold


@dataclass(frozen=True)
class Prepared:
    """What a machine needs of files; they are held against removal until the block ends.

    kernel, initramfs, rootfs, scratch: paths. ground: the same by their lasting names, and
    what the template sets for every command. template: None for what was made earlier.
    """

    ground: Ground
    kernel: Path
    initramfs: Path
    rootfs: Path
    scratch: Path
    holds: tuple[Hold, ...]
    template: Template | None = None

    @property
    def hold_fds(self) -> tuple[int, ...]:
        """Descriptors that a machine keeps, to hold the files for its own life."""
        return tuple(hold.fileno() for hold in self.holds)

    def __enter__(self) -> Prepared:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hold in self.holds:
            hold.close()


async def prepare(config: SandboxConfig) -> Prepared:
    """Find or build everything that `config` needs.

    Raises TemplateNotFound, TemplateBuildFailed, DownloadFailed, HostResourceExhausted, and
    InvalidConfig when the template needs more than it is given.
    """
    # pydantic is loaded with these, and `import novasandbox` stays light.
    from novasandbox.core.template_manager import TemplateManager
    from novasandbox.images import scratch

    manager = TemplateManager(kernel=Path(config.kernel) if config.kernel else None)
    name = config.template or DEFAULT_TEMPLATE
    artifacts = await manager.artifacts(name)
    least = artifacts.template.minimum_memory_mib
    if config.memory_mib < least:
        raise InvalidConfig(
            f"memory_mib={config.memory_mib} is too small for template {name!r}",
            fix=f"It needs at least {least} MiB to boot.",
        )
    disk = await scratch.obtain(manager.store, config.disk_mib)
    hold = await asyncio.to_thread(manager.hold, artifacts)
    objects = manager.store.objects
    image = disk.path / scratch.IMAGE
    ground = Ground(
        template=name,
        user=artifacts.template.user,
        cwd=artifacts.template.workdir,
        env=artifacts.template.env,
        bundle=artifacts.key,
        kernel=str(artifacts.kernel.relative_to(objects)),
        initramfs=str(artifacts.initramfs.relative_to(objects)),
        rootfs=str(artifacts.rootfs.relative_to(objects)),
        scratch=str(image.relative_to(objects)),
    )
    return Prepared(
        ground=ground,
        kernel=artifacts.kernel,
        initramfs=artifacts.initramfs,
        rootfs=artifacts.rootfs,
        scratch=image,
        holds=(hold,),
        template=artifacts.template,
    )


def stand_on(ground: Ground) -> Prepared:
    """The files of a ground that was kept in a record.

    Raises SnapshotInvalid where one of them is missing or damaged.
    """
    from novasandbox.images.store import Store

    store = Store()
    holds: list[Hold] = []
    try:
        for key in sorted(ground.keys):
            holds.append(store.hold(key))
            if store.find(key) is None:
                raise FileNotFoundError(key)
    except FileNotFoundError as error:
        for hold in holds:
            hold.close()
        raise SnapshotInvalid(
            "what the snapshot stands on is missing or damaged",
            why=f"{error.args[-1]} of the template {ground.template!r} is not in the store",
            fix="It cannot be restored any more: remove it.",
        ) from error
    return Prepared(
        ground=ground,
        kernel=store.objects / ground.kernel,
        initramfs=store.objects / ground.initramfs,
        rootfs=store.objects / ground.rootfs,
        scratch=store.objects / ground.scratch,
        holds=tuple(holds),
    )
