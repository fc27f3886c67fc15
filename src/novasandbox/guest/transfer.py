"""Whole trees into a guest and out of it.

What comes out is not trusted: every local name is a single component, opened relative to
a directory that this code made or opened without following links, so nothing outside the
target can be touched, whatever the guest calls its files and wherever its links lead.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiofiles.threadpool import wrap

from novasandbox.errors import FileError, OperationFailed, PathError
from novasandbox.guest.files import FileInfo, Files
from novasandbox.guest.paths import shown

if TYPE_CHECKING:
    from aiofiles.threadpool.binary import AsyncBufferedIOBase, AsyncBufferedReader

_CHUNK = 1 << 20
_AT_ONCE = 8
_DEEPEST = 128
_MOST_ENTRIES = 1_000_000

_Job = Callable[[], Coroutine[Any, Any, None]]
Progress = Callable[[int], None]
"""Told the size of each piece, in bytes, when it has been copied."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An entry that was not copied. path: relative to the tree's root."""

    path: str
    why: str


@dataclass
class _Copy:
    """The state that all parts of one copy share."""

    files: Files
    progress: Progress | None = None
    max_bytes: int | None = None
    refused: list[Refused] = field(default_factory=list)
    entries: int = 0
    spent: int = 0

    def refuse(self, path: str, why: str) -> None:
        self.refused.append(Refused(path or ".", why))

    def spend(self, size: int) -> None:
        """Count bytes before they are written. Raises OperationFailed above `max_bytes`."""
        self.spent += size
        if self.max_bytes is not None and self.spent > self.max_bytes:
            raise OperationFailed(
                f"what was to be copied has more than {self.max_bytes:,} bytes",
                fix="What was copied so far is there. Raise max_bytes.",
            )

    def moved(self, size: int) -> None:
        if self.progress is not None:
            self.progress(size)

    def count(self) -> None:
        self.entries += 1
        if self.entries > _MOST_ENTRIES:
            raise OperationFailed(f"the tree has more than {_MOST_ENTRIES:,} entries")


async def upload(
    files: Files,
    local: str | os.PathLike[str],
    remote: str,
    progress: Progress | None = None,
) -> list[Refused]:
    """Copy `local` to `remote`; see `Sandbox.upload`. Raises OSError for `local` itself."""
    source = Path(local)
    kind = source.lstat().st_mode if source.is_symlink() else source.stat().st_mode
    copy = _Copy(files, progress)
    if stat.S_ISDIR(kind):
        await _upload_tree(copy, source, remote.rstrip("/") or "/")
    else:
        await _upload_entry(copy, source, await _inside(files, remote, source.name), source.name)
    return copy.refused


async def _inside(files: Files, remote: str, name: str) -> str:
    """A file copied to a directory goes into it, as with cp."""
    if remote.endswith("/"):
        return remote + name
    with contextlib.suppress(FileError):
        if (await files.stat(remote)).is_directory:
            return f"{remote}/{name}"
    return remote


async def _upload_tree(copy: _Copy, source: Path, remote: str) -> None:
    await copy.files.mkdir(remote)
    jobs: list[_Job] = []
    directories: list[tuple[str, int]] = []
    tree, unread = await asyncio.to_thread(_walk, source)
    for error in unread:
        copy.refuse(os.path.relpath(error.filename, source), _reason(error))
    for folder, names, leaves in tree:
        relative = os.path.relpath(folder, source)
        base = remote if relative == "." else os.path.join(remote, relative)
        for name in names:
            copy.count()
            target = os.path.join(base, name)
            path = Path(folder, name)
            await copy.files.mkdir(target)
            directories.append((target, stat.S_IMODE(path.stat().st_mode)))
        for name in leaves:
            copy.count()
            shown_path = os.path.normpath(os.path.join(relative, name))
            target = os.path.join(base, name)
            jobs.append(partial(_upload_entry, copy, Path(folder, name), target, shown_path))
    await _together(jobs)
    # Last, so that a directory without write permission could be filled before.
    for target, mode in reversed(directories):
        await copy.files.chmod(target, mode & 0o777)


def _walk(source: Path) -> tuple[list[tuple[str, list[str], list[str]]], list[OSError]]:
    """Directories, and everything else by name: links to directories are leaves too.

    And why some directories could not be read.
    """
    found = []
    unread: list[OSError] = []
    for folder, names, leaves in os.walk(source, onerror=unread.append):
        real = [name for name in names if not os.path.islink(os.path.join(folder, name))]
        links = [name for name in names if name not in real]
        names[:] = real
        found.append((folder, real, leaves + links))
    return found, unread


async def _upload_entry(copy: _Copy, source: Path, remote: str, shown_path: str) -> None:
    try:
        kind = source.lstat()
        if stat.S_ISLNK(kind.st_mode):
            await _replace_link(copy.files, remote, os.readlink(source))
        elif stat.S_ISREG(kind.st_mode):
            await _upload_file(copy, source, remote, stat.S_IMODE(kind.st_mode))
        else:
            copy.refuse(shown_path, "it is neither a file, a directory, nor a link")
    except FileError:
        raise
    except OSError as error:
        copy.refuse(shown_path, _reason(error))


async def _replace_link(files: Files, remote: str, target: str) -> None:
    try:
        await files.symlink(remote, target)
    except FileError as error:
        if error.errno != errno.EEXIST:
            raise
        await files.remove(remote)
        await files.symlink(remote, target)


async def _upload_file(copy: _Copy, source: Path, remote: str, mode: int) -> None:
    # Opened and closed here, not in a thread that a cancelled call leaves behind.
    with _open_local(source) as local:
        reader: AsyncBufferedReader = wrap(local)
        async with await copy.files.open(remote, "wb") as writer:
            while piece := await reader.read(_CHUNK):
                await writer.write(piece)
                copy.moved(len(piece))
    await copy.files.chmod(remote, mode & 0o777)


def _open_local(source: Path) -> BufferedReader:
    """Open a file that may have become a link, or a pipe without a writer, meanwhile."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(source, flags), "rb")


async def download(
    files: Files,
    remote: str,
    local: str | os.PathLike[str],
    progress: Progress | None = None,
    max_bytes: int | None = None,
) -> list[Refused]:
    """Copy `remote` to `local`; see `Sandbox.download`.

    max_bytes: of all files together; the guest has no more of the host's disk than that.
    Raises OperationFailed when there is more.
    """
    copy = _Copy(files, progress, max_bytes)
    info = await files.stat(remote)
    target = Path(local)
    if info.is_directory:
        target.mkdir(parents=True, exist_ok=True)
        async with _directory(target) as descriptor:
            await _download_tree(copy, remote, "", descriptor, 0)
        return copy.refused
    if info.kind != "file":
        copy.refuse(remote, "it is neither a file, a directory, nor a link")
        return copy.refused
    name = target.name
    if target.is_dir() or str(local).endswith("/"):
        name = os.path.basename(remote.rstrip("/"))
    parent = target if name != target.name else target.parent
    if not _harmless_name(name):
        raise PathError(f"{shown(remote)!r} has no name that a local file could have")
    parent.mkdir(parents=True, exist_ok=True)
    async with _directory(parent) as descriptor:
        await _download_file(copy, remote, info, name, descriptor)
    return copy.refused


@contextlib.asynccontextmanager
async def _directory(path: Path | str, parent: int | None = None) -> AsyncIterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if parent is not None:
        flags |= os.O_NOFOLLOW
    descriptor = os.open(path, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _download_tree(
    copy: _Copy, remote: str, relative: str, directory: int, depth: int
) -> None:
    """Fill the open local `directory` with what `remote` holds."""
    if depth > _DEEPEST:
        copy.refuse(relative, f"it is more than {_DEEPEST} directories deep")
        return
    jobs: list[_Job] = []
    for info in await copy.files.list(remote):
        copy.count()
        path = f"{relative}/{info.name}" if relative else info.name
        source = f"{remote.rstrip('/')}/{info.name}"
        if not _harmless_name(info.name):
            copy.refuse(path, "its name could leave the directory")
        elif info.kind == "file":
            jobs.append(partial(_guarded_file, copy, source, info, path, directory))
        elif info.kind == "link":
            _make_link(copy, info, path, depth, directory)
        elif info.kind == "directory":
            await _descend(copy, source, info, path, directory, depth)
        else:
            copy.refuse(path, "it is neither a file, a directory, nor a link")
    await _together(jobs)


async def _descend(
    copy: _Copy, source: str, info: FileInfo, path: str, directory: int, depth: int
) -> None:
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(info.name, 0o700, dir_fd=directory)
        async with _directory(info.name, directory) as below:
            await _download_tree(copy, source, path, below, depth + 1)
            os.fchmod(below, info.mode & 0o777)
    except (OSError, PathError) as error:  # FileError is an OSError.
        copy.refuse(path, _reason(error))


async def _guarded_file(
    copy: _Copy, source: str, info: FileInfo, path: str, directory: int
) -> None:
    try:
        await _download_file(copy, source, info, info.name, directory)
    except (OSError, PathError) as error:  # FileError is an OSError.
        copy.refuse(path, _reason(error))


async def _download_file(
    copy: _Copy, source: str, info: FileInfo, name: str, directory: int
) -> None:
    """Write beside the name and rename, so that a link of that name is replaced, not followed."""
    temporary = f".nova-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            writer: AsyncBufferedIOBase = wrap(file)
            async with await copy.files.open(source, "rb") as reader:
                async for piece in reader:
                    copy.spend(len(piece))
                    await writer.write(piece)
                    copy.moved(len(piece))
            os.fchmod(descriptor, info.mode & 0o777)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        raise


def _make_link(copy: _Copy, info: FileInfo, path: str, depth: int, directory: int) -> None:
    target = info.target or ""
    if not link_stays_inside(target, depth):
        copy.refuse(path, f"the link leads outside the tree: {shown(target)}")
        return
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(os.stat(info.name, dir_fd=directory, follow_symlinks=False).st_mode):
                os.unlink(info.name, dir_fd=directory)
        os.symlink(target, info.name, dir_fd=directory)
    except OSError as error:
        copy.refuse(path, _reason(error))


def link_stays_inside(target: str, depth: int) -> bool:
    """Whether a link, `depth` directories below the root, cannot lead above the root.

    A `..` after a name is refused: the name may itself be a link, so `..` may be anywhere.
    """
    if not target or target.startswith("/") or "\0" in target:
        return False
    parts = [part for part in target.split("/") if part not in ("", ".")]
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    return climbs <= depth and ".." not in parts[climbs:]


def _reason(error: OSError | PathError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _harmless_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


async def _together(jobs: list[_Job]) -> None:
    """Do all of them, a few at once. Raises the first error as it is."""
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await job()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_AT_ONCE, len(jobs))):
                group.create_task(work())
    except BaseExceptionGroup as failed:
        error = failed.exceptions[0]
        raise error from error.__cause__
