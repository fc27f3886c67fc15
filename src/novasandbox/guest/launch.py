"""What is said about a program before it runs in the guest, checked and encoded."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from novasandbox.errors import InvalidConfig
from novasandbox.guest.frames import FieldValue
from novasandbox.guest.protocol import Tag

DEFAULT_OUTPUT_LIMIT = 16 * 2**20

Command = str | Sequence[str | os.PathLike[str]]
OnLimit = Literal["tail", "error"]


@dataclass(frozen=True, slots=True)
class PtySize:
    """The size of a terminal, in characters."""

    rows: int = 24
    cols: int = 80


class Tail:
    """Collects bytes up to a limit; beyond it the beginning is dropped."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.cut = False
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Keep `data`; of what is no longer needed at most as much again stays for a while."""
        self._data += data
        excess = len(self._data) - self.limit
        if excess > 0:
            self.cut = True
        if excess > self.limit:
            del self._data[:excess]

    def get(self) -> bytes:
        """The last `limit` bytes."""
        return bytes(memoryview(self._data)[max(0, len(self._data) - self.limit) :])


def argv(command: Command) -> tuple[str, ...]:
    """A string goes through /bin/sh -c, a list is taken as it is. Raises InvalidConfig."""
    if isinstance(command, str):
        words: tuple[str, ...] = ("/bin/sh", "-c", command)
    else:
        words = tuple(os.fspath(word) for word in command)
    if not words or not words[0]:
        raise InvalidConfig("the command is empty", fix="Give a program and its arguments.")
    if any("\0" in word for word in words):
        raise InvalidConfig("the command holds a NUL byte, which no argument can")
    return words


def check_env(env: Mapping[str, str] | None) -> list[tuple[Tag, FieldValue]]:
    """Environment variables as fields. Raises InvalidConfig for names that cannot be."""
    fields: list[tuple[Tag, FieldValue]] = []
    for name, value in (env or {}).items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidConfig(
                f"{name!r} cannot be an environment variable",
                fix="Names are not empty and hold no '='; neither holds a NUL byte.",
            )
        fields.append((Tag.ENV, f"{name}={value}"))
    return fields


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything that `start` and `exec` say about a command."""

    command: tuple[str, ...]
    cwd: str | None = None
    env: Mapping[str, str] | None = None
    user: str | None = None
    timeout: float | None = None
    stdin: bool = False
    pty: PtySize | None = None
    background: bool = False
    name: str | None = None
    output_limit: int = DEFAULT_OUTPUT_LIMIT
    on_limit: OnLimit = "tail"

    def __post_init__(self) -> None:
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise InvalidConfig(
                f"a timeout of {self.timeout} s", fix="Give seconds above 0, or None for no end."
            )
        if self.output_limit < 1:
            raise InvalidConfig("output_limit must be at least 1 byte")
        if self.on_limit not in ("tail", "error"):
            raise InvalidConfig(f"on_limit={self.on_limit!r}", fix="Use 'tail' or 'error'.")

    def fields(self) -> list[tuple[Tag, FieldValue]]:
        """The fields of an EXEC request."""
        fields: list[tuple[Tag, FieldValue]] = [(Tag.ARG, word) for word in self.command]
        fields += check_env(self.env)
        if self.cwd is not None:
            fields.append((Tag.CWD, self.cwd))
        if self.user is not None:
            fields.append((Tag.USER, self.user))
        if self.timeout is not None:
            fields.append((Tag.TIMEOUT, max(1, int(self.timeout * 1000))))
        if self.pty is not None:
            fields += [(Tag.PTY, 1), (Tag.ROWS, self.pty.rows), (Tag.COLS, self.pty.cols)]
        if self.stdin or self.pty is not None:
            fields.append((Tag.STDIN, 1))
        if self.background:
            fields.append((Tag.BACKGROUND, 1))
        if self.name is not None:
            fields.append((Tag.NAME, self.name))
        return fields
