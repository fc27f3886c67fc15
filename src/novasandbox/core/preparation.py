"""From a configuration to the files that a machine boots from."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from novasandbox.core.hypervisor import DEFAULT_TEMPLATE, SandboxConfig
from novasandbox.errors import InvalidConfig

if TYPE_CHECKING:
    from novasandbox.images.locks import Hold


@dataclass(frozen=True)
class Prepared:
    """What a template gives a machine; its files are held against removal until the block ends.

    user, cwd, env: what the template sets for every command.
    """

    template: str
    user: str
    cwd: str
    env: Mapping[str, str]
    kernel: Path
    initramfs: Path
    rootfs: Path
    scratch: Path
    holds: tuple[Hold, ...]

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
    return Prepared(
        template=name,
        user=artifacts.template.user,
        cwd=artifacts.template.workdir,
        env=artifacts.template.env,
        kernel=artifacts.kernel,
        initramfs=artifacts.initramfs,
        rootfs=artifacts.rootfs,
        scratch=disk.path / scratch.IMAGE,
        holds=(hold,),
    )
