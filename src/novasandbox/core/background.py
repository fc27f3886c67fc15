"""Event loops for code that has none: one in the background, or one for a single call."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def in_new_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `work` to its end on a loop of its own; inside a running loop too.

    Ctrl-C cancels it and waits until it has given back what it held.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    outcome: list[T] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(asyncio.run(work()))
        except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
            failure.append(error)

    thread = threading.Thread(target=target, name="novasandbox-run")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


class BackgroundLoop:
    """A loop in a thread of its own, started at first use, ended with the interpreter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def call(self, work: Awaitable[T]) -> T:
        """Await `work` on the loop, from a thread without one; Ctrl-C cancels it there."""

        async def awaited() -> T:
            return await work

        future = asyncio.run_coroutine_threadsafe(awaited(), self._running())
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
            raise

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="novasandbox-loop", daemon=True
                )
                self._thread.start()
                atexit.register(self._stop)
            return self._loop

    def _stop(self) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)


background = BackgroundLoop()
"""The loop that `novasandbox.sync` runs on."""
