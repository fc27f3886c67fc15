"""Removing what dead processes have left behind; nothing that is in use is touched."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from novasandbox.core import registry, snapshots
from novasandbox.core.home import home, run_dir

# What `atomic` makes beside a file until it takes its place.
_HALF_WRITTEN = re.compile(r"\..+\.json\.[a-z0-9_]{8}")
_OLD = 3600.0


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was removed.

    sandboxes: ids of those whose owner had died. files: paths. bytes: what is free again.
    """

    sandboxes: tuple[str, ...]
    files: tuple[str, ...]
    bytes: int


async def clean() -> Cleaned:
    """End abandoned machines, remove their folders, half-made builds and dead sockets."""
    return await asyncio.to_thread(_clean)


def _clean() -> Cleaned:
    # The images' code takes a while to import, and a library that never cleans needs none of it.
    from novasandbox.images.store import Store
    from novasandbox.images.tree import tree_size

    ended = registry.collect_leftovers()
    store = Store()
    half_built = {path: tree_size(path) for path in (store.root / "tmp").iterdir()}
    store.collect()
    gone = {path: size for path, size in half_built.items() if not path.exists()}
    gone |= dict.fromkeys(snapshots.collect(), 0)
    freed = registry.sweep()
    for path in _half_written():
        with contextlib.suppress(FileNotFoundError):
            size = path.lstat().st_size
            path.unlink()
            gone[path] = size
    if (socket := _remove_dead_socket()) is not None:
        gone[socket] = 0
    return Cleaned(
        sandboxes=tuple(record.id for record in ended),
        files=tuple(str(path) for path in gone),
        bytes=sum(gone.values()) + freed,
    )


def _half_written() -> list[Path]:
    """State files whose writer was killed; a living one needs milliseconds."""
    before = time.time() - _OLD
    found = []
    for folder in (home() / "cache", run_dir(), run_dir() / ".ended", *run_dir().iterdir()):
        if folder.is_dir():
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    old = path.lstat().st_mtime < before
                    if old and _HALF_WRITTEN.fullmatch(path.name):
                        found.append(path)
    return list(dict.fromkeys(found))


def _remove_dead_socket() -> Path | None:
    """Remove the keeper's socket where no keeper holds its lock."""
    path = run_dir() / ".keeper.sock"
    if not path.exists():
        return None
    lock = os.open(run_dir() / ".keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return None
    finally:
        os.close(lock)
    return path
