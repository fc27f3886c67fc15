"""Debian packages: an `ar` archive that holds two compressed tar archives."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from novasandbox.images import compression

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GLOBAL = b"!<arch>\n"
_HEADER = 60


class BadPackage(ValueError):
    """The file is not a Debian package, or a damaged one."""


@contextmanager
def opened(path: Path, part: str = "data") -> Iterator[tarfile.TarFile]:
    """One of the two archives in a package, to be read once from start to end.

    part: `data` or `control`.

    Raises BadPackage, also while the archive is read.
    """
    try:
        packed = _member(path, f"{part}.tar")
        with (
            _unpacking(packed) as stream,
            tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as archive,
        ):
            yield archive
    except (tarfile.TarError, lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
        raise BadPackage(f"{path.name}: {error}") from error


def _member(path: Path, prefix: str) -> bytes:
    """The member of an ar archive whose name is `prefix`, or starts so before a dot."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(len(_GLOBAL)) != _GLOBAL:
            raise BadPackage(f"{path.name} is not a Debian package")
        while len(header := stream.read(_HEADER)) == _HEADER:
            name = header[:16].decode("ascii", "replace").strip().rstrip("/")
            length = header[48:58].strip()
            if header[58:] != b"`\n" or not length.isdigit() or int(length) > size:
                break
            if name == prefix or name.startswith(f"{prefix}."):
                return stream.read(int(length))
            stream.seek(int(length) + int(length) % 2, io.SEEK_CUR)
    raise BadPackage(f"{path.name} has no {prefix}")


def _unpacking(packed: bytes) -> IO[bytes]:
    source = io.BytesIO(packed)
    if packed.startswith(compression.XZ):
        return lzma.open(source)
    if packed.startswith(compression.GZIP):
        return gzip.open(source)  # type: ignore[return-value]
    if packed.startswith(compression.ZSTD):
        import zstandard

        return zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(source)
    return source
