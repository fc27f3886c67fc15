"""Runs a verb's coroutine, and turns signals into an orderly end.

SIGINT, SIGTERM and SIGHUP cancel the verb, which gives back what it holds; while a guest's
command runs, `Interrupts.handler` may take them instead.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from novasandbox.cli.errors import Interrupted
from novasandbox.cli.output import note

T = TypeVar("T")
_log = logging.getLogger("novasandbox")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """The signals that reach us.

    handler: takes a signal's number, and says whether that was all; else the verb is
    cancelled.
    """

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.handler: Callable[[int], bool] | None = None
        self.last: int | None = None
        self._task = task

    def arrived(self, number: int) -> None:
        """A signal came."""
        self.last = number
        if self.handler is None or not self.handler(number):
            self._task.cancel()


def run(work: Callable[[Interrupts], Coroutine[Any, Any, T]]) -> T:
    """Run `work` to its end. Raises Interrupted when a signal ended it."""
    _show_warnings()
    return asyncio.run(_run(work))


def _show_warnings() -> None:
    """Have the library's warnings told as we tell things; they may quote a guest."""
    if not logging.getLogger().hasHandlers() and not _log.handlers:
        _log.addHandler(_Remarks(logging.WARNING))


class _Remarks(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Write a line to stderr."""
        note(f"nova: {record.getMessage()}")


async def _run(work: Callable[[Interrupts], Coroutine[Any, Any, T]]) -> T:
    task = asyncio.current_task()
    assert task is not None
    interrupts = Interrupts(task)
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        # A signal that our maker had ignored (nohup, a shell's background) stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, interrupts.arrived, number)
    try:
        return await work(interrupts)
    except asyncio.CancelledError:
        if interrupts.last is None:
            raise
        raise Interrupted(interrupts.last) from None
