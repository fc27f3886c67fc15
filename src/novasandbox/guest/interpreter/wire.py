"""What host, server and contexts say to each other; the only part that both sides load.

On a connection to a context's socket a request goes in and events come out, the last of them
DONE; after that it may carry the next request. A byte from the host before DONE, or its end of
the connection closed, interrupts the cell. The server's socket takes one request in JSON for
each connection and gives one answer. Integers are little-endian.
"""

from __future__ import annotations

import struct
from typing import Any

SERVER = b"\0nova/interpreter"
CONTEXT = b"\0nova/context/"
DEFAULT = "default"

REQUEST = struct.Struct("<I8s")
"""Bytes of code, and the call's own mark, which is never all zero."""
REHEARSAL = bytes(8)
"""Instead of a mark: the code sees and leaves no variables, and is no cell that counts."""
EVENT = struct.Struct("<BI")
"""Kind, and bytes of payload that follow."""
MESSAGE = struct.Struct("<I")
"""Before a request to the server and before its answer: bytes of JSON."""
END = struct.Struct("<IB")
"""Of DONE: the cell's number, and whether results were left out."""

STDOUT, STDERR = 1, 2
RESULT, DISPLAY = 3, 4
"""A MIME bundle in JSON: of the last expression, or of something shown."""
ERROR = 5
"""JSON with name, value and traceback."""
DONE = 6
LOST = 7
"""JSON: how the context's process ended; the cell was not run. Nothing follows."""

MOST_CODE = 16 * 2**20
MOST_PIECE = 65_536
"""Bytes of one event of output."""
MOST_ERROR = 8 * 2**20
"""Bytes of JSON of an error."""
MOST_MESSAGE = 1 << 20
MOST_VALUE = 16 * 2**20
"""Bytes of JSON of one MIME type's data; text/plain is cut, anything else left out."""
MOST_RESULTS = 64 * 2**20
"""Bytes of JSON of all that one cell shows."""
MOST_BUNDLES = 1_000
MOST_TYPES = 32
MOST_TYPE = 200
"""Characters of the name of a MIME type."""
MOST_DEPTH = 100
"""Levels of what JSON holds, its bundle counted."""
MOST_ITEMS = 1_000_000
"""What `items_of` counts in all that one cell shows as JSON and not as text."""
MOST_TRACEBACK = 256 * 2**10
"""Characters; its beginning and its end are kept."""
MOST_CONTEXTS = 64
INTERRUPT = b"\x03"

# Memory that a context's process shares with the server: the mark of the call that runs or
# ran last in its first 8 bytes, then flags.
STATE_RUNNING = 8
"""1 while it runs."""
STATE_ORPHAN = 9
"""1 when its caller has gone, so that nobody would hear how it ends."""
STATE_NOTICE = 10
"""1 while the first call is to be told how the process before ended."""
STATE_SERVES = 11
"""1 once it has come so far as to wait for calls."""

UNSTARTED = 70
"""The exit code of a context that something of ours has failed in."""
CUT = 77
"""The exit code of a context whose code closed what it is reached by."""
TAKEN = 75
"""The server's exit code where another one runs already."""
TOO_OLD = 76
"""Its exit code where this Python is older than 3.8."""


def items_of(text: str, start: int = 0, end: int | None = None) -> int:
    """At least as many as the objects that a JSON text makes, numbers and texts counted."""
    return sum(text.count(mark, start, len(text) if end is None else end) for mark in ",[{")


def is_deeper(value: Any, most: int) -> bool:
    """Whether what JSON holds has more than `most` levels."""
    level = [value]
    for _ in range(most):
        level = [
            below
            for each in level
            if isinstance(each, (dict, list, tuple))
            for below in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True
