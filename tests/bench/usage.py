"""What processes take of the host, as its kernel tells it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from novasandbox.core import registry
from novasandbox.core.home import home


def processes_of_ours() -> list[int]:
    """Every QEMU of a sandbox of this home, and its supervisor."""
    found = []
    for record in registry.records():
        machine = record.machine or {}
        for part in (machine, machine.get("supervisor") or {}):
            if "pid" in part:
                found.append(int(part["pid"]))
    return found


def memory(pids: Iterable[int]) -> int:
    """Bytes: each process's own pages, and its part of those that it shares (PSS)."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) << 10
    return total


def cpu_seconds(pids: Iterable[int]) -> float:
    """What all threads of these processes ran, to the nanosecond (/proc/PID/stat counts ticks)."""
    total = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def resident() -> int:
    """Bytes that this process keeps in memory."""
    return int(psutil.Process().memory_info().rss)


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


def children() -> int:
    """Processes that this one started, and theirs."""
    return len(psutil.Process().children(recursive=True))


def files() -> int:
    """Files under the home, but for notes of how sandboxes ended: of those so many are kept."""
    count = 0
    for _, folders, names in os.walk(home()):
        folders[:] = [name for name in folders if name != ".ended"]
        count += len(names)
    return count
