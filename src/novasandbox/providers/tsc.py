"""The rate of this CPU's time-stamp counter, which an emulated guest reads directly.

The guest's clock is as right as this number. It is kept, since saved machines were told it:
on the same host the next measurement gives the same, but for the last digits.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from novasandbox.core.atomic import read_json, write_json

# rdtsc; shl rdx, 32; or rax, rdx; ret
_READ = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_MEASURE = 0.05
_READINGS = 10
# Measurements of one CPU differ by less, and the kernel accepts its like.
_SAME = 5e-4


@cache
def rate_khz(kept: Path) -> int | None:
    """Its rate in kHz; None where it cannot be read. kept: the file that remembers it."""
    measured = _measure()
    if measured is None:
        return None
    known = read_json(kept)
    if isinstance(known, int) and abs(known - measured) < known * _SAME:
        return known
    write_json(kept, measured)
    return measured


def _measure() -> int | None:
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except (OSError, ValueError):
        return None  # Some hosts forbid memory that is writable and executable.
    page.write(_READ)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    start, first = _reading(read)
    time.sleep(_MEASURE)
    end, last = _reading(read)
    return (last - first) * 1_000_000 // (end - start)


def _reading(read: Callable[[], int]) -> tuple[int, int]:
    """The time in ns and the counter, both at one moment: the least disturbed of several."""
    readings = []
    for _ in range(_READINGS):
        before, counter, after = time.perf_counter_ns(), read(), time.perf_counter_ns()
        readings.append((after - before, (before + after) // 2, counter))
    _, moment, counter = min(readings)
    return moment, counter
