"""JSON that may be crafted: nothing of it makes more objects than its reader allows.

Text costs about its own length. A list of empty lists costs thirty times that, and the event
loop stands still while it is read; so items are counted before they are made.
"""

from __future__ import annotations

import json
import re
from typing import Any

from novasandbox.guest.frames import FrameError
from novasandbox.guest.interpreter import wire

_DECODER = json.JSONDecoder()
# Commas and brackets between the values of a bundle, and in their names.
_MORE = wire.MOST_TYPES * (wire.MOST_TYPE + 1)
_SPACE = re.compile(r"[ \t\n\r]*")


def mapping_of(payload: bytes) -> dict[str, Any]:
    """An object in JSON, of limited depth. Raises FrameError for anything else."""
    try:
        found = json.loads(payload)
        if not payload.isascii() or b"\\ud" in payload.lower():
            found = _without_surrogates(found)
    except (ValueError, RecursionError) as error:
        raise FrameError("a part of a result is no JSON", why=str(error)[:200]) from error
    if not isinstance(found, dict) or wire.is_deeper(found, wire.MOST_DEPTH):
        raise FrameError("a part of a result is no object, or nested too deeply")
    return found


def bundle_of(payload: bytes, most: int) -> tuple[dict[str, Any], int]:
    """As `mapping_of`, and how many items there are in its values that are no text.

    Raises FrameError where these are more than `most`.
    """
    # A comma in a text is counted too: then only a look at each value tells.
    if sum(payload.count(mark) for mark in (b",", b"[", b"{")) <= most + wire.MOST_TYPES:
        found = mapping_of(payload)
        if all(isinstance(value, str) for value in found.values()):
            return found, 0
    return _read_one_by_one(payload, most)


def _read_one_by_one(payload: bytes, most: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    left = most
    try:
        text = payload.decode()
        at = _after(text, 0, "{")
        for _ in range(wire.MOST_TYPES):
            name, at = _DECODER.raw_decode(text, _expect(text, at, '"'))
            at = _skip(text, _after(text, at, ":"))
            # What is no text stands last in a bundle, so the rest is little more than it.
            if text[at] != '"' and wire.items_of(text, at) > left + _MORE:
                raise FrameError("a cell shows more than it may")
            found[name], end = _DECODER.raw_decode(text, at)
            if text[at] != '"':
                left -= wire.items_of(text, at, end)
                if left < 0:
                    raise FrameError("a cell shows more than it may")
            at = _skip(text, end)
            if text[at] == "}":
                break
            at = _after(text, at, ",")
        at = _after(text, at, "}")
        if _skip(text, at) != len(text):
            raise ValueError("something follows it")
        found = _without_surrogates(found)
    except (ValueError, IndexError, RecursionError) as error:
        raise FrameError("a part of a result is no JSON", why=str(error)[:200]) from error
    if wire.is_deeper(found, wire.MOST_DEPTH):
        raise FrameError("a part of a result is nested too deeply")
    return found, most - left


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space is not None else at


def _expect(text: str, at: int, mark: str) -> int:
    """Where the next character is, which must be this one."""
    at = _skip(text, at)
    if text[at] != mark:
        raise ValueError(f"no {mark!r} where one must be")
    return at


def _after(text: str, at: int, mark: str) -> int:
    return _expect(text, at, mark) + 1


def _without_surrogates(value: Any) -> Any:
    """The same with U+FFFD for halves of characters, which no encoding could write."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_surrogates(each) for each in value]
    if isinstance(value, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    return value
