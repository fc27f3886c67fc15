"""Blocking work and child processes that end when their caller is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")


class Stopped(Exception):
    """The caller was cancelled; the work ended in the middle."""


class Stop:
    """What a thread looks at now and then, to learn that nobody waits for it any more."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask the work to end."""
        self._event.set()

    def check(self) -> None:
        """Raise Stopped where the work shall end."""
        if self._event.is_set():
            raise Stopped

    def rest(self, seconds: float) -> None:
        """Sleep, and raise Stopped as soon as the work shall end."""
        if self._event.wait(seconds):
            raise Stopped


async def in_thread(work: Callable[[Stop], T], patience: float | None = None) -> T:
    """Run blocking work in a thread; a cancelled caller waits until it has ended.

    patience: seconds to wait for it at most; None waits as long as it takes.
    """
    stop = Stop()
    task = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([task], timeout=patience)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        raise


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed on both of its outputs."""

    status: int
    output: str


async def run(command: Sequence[str], env: Mapping[str, str], timeout: float = 600.0) -> Ended:
    """Run a command with no input; it and its children are killed when the caller is cancelled.

    Raises OSError where it cannot be started, TimeoutError.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        env=dict(env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(process.communicate())
        raise
    return Ended(process.returncode or 0, output.decode("utf-8", "replace"))
