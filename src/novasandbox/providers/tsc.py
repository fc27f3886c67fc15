"""The rate of this CPU's time-stamp counter, which an emulated guest reads directly."""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from functools import cache

# rdtsc; shl rdx, 32; or rax, rdx; ret
_READ = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_MEASURE = 0.02


@cache
def rate_khz() -> int | None:
    """Its rate in kHz, measured for 20 ms once; None where it cannot be read."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except (OSError, ValueError):
        return None  # Some hosts forbid memory that is writable and executable.
    page.write(_READ)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    start, first = time.perf_counter_ns(), read()
    time.sleep(_MEASURE)
    end, last = time.perf_counter_ns(), read()
    return int((last - first) * 1_000_000 // (end - start))
