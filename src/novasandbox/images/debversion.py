"""Debian's order of versions (deb-version(7)), as a sort key."""

from __future__ import annotations

import re

_PART = re.compile(r"(\D*)(\d*)")

_NOTHING = ((0,), 0)

Key = tuple[int, tuple[tuple[tuple[int, ...], int], ...], tuple[tuple[tuple[int, ...], int], ...]]


def version_key(version: str) -> Key:
    """A key such that keys compare as dpkg compares the versions."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return (int(epoch) if epoch.isdecimal() else 0, _parts(upstream), _parts(revision))


def _parts(text: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Alternating text and numbers, each piece of text closed by the order of its end."""
    parts = [
        ((*(_order(char) for char in match[1]), 0), int(match[2] or 0))
        for match in _PART.finditer(text)
        if match[0]
    ]
    # The end of the whole is like empty pieces without end, and `0` like one of them: `1.0~rc1`
    # sorts before `1.0`, and `1-0` is `1`. Only the first piece can be empty, so two will do.
    while parts and parts[-1] == _NOTHING:
        parts.pop()
    return (*parts, _NOTHING, _NOTHING)


def _order(char: str) -> int:
    """`~` sorts before the end, the end before letters, letters before everything else."""
    if char == "~":
        return -1
    return ord(char) if char.isascii() and char.isalpha() else ord(char) + 256
