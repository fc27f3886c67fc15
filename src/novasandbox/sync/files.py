"""`Files` without an event loop; each call is explained in `novasandbox.guest.files`."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Literal, Self

from novasandbox.guest import files as guest
from novasandbox.guest.files import FileEvent, FileInfo, Lost
from novasandbox.guest.paths import GuestPath
from novasandbox.sync.handle import Handle

_List = list  # `Files.list` hides the name inside the class.


class Files(Handle):
    """A guest's file system, with the rights of the sandbox's user unless told otherwise.

    Every method raises PathError for a path that cannot be one, FileError (an OSError) with
    the guest's errno, and the SandboxFailed kinds when the sandbox is gone.
    """

    def __init__(self, files: guest.Files) -> None:
        super().__init__()
        self._files = files

    def as_user(self, user: str) -> Files:
        """The same files with another user's rights, as `root`."""
        return Files(self._files.as_user(user))

    def read(self, path: GuestPath, *, offset: int = 0, size: int | None = None) -> bytes:
        """The bytes of a file, or `size` of them from `offset` on."""
        return self._call(lambda: self._files.read(path, offset=offset, size=size))

    def read_text(self, path: GuestPath, encoding: str = "utf-8") -> str:
        """The text of a file. Raises UnicodeDecodeError where it is none."""
        return self._call(lambda: self._files.read_text(path, encoding))

    def write(
        self,
        path: GuestPath,
        data: bytes | str,
        *,
        mode: int | None = None,
        parents: bool = True,
    ) -> None:
        """Put `data` in place of a file, in one step: readers see the old or the new.

        mode: permission bits of a new file (0o644). parents: make missing directories.
        """
        self._call(lambda: self._files.write(path, data, mode=mode, parents=parents))

    def append(self, path: GuestPath, data: bytes | str) -> None:
        """Add to the end of a file; when it fails the file is as it was."""
        self._call(lambda: self._files.append(path, data))

    def open(
        self,
        path: GuestPath,
        mode: Literal["rb", "wb", "ab"] = "rb",
        *,
        offset: int = 0,
        size: int | None = None,
    ) -> GuestFile:
        """A file to read or write in pieces of any size; use it in `with`.

        A file written with `wb` takes its place when the block ends without an error.
        """
        return GuestFile(self._call(lambda: self._files.open(path, mode, offset=offset, size=size)))

    def stat(self, path: GuestPath, *, follow: bool = True) -> FileInfo:
        """What an entry is. follow: of what a link leads to."""
        return self._call(lambda: self._files.stat(path, follow=follow))

    def exists(self, path: GuestPath, *, follow: bool = True) -> bool:
        """Whether there is anything at `path`."""
        return self._call(lambda: self._files.exists(path, follow=follow))

    def list(self, path: GuestPath = ".") -> _List[FileInfo]:
        """The entries of a directory, sorted by name."""
        return self._call(lambda: self._files.list(path))

    def mkdir(self, path: GuestPath, *, mode: int | None = None, parents: bool = True) -> None:
        """Make a directory. parents: and those above it; one that is there is then no error."""
        self._call(lambda: self._files.mkdir(path, mode=mode, parents=parents))

    def rename(self, path: GuestPath, target: GuestPath) -> None:
        """Move an entry; a file at `target` is replaced."""
        self._call(lambda: self._files.rename(path, target))

    def remove(self, path: GuestPath, *, recursive: bool = False) -> None:
        """Remove a file, a link or an empty directory. recursive: and all below it."""
        self._call(lambda: self._files.remove(path, recursive=recursive))

    def chmod(self, path: GuestPath, mode: int) -> None:
        """Set the permission bits."""
        self._call(lambda: self._files.chmod(path, mode))

    def chown(self, path: GuestPath, uid: int, gid: int) -> None:
        """Set the owner; needs root's rights: `files.as_user("root").chown(…)`."""
        self._call(lambda: self._files.chown(path, uid, gid))

    def utime(self, path: GuestPath, modified: float) -> None:
        """Set when it was modified, in seconds since the epoch."""
        self._call(lambda: self._files.utime(path, modified))

    def truncate(self, path: GuestPath, size: int) -> None:
        """Cut a file, or lengthen it with zeros, to `size` bytes."""
        self._call(lambda: self._files.truncate(path, size))

    def symlink(self, path: GuestPath, target: GuestPath) -> None:
        """Make a link at `path` that says `target`."""
        self._call(lambda: self._files.symlink(path, target))

    def readlink(self, path: GuestPath) -> str:
        """What a link says."""
        return self._call(lambda: self._files.readlink(path))

    def watch(self, path: GuestPath, *, recursive: bool = True) -> Iterator[FileEvent | Lost]:
        """Yield changes below `path` until the iteration is left."""
        with self.watching(path, recursive=recursive) as watch:
            yield from watch

    def watching(self, path: GuestPath, *, recursive: bool = True) -> Watch:
        """A watch as a block: inside it every change is seen, from its first line on."""
        return Watch(self._call_plain(lambda: self._files.watching(path, recursive=recursive)))


class GuestFile(Handle):
    """An open file of the guest; made by `Files.open`."""

    def __init__(self, file: guest.GuestFile) -> None:
        super().__init__()
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, all to the end where it is -1; empty at the end."""
        return self._call(lambda: self._file.read(size))

    def __iter__(self) -> Iterator[bytes]:
        """Yield the rest of the file in pieces of up to 1 MiB."""
        return self._each(self._file.__aiter__)

    def write(self, data: bytes) -> None:
        """Send all of `data`; waits while the guest is slow.

        Raises FileError as soon as the guest cannot go on.
        """
        self._call(lambda: self._file.write(data))

    def close(self) -> None:
        """Finish: a written file takes its place. Raises FileError when that fails."""
        self._call(self._file.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._call(lambda: self._file.__aexit__(kind, error, traceback))


class Watch(Handle):
    """Changes below a path, as an iterator; made by `Files.watching`."""

    def __init__(self, watch: guest.Watch) -> None:
        super().__init__()
        self._watch = watch

    def __enter__(self) -> Self:
        self._call(self._watch.__aenter__)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._call(lambda: self._watch.__aexit__(kind, error, traceback))

    def __iter__(self) -> Iterator[FileEvent | Lost]:
        """Yield events until the block is left, or the watched path is gone."""
        return self._each(self._watch.__aiter__)
