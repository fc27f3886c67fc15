"""Paths in the guest, checked before they are sent."""

from __future__ import annotations

import os

from novasandbox.errors import PathError

LONGEST = 4_095
LONGEST_NAME = 255

GuestPath = str | bytes | os.PathLike[str]


def encode_path(path: GuestPath) -> bytes:
    """A path as the bytes that the guest's kernel takes. Raises PathError.

    Text is UTF-8; names that are no UTF-8 are given as bytes, or as text with surrogate
    escapes, which is how listings show them.
    """
    raw = os.fspath(path)
    try:
        data = raw.encode("utf-8", "surrogateescape") if isinstance(raw, str) else bytes(raw)
    except UnicodeEncodeError as error:
        raise PathError("the path holds a lone surrogate, which is no character") from error
    if not data:
        raise PathError("the path is empty")
    if b"\0" in data:
        raise PathError("the path holds a NUL byte", why=shown(data))
    if len(data) > LONGEST:
        raise PathError(f"the path has {len(data)} bytes", why=f"at most {LONGEST} can be")
    if any(len(part) > LONGEST_NAME for part in data.split(b"/")):
        raise PathError(
            "a name in the path is too long", why=f"at most {LONGEST_NAME} bytes can be"
        )
    return data


def shown(path: GuestPath, limit: int = 120) -> str:
    """A path for messages: control characters escaped, its middle cut when it is long."""
    raw = os.fspath(path)
    text = raw.decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else raw
    text = text.encode("unicode_escape").decode() if not text.isprintable() else text
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}…{text[-limit // 2 :]}"
