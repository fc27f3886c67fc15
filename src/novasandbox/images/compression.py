"""Decompression of what kernels, modules and packages come in, with a bound on the result."""

from __future__ import annotations

import bz2
import lzma
import zlib
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO, Protocol

    class _Decompressor(Protocol):
        @property
        def eof(self) -> bool: ...
        def decompress(self, data: bytes, /) -> bytes: ...


class BadCompression(ValueError):
    """The data is damaged, or larger than it may be."""


XZ = b"\xfd7zXZ\0"
ZSTD = b"\x28\xb5\x2f\xfd"
GZIP = b"\x1f\x8b\x08"
BZIP2 = b"BZh"
LZ4_LEGACY = b"\x02\x21\x4c\x18"
_PIECE = 1 << 20


def decompress(data: bytes, limit: int = 1 << 30) -> bytes:
    """The content of `data`, which may be xz, zstd, gzip or bzip2, or as it is.

    What follows the first stream is ignored: a kernel's payload has its size there.

    limit: the most bytes that the content may have.

    Raises BadCompression where the data is damaged or its content is larger.
    """
    if data.startswith(LZ4_LEGACY):
        return _lz4_legacy(data, limit)
    if data.startswith((XZ, ZSTD, GZIP, BZIP2)):
        out = BytesIO()
        copy(BytesIO(data), out, limit)
        return out.getvalue()
    if len(data) > limit:
        raise BadCompression(f"it has more than {limit} bytes")
    return data


def copy(source: BinaryIO, target: BinaryIO, limit: int) -> None:
    """Write the content of a compressed stream to another; the first bytes say how it is packed."""
    piece = source.read(_PIECE)
    machine = _machine(piece)
    written = 0
    try:
        while piece:
            content = machine.decompress(piece) if machine else piece
            written += len(content)
            if written > limit:
                raise BadCompression(f"its content has more than {limit} bytes")
            target.write(content)
            if machine and machine.eof:
                return
            piece = source.read(_PIECE)
    except BadCompression:
        raise
    except (lzma.LZMAError, zlib.error, OSError, EOFError, ValueError) as error:
        raise BadCompression(str(error)) from error
    if machine:
        raise BadCompression("it ends in the middle")


def _machine(head: bytes) -> _Decompressor | None:
    if head.startswith(XZ):
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ)
    if head.startswith(GZIP):
        return zlib.decompressobj(wbits=31)
    if head.startswith(BZIP2):
        return bz2.BZ2Decompressor()
    if head.startswith(ZSTD):
        return _Zstd()
    return None


class _Zstd:
    """zstandard's object with its own error turned into ours."""

    def __init__(self) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._object = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()

    @property
    def eof(self) -> bool:
        return self._object.eof

    def decompress(self, data: bytes, /) -> bytes:
        try:
            return self._object.decompress(data)
        except self._error as error:
            raise BadCompression(str(error)) from error


def _lz4_legacy(data: bytes, limit: int) -> bytes:
    """The frame that the kernel's build uses: blocks of at most 8 MiB, each with its length.

    It has no end mark. In a bzImage the uncompressed size follows; a length that is
    too large to be a block ends it, as the kernel's own unlz4() does.
    """
    import lz4.block

    position, out = 4, bytearray()
    while position + 4 <= len(data):
        length = int.from_bytes(data[position : position + 4], "little")
        if length == int.from_bytes(LZ4_LEGACY, "little"):
            position += 4
            continue
        position += 4
        if length == 0 or position + length > len(data):
            break
        try:
            out += lz4.block.decompress(
                data[position : position + length], uncompressed_size=8 << 20
            )
        except lz4.block.LZ4BlockError as error:
            if out:
                break
            raise BadCompression(str(error)) from error
        if len(out) > limit:
            raise BadCompression(f"its content has more than {limit} bytes")
        position += length
    if not out:
        raise BadCompression("it holds no whole block")
    return bytes(out)
