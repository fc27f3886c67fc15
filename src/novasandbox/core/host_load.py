"""What the host can spare at this moment: memory and processors."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
# Of the memory, what stays free for the host itself.
_LEAST_MIB = 512
_LEAST_SHARE = 0.05
# Runnable processes for each processor, beyond which what is not urgent waits.
_BUSY = 2.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Sizes in MiB. available: what programs can have without anything being swapped out."""

    total: int
    available: int

    @property
    def reserve(self) -> int:
        """What stays free for the host: 512 MiB, or 5 % where that is more."""
        return max(_LEAST_MIB, int(self.total * _LEAST_SHARE))


def memory() -> Memory:
    """The host's memory, or where this process may use less of it, that."""
    host = psutil.virtual_memory()
    total, available = host.total >> 20, host.available >> 20
    limited = narrowest(_own_groups()) if sys.platform == "linux" else None
    if limited is not None and limited.total < total:
        return Memory(limited.total, min(available, limited.available))
    return Memory(total, available)


def processors() -> int:
    """How many this process may use."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    return len(os.sched_getaffinity(0))


def is_busy() -> bool:
    """Whether more wants to run than the processors manage."""
    return os.getloadavg()[0] > _BUSY * processors()


def narrowest(groups: list[Path]) -> Memory | None:
    """What control groups (version 2), one inside the other, leave; None where none limits."""
    found = None
    for folder in groups:
        try:
            limit = (folder / "memory.max").read_text().strip()
            if limit == "max":
                continue
            used = int((folder / "memory.current").read_text())
            used -= _inactive((folder / "memory.stat").read_text())
        except (OSError, ValueError):
            continue
        here = Memory(int(limit) >> 20, max(0, int(limit) - used) >> 20)
        if found is None or here.available < found.available:
            found = here
    return found


def _own_groups() -> list[Path]:
    """The folders of this process's group and of those around it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None:
        return []
    own = _CGROUPS / path.lstrip("/")
    return [own, *(each for each in own.parents if each.is_relative_to(_CGROUPS))]


def _inactive(stat: str) -> int:
    """Bytes of cached files that the kernel drops first."""
    for line in stat.splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0
