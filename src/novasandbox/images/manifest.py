"""What an artifact's files must hold, and the cheap way to see that nobody touched them.

`manifest.json` lies in the artifact and never changes: each file's size and hash.
`stamps.json` beside it holds size, times and inode of each file as they were when its
hash was last taken. While those agree nothing is read; where they differ the file is
hashed anew, and a copied or restored cache gets new stamps.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = "manifest.json"
STAMPS = "stamps.json"
_BLOCK = 1 << 16
_NOTHING = bytes(_BLOCK)
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Damaged(Exception):
    """An artifact does not hold what its manifest says."""


@dataclass(frozen=True)
class Manifest:
    """What an artifact is: its kind, what it was made from, and its files' hashes."""

    kind: str
    key: str
    made_from: dict[str, Any]
    files: dict[str, dict[str, Any]]


def seal(folder: Path, kind: str, key: str, made_from: dict[str, Any]) -> Manifest:
    """Make the files of a finished artifact read-only, hash them and write both records."""
    files: dict[str, dict[str, Any]] = {}
    for path in _files(folder):
        path.chmod(0o444)
        files[str(path.relative_to(folder))] = {
            "hash": content_hash(path, sync=True),
            "size": path.stat().st_size,
        }
    manifest = Manifest(kind, key, made_from, files)
    _write(folder / MANIFEST, vars(manifest))
    _write(folder / STAMPS, {name: _stamp(folder / name) for name in files})
    _sync(folder)
    return manifest


def read(folder: Path) -> Manifest:
    """The manifest of an artifact.

    Raises Damaged where it is missing or unreadable.
    """
    try:
        fields = json.loads((folder / MANIFEST).read_bytes())
        return Manifest(
            kind=str(fields["kind"]),
            key=str(fields["key"]),
            made_from=dict(fields["made_from"]),
            files={
                str(name): {"hash": str(row["hash"]), "size": int(row["size"])}
                for name, row in fields["files"].items()
            },
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _raise_if_ours(error)
        raise Damaged(f"{folder / MANIFEST} cannot be read ({error})") from error


def check(folder: Path, *, thorough: bool = False) -> Manifest:
    """See that an artifact is whole.

    thorough: hash every file, also where its stamp agrees.

    Raises Damaged and names the file.
    """
    manifest = read(folder)
    stamps = _read_stamps(folder)
    current: dict[str, list[int]] = {}
    for name, row in manifest.files.items():
        path = folder / name
        try:
            current[name] = _stamp(path)
            if not thorough and stamps.get(name) == current[name]:
                continue
            if current[name][0] != row["size"]:
                raise Damaged(f"{path} has {current[name][0]} bytes instead of {row['size']}")
            if content_hash(path) != row["hash"]:
                raise Damaged(f"{path} does not have the contents it was made with")
        except OSError as error:
            _raise_if_ours(error)
            raise Damaged(f"{path} cannot be read ({error.strerror})") from error
    if current != stamps:
        _write(folder / STAMPS, current)
    return manifest


def _raise_if_ours(error: Exception) -> None:
    """Raise an error that tells of this process or its host: the artifact is not damaged by it."""
    if isinstance(error, OSError) and error.errno in _OURS:
        raise error


def content_hash(path: Path, *, sync: bool = False) -> str:
    """A hash of a file's content that holes cost nothing: an empty disk has gigabytes of them.

    It is the SHA-256 of the size and of all blocks that are not zero, each after its
    number; so it is the same whether zeros are stored or are a hole.

    sync: also see to it that its bytes are on the disk.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        at = 0
        while (at := _next_data(stream.fileno(), at)) < size:
            block = stream.read(_BLOCK) if stream.seek(at) == at else b""
            if not block:
                raise OSError(errno.EIO, "it ended while it was read", str(path))
            # Equal length or not: the first byte that differs ends the comparison.
            if not _NOTHING.startswith(block):
                digest.update(at.to_bytes(8, "little"))
                digest.update(block)
            at += _BLOCK
        if sync:
            os.fsync(stream.fileno())
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _next_data(descriptor: int, at: int) -> int:
    """The start of the first block at or after `at` that may hold something."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA) // _BLOCK * _BLOCK
    except OSError as error:
        if error.errno != errno.ENXIO:  # nothing but a hole follows
            raise
        return os.lseek(descriptor, 0, os.SEEK_END)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _stamp(path: Path) -> list[int]:
    status = path.stat(follow_symlinks=False)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read_stamps(folder: Path) -> dict[str, list[int]]:
    try:
        stamps = json.loads((folder / STAMPS).read_bytes())
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _write(path: Path, content: Any) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with temporary.open("w") as stream:
        json.dump(content, stream, sort_keys=True, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.chmod(0o444)
    temporary.replace(path)


def _sync(folder: Path) -> None:
    for directory in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
