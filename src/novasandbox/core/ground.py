"""What a sandbox stands on: files that many share, by names that outlive this process.

A sandbox that sleeps, and a snapshot, keep these names in their records; whoever wakes them
finds the files again, and nobody removes them meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from novasandbox.core.home import home

MEMORY_KIND = "memory"
"""The kind of an artifact that holds the memory of a sandbox that was booted."""


@dataclass(frozen=True, slots=True)
class Ground:
    """The shared files of a machine, each as `KEY/NAME` in the store of artifacts.

    template: its name. user, cwd, env: what it sets for every command. bundle: the artifact
    that stands for kernel, initramfs and root. layers: of the disk, the oldest first: one of
    a template's snapshot as `KEY/NAME`, others by their ids (`core/layers.py`). memory: what
    the memory was restored from; None for a machine that was booted.
    """

    template: str
    user: str
    cwd: str
    bundle: str
    kernel: str
    initramfs: str
    rootfs: str
    scratch: str
    env: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    memory: str | None = None

    @property
    def keys(self) -> set[str]:
        """The artifacts that it needs."""
        named = (self.kernel, self.initramfs, self.rootfs, self.scratch, self.memory)
        shared = (each for each in self.layers if "/" in each)
        return {self.bundle, *(key_of(each) for each in (*named, *shared) if each)}

    @property
    def own_layers(self) -> tuple[str, ...]:
        """The ids of the layers that are no template's."""
        return tuple(each for each in self.layers if "/" not in each)

    @property
    def own_memory(self) -> str | None:
        """The artifact of its memory, where that is no template's."""
        key = key_of(self.memory) if self.memory else ""
        return key if key.startswith(f"{MEMORY_KIND}-") else None

    def with_layer(self, layer: str) -> Ground:
        """The same with one more layer on top."""
        return replace(self, layers=(*self.layers, layer))

    def only(self, layers: Collection[str]) -> Ground:
        """The same with those of its layers whose files have these names, without suffix."""
        return replace(self, layers=tuple(each for each in self.layers if stem_of(each) in layers))

    def as_data(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @classmethod
    def load(cls, data: Any) -> Ground | None:
        """From `as_data`'s result; None where it is none of ours."""
        if not isinstance(data, dict):
            return None
        try:
            return cls(**{**data, "layers": tuple(data["layers"])})
        except (KeyError, TypeError):
            return None


def key_of(name: str) -> str:
    """The artifact to which a file belongs."""
    return name.partition("/")[0]


def stem_of(layer: str) -> str:
    """The name of a layer's file, without suffix, by the layer's in `Ground.layers`."""
    return Path(layer).stem


def objects() -> Path:
    """The folder of the store in which artifacts lie."""
    from novasandbox.images.store import Store

    return Store().objects


def layer_path(layer: str) -> Path:
    """Where a layer lies, by its name in `Ground.layers`."""
    return objects() / layer if "/" in layer else layers_dir() / f"{layer}.qcow2"


def layers_dir() -> Path:
    """The folder of the layers that sandboxes have left behind for others."""
    path = home() / "layers"
    path.mkdir(mode=0o700, exist_ok=True)
    return path
