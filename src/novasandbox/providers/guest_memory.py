"""A machine's memory, read from outside while its vCPUs stand still.

A booted machine's memory is a file without a name; all that is not a hole in it counts. A
restored one's is a private mapping of a file that many share: there the kernel tells which
pages are its own (/proc/PID/pagemap, Documentation/admin-guide/mm/pagemap.rst).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from novasandbox.errors import OperationFailed, ProviderUnavailable

PAGE = 4096
"""Bytes of a page of the guest, on x86-64 and arm64."""
_HOST_PAGE = os.sysconf("SC_PAGE_SIZE")
_CHUNK = 1 << 20
_ENTRY = 8
# In the highest byte of an entry: 0x80 present, 0x40 swapped out, 0x20 a page of the file.
_IS_OWN = bytes(bool(top & 0xC0 and not top & 0x20) for top in range(256))
_RUN = re.compile(rb"\x01+")


@dataclass(frozen=True, slots=True)
class Run:
    """Pages in a row: where in the guest's memory they start, and their bytes."""

    at: int
    data: bytes


class GuestMemory:
    """The memory of the machine that process `pid` runs, `size` bytes.

    is_whole: `runs` gives all of it, not only what differs from the file it started as.

    Raises OperationFailed where it cannot be found, ProviderUnavailable where the host
    forbids to read it.
    """

    def __init__(self, pid: int, size: int) -> None:
        self._size = size
        self._pagemap: int | None = None
        try:
            self._start, is_private = _mapping(pid, size)
            self.is_whole = not is_private
            if is_private:
                self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
                self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            else:
                self._memory = _memory_file(pid)
        except PermissionError as error:
            raise ProviderUnavailable(
                "the machine's memory cannot be read",
                why=f"the host forbids it ({error})",
                fix="As an ordinary user, allow it with: sysctl kernel.yama.ptrace_scope=0",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._memory)
        if self._pagemap is not None:
            os.close(self._pagemap)

    def runs(self) -> Iterator[Run]:
        """The pages that count, at most 1 MiB a run. Raises OperationFailed."""
        if self._pagemap is None:
            yield from self._file_content()
        else:
            yield from self._own_pages(self._pagemap)

    def _own_pages(self, pagemap: int) -> Iterator[Run]:
        count = self._size // _HOST_PAGE
        entries = os.pread(pagemap, count * _ENTRY, self._start // _HOST_PAGE * _ENTRY)
        if len(entries) != count * _ENTRY:
            raise OperationFailed("the host does not tell which pages are the machine's own")
        own = entries[_ENTRY - 1 :: _ENTRY].translate(_IS_OWN)
        for found in _RUN.finditer(own):
            yield from self._read(found.start() * _HOST_PAGE, found.end() * _HOST_PAGE)

    def _file_content(self) -> Iterator[Run]:
        end = 0
        while end < self._size:
            try:
                first = os.lseek(self._memory, end, os.SEEK_DATA)
            except OSError:
                return  # Nothing but a hole follows.
            end = os.lseek(self._memory, first, os.SEEK_HOLE)
            yield from self._read(first, end)

    def _read(self, first: int, end: int) -> Iterator[Run]:
        base = 0 if self._pagemap is None else self._start
        while first < end:
            data = os.pread(self._memory, min(_CHUNK, end - first), base + first)
            if not data or len(data) % PAGE:
                raise OperationFailed("the machine's memory could not be read to its end")
            yield Run(first, data)
            first += len(data)


def _mapping(pid: int, size: int) -> tuple[int, bool]:
    """Where the guest's memory lies in its process; whether it is private, over a file."""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            span, rights, offset, _, inode, *_ = line.split(maxsplit=5)
            start, end = (int(each, 16) for each in span.split("-"))
            if end - start == size and int(offset, 16) == 0 and inode != "0":
                return start, rights[3] == "p"
    raise OperationFailed("the machine's memory was not found in its process")


def _memory_file(pid: int) -> int:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"{folder}/{name}").startswith("/memfd:memory-backend"):
                return os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    raise OperationFailed("the machine's memory was not found among its descriptors")
