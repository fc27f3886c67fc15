"""Who a process is: its id together with its start time, since ids are used again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Owner:
    """A process. started: seconds since the epoch, as the kernel counts them."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Owner:
        """The process that has `pid` now. Raises ProcessLookupError."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.NoSuchProcess as error:
            raise ProcessLookupError(f"no process {pid}") from error

    @classmethod
    def self(cls) -> Owner:
        """This process."""
        return cls.of(os.getpid())

    @classmethod
    def load(cls, data: Any) -> Owner | None:
        """From `as_data`'s result; None where it is none."""
        if isinstance(data, dict) and isinstance(data.get("pid"), int):
            started = data.get("started", 0.0)
            return cls(data["pid"], float(started)) if isinstance(started, int | float) else None
        return None

    def as_data(self) -> dict[str, Any]:
        """As JSON data."""
        return {"pid": self.pid, "started": self.started}

    @property
    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            # The start time is derived from the boot time, which may move by a tick.
            if abs(process.create_time() - self.started) < 0.05:
                return bool(process.status() != psutil.STATUS_ZOMBIE)
        return False

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
