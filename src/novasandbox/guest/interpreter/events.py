"""The connection of the cell that runs: what is printed goes out, an interrupt comes in.

There is no thread for that. The connection, and the pipes behind descriptors 1 and 2, send
SIGIO whenever something comes; Python's handler for it runs in the main thread, between two
steps of the cell's code or within whatever call it waits in.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import threading
from typing import TYPE_CHECKING

from novasandbox.guest.interpreter import wire

if TYPE_CHECKING:
    import mmap
    import socket
    from types import FrameType

_CHUNK = wire.MOST_PIECE
# Reads of one turn: a child that never stops printing must not keep the cell from running.
_TURNS = 16
# Of what is printed between two cells, by threads and children: more is dropped, oldest first.
_MOST_BACKLOG = 256 * 2**10
# Of results that wait for the next output or the end, to leave with it.
_MOST_HELD = _CHUNK
_SET_PIPE_SIZE = 1031
_PIPE_SIZE = 1 << 20
_NOSIGNAL = 0x4000
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF)

_get_ident = threading.get_ident


class Events:
    """Sends events, watches for the end, and collects what children write.

    life: a pipe that is at its end when the server is gone, and this process with it. state:
    see `Context`.
    """

    def __init__(self, life: int, state: mmap.mmap) -> None:
        self.interruptible = False
        """Whether the cell's own code runs, so that an interrupt may be raised."""
        self.forked = False
        """This is a child that the user's code forked: nothing here is its own."""
        self._main = _get_ident()
        self._lock = threading.Lock()
        self._inside = False
        self._due = False
        self._stopped = False
        self._running = False
        self._connection: socket.socket | None = None
        # What was not sent yet, and how much of it each send took: one assignment changes both.
        self._queue: tuple[bytes, list[int]] = (b"", [])
        self._late: list[tuple[int, bytes]] = []
        self._backlog: list[tuple[int, bytes]] = []
        self._backlog_size = 0
        self._poll = select.poll()
        self._life = life
        self._state = state
        self._pipes = {_piped(1): wire.STDOUT, _piped(2): wire.STDERR}
        signal.signal(signal.SIGIO, self._woken)
        for descriptor in (life, *self._pipes):
            self._poll.register(descriptor, select.POLLIN)
            announce(descriptor, os.O_NONBLOCK)

    def open(self, connection: socket.socket) -> None:
        """A cell begins: what is printed from now on belongs to it.

        Whose other end closes, or sends anything, ends it early.
        """
        self._inside = True
        try:
            with self._lock:
                self._stopped = False
                self._running = True
                self._queue = (b"", [])
                self._connection = connection
                self._poll.register(connection, select.POLLIN)
                fcntl.fcntl(connection, fcntl.F_SETFL, os.O_ASYNC)
                backlog, self._backlog, self._backlog_size = self._backlog, [], 0
                for kind, data in backlog:
                    self._emit(kind, data, hold=True)
                self._look(_TURNS)
        finally:
            self._inside = False
        self.attend()

    def close(self, kind: int, payload: bytes) -> None:
        """The cell is over: what children have written until now, and then its last event.

        The connection is the caller's again.
        """
        self._inside = True
        try:
            with self._lock:
                self._look(10 * _TURNS)
                self._emit(kind, payload)
                if self._connection is not None:
                    fcntl.fcntl(self._connection, fcntl.F_SETFL, 0)
                    self._hang_up()
                self._running = False
        finally:
            self._inside = False
        self.attend()

    def send(self, kind: int, data: bytes, *, hold: bool = False) -> None:
        """Send an event, in any thread. hold: it may wait for the next one.

        Raises KeyboardInterrupt in the main thread, where an interrupt came meanwhile.
        """
        if self.forked:
            _write_all(kind, data)
        elif _get_ident() != self._main:
            with self._lock:
                self._emit(kind, data, hold)
            if self._due:
                # The main thread came to look and found us in here.
                signal.pthread_kill(self._main, signal.SIGIO)
        elif self._inside:
            # A handler of the user's prints in the midst of this.
            self._late.append((kind, data))
            self._due = True
        else:
            self._inside = True
            try:
                with self._lock:
                    self._emit(kind, data, hold)
            finally:
                self._inside = False
            self.attend()

    def raise_if_stopped(self) -> None:
        """Raise KeyboardInterrupt, once for a cell, where it is to end."""
        if self._stopped and self.interruptible:
            self.interruptible = False
            raise KeyboardInterrupt

    def _woken(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._due = True
        if not self._inside:
            self.attend()

    def attend(self) -> None:
        """Do what a signal asked for meanwhile."""
        while self._due and not self.forked:
            self._inside = True
            try:
                if not self._lock.acquire(False):
                    break  # Another thread sends, and wakes us when it is done.
                try:
                    self._due = False
                    late, self._late = self._late, []
                    for kind, data in late:
                        self._emit(kind, data)
                    self._look(_TURNS)
                finally:
                    self._lock.release()
            finally:
                self._inside = False
        self.raise_if_stopped()

    # From here on the lock is held.

    def _look(self, turns: int) -> None:
        for _ in range(turns):
            ready = self._poll.poll(0)
            if not ready:
                return
            for descriptor, _ in ready:
                self._take(descriptor)

    def _take(self, descriptor: int) -> None:
        kind = self._pipes.get(descriptor)
        if descriptor == self._life:
            os._exit(wire.CUT)  # Or the server is gone: nobody could reach or end us any more.
        elif kind is not None:
            try:
                data = os.read(descriptor, _CHUNK)
            except BlockingIOError:
                return
            if data:
                self._emit(kind, data)
            else:  # The user has closed descriptor 1 or 2.
                self._poll.unregister(descriptor)
        elif self._connection is not None:
            self._stopped = True
            try:
                data = self._connection.recv(64)
            except OSError:
                data = b""
            if not data:
                self._state[wire.STATE_ORPHAN] = 1
                self._hang_up()

    def _emit(self, kind: int, data: bytes, hold: bool = False) -> None:
        if self._connection is None:
            if not self._running and kind in (wire.STDOUT, wire.STDERR):
                self._keep(kind, data)
            return
        before, counts = self._queue
        frame = wire.EVENT.pack(kind, len(data)) + data
        self._queue = (before[sum(counts) :] + frame, []) if before else (frame, [])
        if not hold or len(self._queue[0]) > _MOST_HELD:
            self._flush(self._connection)

    def _flush(self, connection: socket.socket) -> None:
        """Send all. A handler of the user's may raise after any step: no byte goes twice."""
        data, counts = self._queue
        try:
            while True:
                sent = sum(counts)
                if sent >= len(data):
                    break
                rest = memoryview(data)[sent:] if sent else data
                # Sent and counted in one step, for nothing runs between the two.
                counts.extend(map(connection.send, (rest,), (_NOSIGNAL,)))
        except OSError as error:
            if error.errno not in _GONE:
                raise  # A handler's own, as TimeoutError.
            self._stopped = True
            self._state[wire.STATE_ORPHAN] = 1
            self._hang_up()
        self._queue = (b"", [])

    def _hang_up(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._poll.unregister(connection)

    def _keep(self, kind: int, data: bytes) -> None:
        self._backlog.append((kind, data[-_MOST_BACKLOG:]))
        self._backlog_size += len(self._backlog[-1][1])
        while self._backlog_size > _MOST_BACKLOG:
            self._backlog_size -= len(self._backlog.pop(0)[1])

    def leave_to_child(self) -> None:
        """In a child that the user's code forked: let go of all that is the parent's."""
        self.forked = True
        self.interruptible = False
        self._lock = threading.Lock()
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        self._connection = None
        for descriptor in (self._life, *self._pipes):
            os.close(descriptor)


def announce(descriptor: int, flags: int) -> None:
    """Have SIGIO sent to this process for whatever happens to a descriptor."""
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_ASYNC | flags)


def _piped(descriptor: int) -> int:
    """Put a pipe behind descriptor 1 or 2, and give the end to read from."""
    reader, writer = os.pipe()
    # C code that prints much in one go finds nobody who reads until it returns.
    with contextlib.suppress(OSError):  # The user's share of memory for pipes may be used up.
        fcntl.fcntl(reader, _SET_PIPE_SIZE, _PIPE_SIZE)
    os.dup2(writer, descriptor)
    os.close(writer)
    return reader


def _write_all(kind: int, data: bytes) -> None:
    descriptor = {wire.STDOUT: 1, wire.STDERR: 2}.get(kind)
    view = memoryview(data)
    while descriptor is not None and view:
        view = view[os.write(descriptor, view) :]
