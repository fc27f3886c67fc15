"""A writer of the `newc` cpio format, in which the kernel takes its initramfs.

The same entries give the same bytes: no times, no owners, inodes counted from 1.
See Documentation/driver-api/early-userspace/buffer-format.rst in the kernel.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO

_END = "TRAILER!!!"


class CpioWriter:
    """Writes entries to a stream as they come, and the trailer at `close`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._inode = 0

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory; the kernel makes no parents by itself, so add those first."""
        self._entry(name, stat.S_IFDIR | mode, b"", links=2)

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._entry(name, stat.S_IFREG | mode, content)

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device."""
        self._entry(name, stat.S_IFCHR | mode, b"", device=(major, minor))

    def close(self) -> None:
        """Write the trailer. The stream stays open."""
        self._entry(_END, 0, b"")

    def _entry(
        self,
        name: str,
        mode: int,
        content: bytes,
        *,
        links: int = 1,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        raw = name.strip("/").encode() + b"\0"
        if b"\0" in raw[:-1] or len(raw) == 1 or len(raw) > 4096:
            raise ValueError(f"not a name for a cpio entry: {name!r}")
        if len(content) > 0xFFFFFFFF:
            raise ValueError(f"{name} is too large for cpio: {len(content)} bytes")
        self._inode += 1
        fields = (
            0 if name == _END else self._inode,
            mode,
            *(0, 0),  # uid, gid
            links,
            0,  # mtime
            len(content),
            *(0, 0),  # the device that holds it
            *device,
            len(raw),
            0,  # checksum, unused in newc
        )
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        self._stream.write(head + bytes(-len(head) % 4))
        self._stream.write(content)
        self._stream.write(bytes(-len(content) % 4))
