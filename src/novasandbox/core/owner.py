"""Who a process is: its id together with its start, since ids are used again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Owner:
    """A process.

    started: when it started, in clock ticks since the host's boot (elsewhere than on Linux
    in seconds since the epoch), so that setting the host's clock changes nothing. boot: which
    boot of the host that is.
    """

    pid: int
    started: float
    boot: str = ""

    @classmethod
    def of(cls, pid: int) -> Owner:
        """The process that has `pid` now. Raises ProcessLookupError."""
        state = _state_of(pid)
        if state is None:
            raise ProcessLookupError(f"no process {pid}")
        return cls(pid, state[1], _boot())

    @classmethod
    def self(cls) -> Owner:
        """This process."""
        return cls.of(os.getpid())

    @classmethod
    def load(cls, data: Any) -> Owner | None:
        """From `as_data`'s result; None where it is none."""
        if isinstance(data, dict) and isinstance(data.get("pid"), int):
            started, boot = data.get("started", 0.0), data.get("boot", "")
            if isinstance(started, int | float) and isinstance(boot, str):
                return cls(data["pid"], float(started), boot)
        return None

    def as_data(self) -> dict[str, Any]:
        """As JSON data."""
        return {"pid": self.pid, "started": self.started, "boot": self.boot}

    @property
    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        state = _state_of(self.pid)
        if state is None or self.boot != _boot():
            return False
        dead, started = state
        return not dead and started == self.started

    def kill(self) -> None:
        """End it, if it is still the same process."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def wait(self) -> None:
        """Wait until it has ended; it need not be a child of ours."""
        pidfd_open: Callable[[int], int] | None = getattr(os, "pidfd_open", None)
        if pidfd_open is None:
            while self.alive:  # noqa: ASYNC110  (nothing tells us here: macOS)
                await asyncio.sleep(0.05)
            return
        try:
            descriptor = pidfd_open(self.pid)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        try:
            # The id may have gone to another process before it was opened.
            if self.alive:
                loop.add_reader(descriptor, ended.set)
                await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)


def _state_of(pid: int) -> tuple[bool, float] | None:
    """Whether a process is a zombie, and when it started; None: there is no such process."""
    if sys.platform != "linux":
        try:
            process = psutil.Process(pid)
            return process.status() == psutil.STATUS_ZOMBIE, process.create_time()
        except psutil.Error:
            return None
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): the name, in parentheses, may hold anything; state and start are fields 3 and 22.
    fields = text[text.rindex(b")") + 2 :].split()
    return fields[0] in (b"Z", b"X"), float(fields[19])


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def owner_descriptor() -> int | None:
    """A descriptor that becomes readable when this process ends.

    It follows the process, not a copy of the descriptor in some child that outlives it.
    """
    pidfd_open: Callable[[int], int] | None = getattr(os, "pidfd_open", None)
    return None if pidfd_open is None else pidfd_open(os.getpid())
