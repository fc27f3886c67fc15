"""Where the user's code prints to, and `os.system`."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from novasandbox.guest.interpreter import wire

if TYPE_CHECKING:
    from novasandbox.guest.interpreter.events import Events


class Sink(io.BufferedIOBase):
    """Hands bytes on as events. What is below `sys.stdout`, with descriptor 1 for children.

    It has no buffer: one would hold what an interrupted write has sent already, and send it twice.
    """

    def __init__(self, events: Events, kind: int) -> None:
        super().__init__()
        self._events = events
        self._kind = kind

    def write(self, data: Any) -> int:
        """Send `data`, whatever its size."""
        whole = bytes(data)
        if len(whole) <= wire.MOST_PIECE:
            if whole:
                self._events.send(self._kind, whole)
            return len(whole)
        for start in range(0, len(whole), wire.MOST_PIECE):
            self._events.send(self._kind, whole[start : start + wire.MOST_PIECE])
        return len(whole)

    def writable(self) -> bool:
        """It takes bytes, and gives none."""
        return True

    def fileno(self) -> int:
        """The descriptor of the same name: what children write there comes in order."""
        return 1 if self._kind == wire.STDOUT else 2

    def isatty(self) -> bool:
        """It is no terminal."""
        return False

    def close(self) -> None:
        """Stay open: the next cell prints too."""


def open_streams(events: Events) -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """Put new `sys.stdout` and `sys.stderr` in place, line by line, and give them back too."""
    out = _text(Sink(events, wire.STDOUT), "surrogateescape")
    err = _text(Sink(events, wire.STDERR), "backslashreplace")
    sys.stdout, sys.stderr = out, err
    for name, stream in (("__stdout__", out), ("__stderr__", err)):
        setattr(sys, name, stream)
    return out, err


def _text(sink: Any, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(sink, encoding="utf-8", errors=errors, line_buffering=True)


def system(command: Any) -> int:
    """Execute the command in a subshell.

    As C's `system`, but it can be interrupted, and takes what the command prints meanwhile: in
    the C function this process would wait for a command that waits for it to read.
    """
    line = os.fsencode(command)
    sys.audit("os.system", line)
    sys.stdout.flush()
    shell = os.posix_spawn("/bin/sh", [b"sh", b"-c", line], os.environ)
    try:
        return os.waitpid(shell, 0)[1]
    except KeyboardInterrupt:
        os.kill(shell, signal.SIGKILL)
        os.waitpid(shell, 0)
        raise
