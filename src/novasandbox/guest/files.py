"""Files in the guest: whole, in pieces of any size, listed, changed and watched."""

from __future__ import annotations

import enum
import errno
import os
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from novasandbox.errors import FileError, InvalidConfig, OperationFailed
from novasandbox.guest.channel import Channel
from novasandbox.guest.frames import Fields, FieldValue, FrameError
from novasandbox.guest.paths import GuestPath, encode_path, shown
from novasandbox.guest.protocol import MAX_WINDOW, STDOUT, Op, Tag
from novasandbox.guest.stream import Reply, Stream

Entry = tuple[Tag, FieldValue]
Kind = Literal["file", "directory", "link", "other"]
_KINDS: dict[int, Kind] = {1: "file", 2: "directory", 3: "link"}
_List = list  # `Files.list` hides the name inside the class.
_READ_SIZE = 1 << 20
_MOST_ENTRIES = 1_000_000
# What Linux allows, without the NUL at the end of a path.
_MOST_NAME, _MOST_PATH = 255, 4_095


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One entry of the file system.

    name: its last component; bytes that are no UTF-8 are surrogate-escaped. size: bytes.
    mode: the 12 permission bits. modified: seconds since the epoch. target: what a link says.
    """

    name: str
    kind: Kind
    size: int
    mode: int
    uid: int
    gid: int
    modified: float
    inode: int
    target: str | None = None

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory (a link to one is not)."""
        return self.kind == "directory"


class Change(enum.Enum):
    """What a watch saw."""

    CREATED = 1
    MODIFIED = 2
    REMOVED = 3
    MOVED_FROM = 4
    MOVED_TO = 5
    ATTRIBUTES = 6
    WRITTEN = 7


@dataclass(frozen=True, slots=True)
class FileEvent:
    """A change below the watched path. path: relative to it; empty for itself."""

    change: Change
    path: str
    is_directory: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """Events were dropped, since they came faster than they were read: look again."""


class Files:
    """A guest's file system, with the rights of the sandbox's user unless told otherwise.

    Every method raises PathError for a path that cannot be one, FileError (an OSError) with
    the guest's errno, and the SandboxFailed kinds when the sandbox is gone.
    """

    def __init__(self, channel: Channel, sandbox_id: str, user: str | None = None) -> None:
        self._channel = channel
        self._sandbox_id = sandbox_id
        self._user = user

    def as_user(self, user: str) -> Files:
        """The same files with another user's rights, as `root`."""
        return Files(self._channel, self._sandbox_id, user)

    async def read(self, path: GuestPath, *, offset: int = 0, size: int | None = None) -> bytes:
        """The bytes of a file, or `size` of them from `offset` on."""
        async with await self.open(path, "rb", offset=offset, size=size) as file:
            return await file.read()

    async def read_text(self, path: GuestPath, encoding: str = "utf-8") -> str:
        """The text of a file. Raises UnicodeDecodeError where it is none."""
        return (await self.read(path)).decode(encoding)

    async def write(
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
        await self._write(path, data, [], mode, parents)

    async def append(self, path: GuestPath, data: bytes | str) -> None:
        """Add to the end of a file; when it fails the file is as it was."""
        await self._write(path, data, [(Tag.APPEND, 1)], None, False)

    async def _write(
        self,
        path: GuestPath,
        data: bytes | str,
        extra: _List[Entry],
        mode: int | None,
        parents: bool,
    ) -> None:
        raw = data.encode() if isinstance(data, str) else data
        file = self._open_writer(path, [*extra, (Tag.SIZE, len(raw))], mode, parents)
        async with file:
            await file.write(raw)

    async def open(
        self,
        path: GuestPath,
        mode: Literal["rb", "wb", "ab"] = "rb",
        *,
        offset: int = 0,
        size: int | None = None,
    ) -> GuestFile:
        """A file to read or write in pieces of any size; use it in `async with`.

        A file written with `wb` takes its place when the block ends without an error.
        """
        if mode == "rb":
            fields: _List[Entry] = [(Tag.OFFSET, offset)]
            if size is not None:
                fields.append((Tag.SIZE, size))
            stream = self._request(Op.READ, path, fields, window=MAX_WINDOW)
            return GuestFile(self, stream, path, writing=False, most=size)
        if mode == "wb":
            return self._open_writer(path, [], None, True)
        if mode == "ab":
            return self._open_writer(path, [(Tag.APPEND, 1)], None, False)
        raise InvalidConfig(f"mode {mode!r}", fix="Use 'rb', 'wb' or 'ab'.")

    def _open_writer(
        self, path: GuestPath, fields: _List[Entry], mode: int | None, parents: bool
    ) -> GuestFile:
        if mode is not None:
            fields = [*fields, (Tag.MODE, mode)]
        if parents:
            fields = [*fields, (Tag.CREATE_PARENTS, 1)]
        return GuestFile(self, self._request(Op.WRITE, path, fields), path, writing=True)

    async def stat(self, path: GuestPath, *, follow: bool = True) -> FileInfo:
        """What an entry is. follow: of what a link leads to."""
        fields = await self._do(Op.STAT, path, [(Tag.FOLLOW, 1)] if follow else [])
        raw = encode_path(path).rstrip(b"/").rsplit(b"/", 1)[-1]
        return _entry(fields, raw.decode("utf-8", "surrogateescape"))

    async def exists(self, path: GuestPath, *, follow: bool = True) -> bool:
        """Whether there is anything at `path`."""
        try:
            await self.stat(path, follow=follow)
        except FileError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return False
            raise
        return True

    async def list(self, path: GuestPath = ".") -> _List[FileInfo]:
        """The entries of a directory, sorted by name."""
        found: _List[FileInfo] = []
        stream = self._request(Op.LIST, path, [])
        try:
            async for fields in stream.records():
                if len(found) == _MOST_ENTRIES:
                    raise OperationFailed(
                        f"cannot list {shown(path)!r}",
                        why=f"it has more than {_MOST_ENTRIES:,} entries",
                        sandbox_id=self._sandbox_id,
                    )
                found.append(_entry(fields, _name(fields)))
            self.check(await stream.result(), "list", path)
        finally:
            stream.release()
        return sorted(found, key=lambda each: each.name)

    async def mkdir(
        self, path: GuestPath, *, mode: int | None = None, parents: bool = True
    ) -> None:
        """Make a directory. parents: and those above it; one that is there is then no error."""
        fields: _List[Entry] = [(Tag.MODE, mode)] if mode is not None else []
        if parents:
            fields.append((Tag.PARENTS, 1))
        await self._do(Op.MKDIR, path, fields)

    async def rename(self, path: GuestPath, target: GuestPath) -> None:
        """Move an entry; a file at `target` is replaced."""
        await self._do(Op.RENAME, path, [(Tag.TARGET_PATH, encode_path(target))])

    async def remove(self, path: GuestPath, *, recursive: bool = False) -> None:
        """Remove a file, a link or an empty directory. recursive: and all below it."""
        await self._do(Op.REMOVE, path, [(Tag.RECURSIVE, 1)] if recursive else [])

    async def chmod(self, path: GuestPath, mode: int) -> None:
        """Set the permission bits."""
        await self._do(Op.CHMOD, path, [(Tag.MODE, mode)])

    async def chown(self, path: GuestPath, uid: int, gid: int) -> None:
        """Set the owner; needs root's rights: `files.as_user("root").chown(…)`."""
        await self._do(Op.CHOWN, path, [(Tag.UID, uid), (Tag.GID, gid)])

    async def utime(self, path: GuestPath, modified: float) -> None:
        """Set when it was modified, in seconds since the epoch."""
        await self._do(Op.UTIME, path, [(Tag.MTIME, int(modified * 1e9))])

    async def truncate(self, path: GuestPath, size: int) -> None:
        """Cut a file, or lengthen it with zeros, to `size` bytes."""
        await self._do(Op.TRUNCATE, path, [(Tag.SIZE, size)])

    async def symlink(self, path: GuestPath, target: GuestPath) -> None:
        """Make a link at `path` that says `target`."""
        await self._do(Op.SYMLINK, path, [(Tag.TARGET_PATH, encode_path(target))])

    async def readlink(self, path: GuestPath) -> str:
        """What a link says."""
        return _target(await self._do(Op.READLINK, path, []))

    async def watch(
        self, path: GuestPath, *, recursive: bool = True
    ) -> AsyncIterator[FileEvent | Lost]:
        """Yield changes below `path` until the iteration is left.

        The watch stands when the call to `__anext__` first waits; `Watch` gives a handle
        that says when.
        """
        async with self.watching(path, recursive=recursive) as watch:
            async for event in watch:
                yield event

    def watching(self, path: GuestPath, *, recursive: bool = True) -> Watch:
        """A watch as a block: inside it every change is seen, from its first line on."""
        fields: _List[Entry] = [(Tag.RECURSIVE, 1)] if recursive else []
        return Watch(self, self._request(Op.WATCH, path, fields), path)

    def _request(
        self, op: Op, path: GuestPath, fields: _List[Entry], window: int | None = None
    ) -> Stream:
        every: _List[Entry] = [(Tag.PATH, encode_path(path)), *fields]
        if self._user is not None:
            every.append((Tag.USER, self._user))
        if window is None:
            return self._channel.request(op, every)
        return self._channel.request(op, every, window=window)

    async def _do(self, op: Op, path: GuestPath, fields: _List[Entry]) -> Fields:
        stream = self._request(op, path, fields)
        try:
            reply = await stream.result()
        finally:
            stream.release()
        self.check(reply, op.name.lower(), path)
        return reply.fields

    def check(self, reply: Reply, verb: str, path: GuestPath) -> None:
        """Raise FileError unless the reply says that all is well."""
        if reply.status:
            raise FileError(
                f"cannot {verb} {shown(path)!r}",
                errno=reply.status,
                path=os.fspath(path),
                why=reply.fields.text(Tag.MESSAGE)[:300] or None,
                sandbox_id=self._sandbox_id,
            )


class GuestFile:
    """An open file of the guest; made by `Files.open`. most: how much of it was asked for."""

    def __init__(
        self,
        files: Files,
        stream: Stream,
        path: GuestPath,
        *,
        writing: bool,
        most: int | None = None,
    ) -> None:
        self._files = files
        self._stream = stream
        self._path = path
        self._writing = writing
        self._pieces: deque[bytes] = deque()
        self._have = 0
        self._room = most
        self._done = False

    async def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, all to the end where it is -1; empty at the end.

        A cancelled call loses nothing: the next one has what was read so far.
        """
        if self._writing:
            raise InvalidConfig("the file is open for writing")
        output = self._stream.outputs[STDOUT]
        while size < 0 or self._have < size:
            if not output.held:
                await output.wait_for(self._wanted(size))
            piece = await output.read()
            if not piece:
                self._files.check(await self._stream.result(), "read", self._path)
                break
            self._keep(piece)
        return self._take(self._have if size < 0 else min(size, self._have))

    def _wanted(self, size: int) -> int:
        """How many bytes are worth waking up for; one too many is, to tell it at once."""
        wanted = _READ_SIZE if size < 0 else size - self._have
        return wanted if self._room is None else min(wanted, self._room + 1)

    def _keep(self, piece: bytes) -> None:
        if self._room is not None:
            self._room -= len(piece)
            if self._room < 0:
                raise FrameError(f"the guest sent more of {shown(self._path)!r} than was asked for")
        self._pieces.append(piece)
        self._have += len(piece)

    def _take(self, size: int) -> bytes:
        """The first `size` bytes of what was read; of a large file every copy counts."""
        taken = []
        self._have -= size
        while size > 0:
            piece = self._pieces.popleft()
            if len(piece) > size:
                self._pieces.appendleft(piece[size:])
                piece = piece[:size]
            taken.append(piece)
            size -= len(piece)
        return b"".join(taken)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the rest of the file in pieces of up to 1 MiB."""
        while piece := await self.read(_READ_SIZE):
            yield piece

    async def write(self, data: bytes) -> None:
        """Send all of `data`; waits while the guest is slow.

        Raises FileError as soon as the guest cannot go on.
        """
        if not self._writing:
            raise InvalidConfig("the file is open for reading")
        try:
            await self._stream.input.send(data)
        except BrokenPipeError as error:
            await self._conclude()
            raise OperationFailed(
                f"cannot write {shown(self._path)!r}", why="the file is closed"
            ) from error

    async def close(self) -> None:
        """Finish: a written file takes its place. Raises FileError when that fails."""
        if self._done:
            return
        if self._writing:
            self._stream.input.end()
            await self._conclude()
        self._release()

    async def _conclude(self) -> None:
        try:
            reply = await self._stream.result()
        finally:
            self._release()
        self._files.check(reply, "write", self._path)

    def _release(self) -> None:
        self._done = True
        self._stream.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self.close()
        elif not self._done:
            self._release()


class Watch:
    """Changes below a path, as an async iterator; made by `Files.watching`."""

    def __init__(self, files: Files, stream: Stream, path: GuestPath) -> None:
        self._files = files
        self._stream = stream
        self._path = path

    async def __aenter__(self) -> Self:
        try:
            if await self._stream.started() is None:
                self._files.check(await self._stream.result(), "watch", self._path)
        except BaseException:
            self._stream.release()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.release()

    async def __aiter__(self) -> AsyncIterator[FileEvent | Lost]:
        """Yield events until the block is left, or the watched path is gone."""
        async for fields in self._stream.records(most=None):
            yield _event(fields)


def _event(fields: Fields) -> FileEvent | Lost:
    if fields.has(Tag.LOST):
        return Lost()
    try:
        change = Change(fields.number(Tag.KIND))
    except ValueError:
        change = Change.MODIFIED
    return FileEvent(change, fields.text(Tag.NAME), fields.has(Tag.IS_DIR))


def _entry(fields: Fields, name: str) -> FileInfo:
    number = fields.number
    return FileInfo(
        name=name,
        kind=_KINDS.get(number(Tag.KIND), "other"),
        size=number(Tag.SIZE),
        mode=number(Tag.MODE),
        uid=number(Tag.UID),
        gid=number(Tag.GID),
        modified=number(Tag.MTIME) / 1e9,
        inode=number(Tag.INODE),
        target=_target(fields) if fields.has(Tag.TARGET_PATH) else None,
    )


def _name(fields: Fields) -> str:
    if len(fields.get(Tag.NAME)) > _MOST_NAME:
        raise FrameError(f"a file name of more than {_MOST_NAME} bytes")
    return fields.text(Tag.NAME)


def _target(fields: Fields) -> str:
    if len(fields.get(Tag.TARGET_PATH)) > _MOST_PATH:
        raise FrameError(f"a link to a path of more than {_MOST_PATH:,} bytes")
    return fields.text(Tag.TARGET_PATH)
