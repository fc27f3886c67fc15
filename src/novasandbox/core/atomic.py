"""State files: written whole or not at all, readable by their owner only."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes, *, lasting: bool = True) -> None:
    """Replace `path` with `data` in one step, mode 0600, on disk when this returns.

    lasting: False does not wait for the disk: a crash of the host may leave no or half a file.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_json(path: Path, value: Any, *, lasting: bool = True) -> None:
    """Replace `path` with `value` as JSON, in one step; see `write_bytes`."""
    write_bytes(path, json.dumps(value, indent=1).encode(), lasting=lasting)


def read_json(path: Path) -> Any:
    """The JSON in `path`; None when there is no such file, or half of one."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: what was renamed into it is there for good."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
