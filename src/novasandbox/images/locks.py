"""Locks between processes: `flock` on files that stay, and on the directories of artifacts."""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from types import TracebackType

_POLL = 0.05


class Hold:
    """A shared lock on an artifact: as long as it lives, nobody collects the artifact.

    The lock belongs to the open file behind `fileno()`, so a child process that
    inherits the descriptor holds it as well, until the last copy is closed.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The descriptor that carries the lock."""
        if self._descriptor < 0:
            raise ValueError("this hold was given back")
        return self._descriptor

    def close(self) -> None:
        """Give the artifact back. Twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def try_lock(path: Path, *, shared: bool = False, directory: bool = False) -> int | None:
    """Lock a file or directory without waiting: the descriptor, or None where another has it.

    A file is made where it is missing. When the lock is had, the path still leads to
    what was locked: whoever removes something removes it under its lock.

    Raises FileNotFoundError where a directory is missing.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    flags = os.O_RDONLY | os.O_DIRECTORY if directory else os.O_RDWR | os.O_CREAT
    while True:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, how)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass  # removed after it was opened: look again
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@asynccontextmanager
async def locked(
    path: Path, *, shared: bool = False, waiting: Callable[[], None] | None = None
) -> AsyncIterator[None]:
    """Hold a lock file; the wait leaves the loop free and can be cancelled.

    waiting: called once, when another holds it.
    """
    descriptor = try_lock(path, shared=shared)
    if descriptor is None and waiting is not None:
        waiting()
    while descriptor is None:
        await asyncio.sleep(_POLL)
        descriptor = try_lock(path, shared=shared)
    try:
        yield
    finally:
        os.close(descriptor)
