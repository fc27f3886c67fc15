"""Our standard input and output inside an event loop, without ever blocking it.

Each descriptor has a thread of its own. They are daemons: one that waits for input that
never comes, or for a reader that never reads, keeps nobody from leaving. The descriptors
are not set non-blocking, because others (a shell, a pipe's other end) share that setting.
"""

from __future__ import annotations

import asyncio
import os
import queue
import select
import threading
from collections.abc import Callable

_CHUNK = 65_536


class _Thread:
    """Does blocking calls one after another."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], bytes], asyncio.Future[bytes]]] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def do(self, job: Callable[[], bytes]) -> bytes:
        """Have `job` done; its result, or what it raised."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._jobs.put((job, future))
        return await future

    def _work(self) -> None:
        while True:
            job, future = self._jobs.get()
            result: bytes | OSError
            try:
                result = job()
            except OSError as error:
                result = error
            try:
                self._loop.call_soon_threadsafe(_settle, future, result)
            except RuntimeError:
                return  # The loop is closed: nobody waits any more.


def _settle(future: asyncio.Future[bytes], result: bytes | OSError) -> None:
    if future.done():
        return
    if isinstance(result, OSError):
        future.set_exception(result)
    else:
        future.set_result(result)


class Input:
    """Reads a descriptor when asked, so that nothing is taken that nobody wants."""

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._thread = _Thread("nova-stdin")

    async def read(self) -> bytes:
        """The next bytes; empty at the end, also where the descriptor cannot be read."""
        try:
            return await self._thread.do(self._read)
        except OSError:
            return b""

    def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._descriptor, _CHUNK)
            except BlockingIOError:
                select.select([self._descriptor], [], [])


class Output:
    """Writes to stdout and stderr, in the order in which it is asked to."""

    def __init__(self) -> None:
        self._thread = _Thread("nova-stdout")
        self.last_progress = asyncio.get_running_loop().time()

    async def write(self, descriptor: int, data: bytes) -> None:
        """Write all of it. Raises BrokenPipeError when nobody reads any more."""
        await self._thread.do(lambda: _write(descriptor, data))
        self.last_progress = asyncio.get_running_loop().time()


def _write(descriptor: int, data: bytes) -> bytes:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
    return b""
