"""Control groups for hypervisors: where this host lets us make them, and their settings.

Version 2 where its controllers are at hand, else version 1. A sandbox's group is made beside
the caller's own, below a folder that already hands out the controllers, so that whatever
limits the caller limits its sandboxes as well.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from novasandbox.providers.jail import Cgroup

if TYPE_CHECKING:
    from collections.abc import Iterable

CONTROLLERS = ("memory", "pids", "cpu")
_PREFIX = "novasandbox-"
_PERIOD_US = 100_000
_LEFT_BEHIND = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """A folder in which groups can be made, for these controllers."""

    folder: Path
    controllers: frozenset[str]
    version: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What one machine may use. memory_bytes: all of it, guest and hypervisor. tasks: threads
    and processes. cpus: as many CPUs' worth of time; None: no limit."""

    memory_bytes: int
    tasks: int = 256
    cpus: float | None = None


def cgroups(name: str, limits: Limits, places: Iterable[Place]) -> tuple[Cgroup, ...]:
    """The groups for the machine `name`, to be made by its jail."""
    made = (
        (place, settings)
        for place in places
        if (settings := _v2(limits, place) if place.version == 2 else _v1(limits, place))
    )
    return tuple(Cgroup(place.folder / f"{_PREFIX}{name}", settings) for place, settings in made)


def _v2(limits: Limits, place: Place) -> dict[str, str]:
    settings = {}
    if "memory" in place.controllers:
        settings["memory.max"] = str(limits.memory_bytes)
        # A hypervisor that has lost a thread to the out-of-memory killer is of no use.
        settings["memory.oom.group"] = "1"
    if "pids" in place.controllers:
        settings["pids.max"] = str(limits.tasks)
    if "cpu" in place.controllers and limits.cpus is not None:
        settings["cpu.max"] = f"{round(limits.cpus * _PERIOD_US)} {_PERIOD_US}"
    return settings


def _v1(limits: Limits, place: Place) -> dict[str, str]:
    settings = {}
    if "memory" in place.controllers:
        settings["memory.limit_in_bytes"] = str(limits.memory_bytes)
    if "pids" in place.controllers:
        settings["pids.max"] = str(limits.tasks)
    if "cpu" in place.controllers and limits.cpus is not None:
        settings["cpu.cfs_period_us"] = str(_PERIOD_US)
        settings["cpu.cfs_quota_us"] = str(round(limits.cpus * _PERIOD_US))
    return settings


def find_places() -> tuple[Place, ...]:
    """Where groups can be made here; reads a few files, so ask once and keep the answer."""
    own = _own_groups()
    places = []
    for mount in _mounts():
        below = own.get(mount.controllers)
        if below is None:
            continue
        with contextlib.suppress(OSError):
            place = _v2_place(mount, below) if not mount.controllers else _v1_place(mount, below)
            if place is not None:
                places.append(place)
    return _without_doubles(places)


def missing(places: Iterable[Place]) -> tuple[str, ...]:
    """The controllers that no place offers."""
    offered = frozenset[str]().union(*(place.controllers for place in places))
    return tuple(name for name in CONTROLLERS if name not in offered)


def collect(places: Iterable[Place]) -> None:
    """Remove groups whose supervisor was killed: empty ones that are a minute old.

    The kernel refuses to remove one that a process is in.
    """
    for place in places:
        for folder in place.folder.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_ctime > _LEFT_BEHIND:
                    folder.rmdir()


@dataclass(frozen=True, slots=True)
class _Mount:
    """controllers: of a version 1 hierarchy; empty for version 2."""

    point: Path
    root: str
    controllers: frozenset[str]


def _mounts() -> list[_Mount]:
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        _, _, _, root, point, *_ = fields.split(" ")
        if kind == "cgroup2":
            mounts.append(_Mount(Path(point), root, frozenset()))
        elif kind == "cgroup" and (ours := frozenset(options.split(",")) & set(CONTROLLERS)):
            mounts.append(_Mount(Path(point), root, ours))
    return mounts


def _own_groups() -> dict[frozenset[str], str]:
    """The caller's own group in each hierarchy, by its controllers of interest."""
    groups = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, names, path = line.split(":", 2)
        ours = frozenset(names.split(",")) & set(CONTROLLERS)
        if ours or (number == "0" and not names):
            groups[frozenset(ours)] = path
    return groups


def _folder(mount: _Mount, group: str) -> Path:
    # In a container the mount may show only a part of the hierarchy.
    below = group[len(mount.root) :] if group.startswith(mount.root) else group
    return mount.point / below.strip("/")


def _v1_place(mount: _Mount, group: str) -> Place | None:
    folder = _folder(mount, group)
    return Place(folder, mount.controllers, 1) if os.access(folder, os.W_OK) else None


def _v2_place(mount: _Mount, group: str) -> Place | None:
    """The nearest folder above us that we may use and that hands out most controllers.

    A group that hands out controllers holds no processes itself (the root excepted), so it
    is never our own but one above it, where systemd or an administrator has delegated one.
    """
    own = _folder(mount, group)
    best: Place | None = None
    for folder in (own, *own.parents):
        if not folder.is_relative_to(mount.point):
            break
        # Both are needed to move a process from a group below into another.
        if not os.access(folder, os.W_OK) or not os.access(folder / "cgroup.procs", os.W_OK):
            continue
        offered = _offered(folder)
        if offered and (best is None or len(offered) > len(best.controllers)):
            best = Place(folder, offered, 2)
    return best


def _offered(folder: Path) -> frozenset[str]:
    control = folder / "cgroup.subtree_control"
    there = set((folder / "cgroup.controllers").read_text().split()) & set(CONTROLLERS)
    for name in there - set(control.read_text().split()):
        # Allowed in the root and in groups without processes.
        with contextlib.suppress(OSError):
            control.write_text(f"+{name}")
    return frozenset(control.read_text().split()) & set(CONTROLLERS)


def _without_doubles(places: list[Place]) -> tuple[Place, ...]:
    """A controller belongs to one hierarchy; where both versions are mounted, v2 goes first."""
    taken: set[str] = set()
    kept = []
    for place in sorted(places, key=lambda place: -place.version):
        mine = place.controllers - taken
        taken |= mine
        if mine:
            kept.append(Place(place.folder, frozenset(mine), place.version))
    return tuple(kept)
