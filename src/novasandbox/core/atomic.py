"""State files: written whole or not at all, readable by their owner only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes, *, lasting: bool = True) -> None:
    """Replace `path` with `data` in one step, mode 0600, on disk when this returns.

    lasting: False does not wait for the disk: a crash of the host may leave no or half a file.
    """
    name = f"{path.parent}/.{path.name}.{os.urandom(8).hex()}"
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write_all(descriptor, data)
            if lasting:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


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
