"""Choosing the kernel modules that a guest needs, in the order in which they load."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from novasandbox.images import compression, elf

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ESSENTIAL = ("virtio_console", "virtio_blk", "ext4", "overlay")
"""Without these no guest of ours is of use, whatever the hypervisor."""

TRANSPORTS = {
    "pci": ("virtio_pci",),
    "mmio": ("virtio_mmio",),
    "vsock": ("vmw_vsock_virtio_transport",),
}
"""What a hypervisor may need beside the essential ones, by the name that it asks with."""

OPTIONAL = ("virtio_rng", "vmgenid", "pvpanic_pci", "pvpanic_mmio", "virtio_balloon")
"""Loaded where the kernel has them and somebody asks for them."""

WANTED = (*ESSENTIAL, *(name for names in TRANSPORTS.values() for name in names), *OPTIONAL)
_SUFFIX = re.compile(r"\.ko(\.(xz|zst|gz))?$")
_LIMIT = 64 << 20


class MissingModule(LookupError):
    """The kernel neither has a needed driver built in nor brings it as a module."""


@dataclass(frozen=True)
class Modules:
    """The modules of one kernel: files by name, and the names of those that are built in."""

    files: dict[str, Path]
    builtin: frozenset[str]

    @classmethod
    def of(cls, folder: Path) -> Modules:
        """The modules below a folder in any depth, and its `modules.builtin`."""
        files = {
            module_name(path.name): path
            for path in sorted(folder.rglob("*.ko*"))
            if _SUFFIX.search(path.name)
        }
        return cls(files, frozenset(_builtin(folder)))

    def read(self, name: str) -> bytes:
        """A module's content, unpacked.

        Raises NotElf or BadCompression where it is damaged.
        """
        return compression.decompress(self.files[name].read_bytes(), _LIMIT)

    def load_order(self, needed: Iterable[str], optional: Iterable[str] = ()) -> list[str]:
        """Names of modules to load, each after all that it depends on; built-in ones left out.

        optional: taken where the kernel has them, ignored where not.

        Raises MissingModule and names all that is missing.
        """
        order: list[str] = []
        missing: list[str] = []

        def visit(name: str, chain: tuple[str, ...]) -> None:
            if name in order or name in self.builtin or name in chain:
                return
            if name not in self.files:
                missing.append(" for ".join((name, *reversed(chain))))
                return
            for depends in elf.modinfo(self.read(name)).get("depends", []):
                for other in filter(None, depends.split(",")):
                    visit(module_name(other), (*chain, name))
            order.append(name)

        for name in needed:
            visit(name, ())
        if missing:
            raise MissingModule(
                f"the kernel has no {', '.join(missing)}, neither built in nor as a module"
            )
        for name in optional:
            before = list(order)
            visit(name, ())
            if missing:
                order, missing = before, []
        return order


def module_name(file: str) -> str:
    """The kernel's own name of a module, in which `-` is `_`."""
    return _SUFFIX.sub("", PurePosixPath(file).name).replace("-", "_")


def _builtin(folder: Path) -> list[str]:
    return [
        module_name(line)
        for path in folder.rglob("modules.builtin")
        for line in path.read_text(encoding="utf-8", errors="replace").split()
    ]
