"""Finding providers through their entry points, and choosing one."""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING

from novasandbox.core.hypervisor import BaseHypervisor, Probe
from novasandbox.errors import InvalidConfig, ProviderUnavailable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "novasandbox.providers"
_PREFERENCE = (
    ("apple_vz", "firecracker", "qemu")
    if sys.platform == "darwin"
    else (
        "firecracker",
        "qemu",
    )
)
_loaded: dict[str, BaseHypervisor] = {}


def names() -> list[str]:
    """The names of the installed providers, the preferred first."""
    found = {point.name for point in _points()}
    first = [name for name in _PREFERENCE if name in found]
    return first + sorted(found - set(first))


@functools.cache
def _points() -> tuple[EntryPoint, ...]:
    # Some 20 ms to import, and whoever only connects to a sandbox chooses nothing.
    from importlib.metadata import entry_points

    return tuple(entry_points(group=GROUP))


def load(name: str) -> BaseHypervisor:
    """The provider of that name. Raises InvalidConfig when there is none."""
    if name not in _loaded:
        point = next((p for p in _points() if p.name == name), None)
        if point is None:
            raise InvalidConfig(
                f"there is no provider {name!r}",
                fix=f"Installed are: {', '.join(names()) or 'none'}; or use 'auto'.",
            )
        _loaded[name] = point.load()()
    return _loaded[name]


async def choose(name: str) -> tuple[BaseHypervisor, Probe]:
    """The provider asked for, or with `auto` the best that works here.

    `auto` follows NOVA_PROVIDER where that is set. Raises ProviderUnavailable with every
    provider's reason.
    """
    if name == "auto":
        name = os.environ.get("NOVA_PROVIDER") or "auto"
    candidates = names() if name == "auto" else [name]
    refusals = []
    for candidate in candidates:
        provider = load(candidate)
        probe = await provider.probe()
        if probe.usable:
            return provider, probe
        refusals.append((candidate, probe))
    raise ProviderUnavailable(
        "no hypervisor can run here" if name == "auto" else f"{name} cannot run here",
        why="; ".join(f"{each}: {probe.reason}" for each, probe in refusals) or "none installed",
        fix=next((probe.fix for _, probe in refusals if probe.fix), None)
        or "nova doctor shows what is missing.",
    )
