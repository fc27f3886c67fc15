"""Event loops for code that has none: one in the background, or one for a single call."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401  (its own hook has to be there before ours)
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from novasandbox.errors import InvalidRequest, Unavailable

T = TypeVar("T")
log = logging.getLogger(__name__)

_EXIT_DEADLINE = 15.0
_LOOK_EVERY = 0.1


def in_new_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `work` to its end on a loop of its own; inside a running loop too.

    Ctrl-C cancels it and waits until it has given back what it held.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    loop = BackgroundLoop("novasandbox-run", lasting=False)
    try:
        return loop.call(work)
    finally:
        loop.stop()


class BackgroundLoop:
    """A loop in a thread of its own, started at first use.

    lasting: it is ended with the interpreter, and a forked child begins anew.
    """

    def __init__(self, name: str = "novasandbox-loop", *, lasting: bool = True) -> None:
        self._name = name
        self._lasting = lasting
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._last_words: list[Callable[[], Awaitable[None]]] = []
        self._over = False

    def call(
        self,
        work: Callable[[], Awaitable[T]],
        *,
        undo: Callable[[T], Awaitable[None]] | None = None,
    ) -> T:
        """Do `work` on the loop and wait for it, in any thread but the loop's own.

        Ctrl-C cancels it, waits until it has given back what it held, and is raised; a second
        one does not wait. So does the end of the task that calls, where there is one.
        undo: takes back what `work` made, when it was ended as it was done.
        """
        loop = self.start()
        if threading.current_thread() is self._thread:
            raise InvalidRequest(
                "a call that waits was made in the thread that does the work",
                fix="Use the async names of `novasandbox` there.",
            )
        job = _Job(loop, work)
        try:
            job.start()
            return job.result_for_caller()
        except BaseException:
            if not job.over:
                job.cancel()
                if job.made and undo is not None:
                    made = job.outcome[0]
                    _Job(loop, lambda: undo(made)).run()
            raise

    def start(self) -> asyncio.AbstractEventLoop:
        """The loop, running. Raises Unavailable while the program ends."""
        with self._lock:
            if self._over:
                raise Unavailable("the program is ending", why="its event loop has stopped")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_run, args=(self._loop,), name=self._name, daemon=True
                )
                self._thread.start()
                if self._lasting:
                    # Before the interpreter's own thread pools are shut, which closing needs.
                    register = getattr(threading, "_register_atexit", atexit.register)
                    register(self.stop)
                    os.register_at_fork(after_in_child=self._forget)
            return self._loop

    def at_exit(self, work: Callable[[], Awaitable[None]]) -> None:
        """Have `work` done before the loop is stopped."""
        self._last_words.append(work)

    def stop(self) -> None:
        """Do what is left, cancel what still runs, end the thread. Harmless when repeated."""
        with self._lock:
            loop, thread = self._loop, self._thread
            if loop is None or thread is None or self._over:
                return
            self._over = True
        for work in self._last_words:
            try:
                _Job(loop, work).run(_EXIT_DEADLINE)
            except Exception:
                log.exception("what was left to do at the end failed")
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_EXIT_DEADLINE)

    def _forget(self) -> None:
        """In a forked child there is no such thread, and what it held is the parent's."""
        self._lock = threading.Lock()
        self._loop = self._thread = None


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


class _Job(Generic[T]):
    """Work on a loop that another thread waits for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Awaitable[T]]) -> None:
        self._loop = loop
        self._work = work
        self._done = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self.outcome: list[T] = []
        self.over = False

    @property
    def made(self) -> bool:
        """Whether it was done, and has a result."""
        return bool(self.outcome)

    def start(self) -> None:
        """Begin; in the waiting thread."""
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._do())
        self._task.add_done_callback(self._finish)

    async def _do(self) -> None:
        self.outcome.append(await self._work())

    def _finish(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._error = Unavailable("the call was given up", why="the program is ending")
        else:
            self._error = task.exception()
        self._done.set()

    def result(self, timeout: float | None = None) -> T:
        """Wait for the end; the result, or what was raised. Raises TimeoutError."""
        if not self._done.wait(timeout):
            raise TimeoutError
        self.over = True
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self.outcome[0]

    def result_for_caller(self) -> T:
        """As `result`. Raises CancelledError when the caller is a task that is cancelled.

        A runner turns the first Ctrl-C into that, and no task sees it while it waits here.
        """
        task = _current_task()
        if task is not None:
            before = task.cancelling()
            while not self._done.wait(_LOOK_EVERY):
                if task.cancelling() > before:
                    raise asyncio.CancelledError
        return self.result()

    def run(self, timeout: float | None = None) -> T:
        """Begin, and wait for the end."""
        self.start()
        return self.result(timeout)

    def cancel(self) -> None:
        """Cancel, and wait until it has given back what it held."""
        self._loop.call_soon_threadsafe(self._cancel)
        self._done.wait()

    def _cancel(self) -> None:
        if self._task is None:
            self._done.set()
        else:
            self._task.cancel()


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


background = BackgroundLoop()
"""The loop that `novasandbox.sync` runs on."""
