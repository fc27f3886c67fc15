"""What a process costs the host."""

from __future__ import annotations

import psutil

from novasandbox.core.hypervisor import MachineMetrics
from novasandbox.core.owner import Owner
from novasandbox.errors import VmmCrashed


def read(owner: Owner) -> MachineMetrics:
    """CPU, memory and I/O of a process. Raises VmmCrashed when it is gone.

    PSS and I/O are None where this user may not read them.
    """
    if not owner.alive:
        raise VmmCrashed("the machine's process is gone")
    try:
        process = psutil.Process(owner.pid)
        times = process.cpu_times()
        rss = process.memory_info().rss
    except psutil.NoSuchProcess as error:
        raise VmmCrashed("the machine's process is gone") from error
    pss: int | None
    try:
        pss = process.memory_full_info().pss
    except (psutil.Error, AttributeError):
        pss = None
    read_bytes: int | None
    written_bytes: int | None
    try:
        counters = process.io_counters()
        read_bytes, written_bytes = counters.read_bytes, counters.write_bytes
    except (psutil.Error, AttributeError):
        read_bytes = written_bytes = None
    return MachineMetrics(times.user + times.system, rss, pss, read_bytes, written_bytes)


def cpu_seconds(owner: Owner) -> float:
    """User and system time of a process. Raises VmmCrashed when it is gone."""
    try:
        times = psutil.Process(owner.pid).cpu_times()
    except psutil.NoSuchProcess:
        times = None
    if times is None or not owner.alive:
        raise VmmCrashed("the machine's process is gone")
    return times.user + times.system
