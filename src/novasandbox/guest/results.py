"""What a cell gives, taken from bytes that may be crafted."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from novasandbox.guest.bounded_json import bundle_of, mapping_of
from novasandbox.guest.frames import FrameError
from novasandbox.guest.interpreter import wire
from novasandbox.guest.launch import DEFAULT_OUTPUT_LIMIT, Tail

OnOutput = Callable[[str, str], None]
"""Told each piece of output as it arrives: `stdout` or `stderr`, and the text."""

_PLAIN = "text/plain"
_STREAMS = {wire.STDOUT: "stdout", wire.STDERR: "stderr"}
_MOST = {
    wire.STDOUT: wire.MOST_PIECE,
    wire.STDERR: wire.MOST_PIECE,
    wire.RESULT: wire.MOST_RESULTS,
    wire.DISPLAY: wire.MOST_RESULTS,
    wire.ERROR: wire.MOST_ERROR,
    wire.DONE: wire.END.size,
    wire.LOST: wire.MOST_PIECE,
}
_BUNDLES = (wire.RESULT, wire.DISPLAY)


@dataclass(frozen=True, slots=True)
class CodeError:
    """What a cell raised.

    name: the exception's class, as `ZeroDivisionError`. value: its message. traceback: as
    Python prints it, with the lines of the cells it names.
    """

    name: str
    value: str
    traceback: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CodeResult:
    """What a cell gave.

    text: the value of its last expression as text; None where there is none.
    results: each thing it showed, in order, as a mapping from MIME types to data: text, for
        images but SVG base64, for `application/json` what JSON holds. The last expression's
        value is one of them.
    error: what it raised; None where it ended well.
    execution_count: the number of the cell in its context, from 1.
    truncated: which of `stdout`, `stderr` (their beginning) and `results` are not whole.
    """

    text: str | None
    results: list[Mapping[str, Any]]
    stdout: str
    stderr: str
    error: CodeError | None
    execution_count: int
    truncated: frozenset[str] = frozenset()

    @property
    def ok(self) -> bool:
        """Whether nothing was raised."""
        return self.error is None


class Cell:
    """Collects the events of one cell, at most so much of each kind as `wire` says.

    done: DONE was there. lost: what LOST said.
    """

    def __init__(self, on_output: OnOutput | None) -> None:
        self.done = False
        self.lost: Mapping[str, Any] | None = None
        self._on_output = on_output
        self._buffer = bytearray()
        self._tails = {kind: Tail(DEFAULT_OUTPUT_LIMIT) for kind in _STREAMS}
        self._decoders = {
            kind: codecs.getincrementaldecoder("utf-8")("replace") for kind in _STREAMS
        }
        self._text: str | None = None
        self._results: list[Mapping[str, Any]] = []
        self._shown = 0
        self._items_left = wire.MOST_ITEMS
        self._error: CodeError | None = None
        self._count = 0
        self._left_out = False

    @property
    def begun(self) -> bool:
        """Whether any event came."""
        return self.done or bool(self._buffer or self._results or any(self.output()))

    def output(self) -> tuple[bytes, bytes]:
        """What was printed so far."""
        return self._tails[wire.STDOUT].get(), self._tails[wire.STDERR].get()

    def result(self) -> CodeResult:
        """All of it, once it is done."""
        out, err = self.output()
        cut = {name for kind, name in _STREAMS.items() if self._tails[kind].cut}
        return CodeResult(
            text=self._text,
            results=self._results,
            stdout=out.decode("utf-8", "replace"),
            stderr=err.decode("utf-8", "replace"),
            error=self._error,
            execution_count=self._count,
            truncated=frozenset(cut | ({"results"} if self._left_out else set())),
        )

    def feed(self, data: bytes) -> None:
        """Take bytes of the connection. Raises FrameError where they are no events."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= wire.EVENT.size and not self.done and self.lost is None:
                kind, size = wire.EVENT.unpack_from(buffer, at)
                if size > _MOST.get(kind, -1):
                    raise FrameError(f"an event of kind {kind} with {size} bytes")
                end = at + wire.EVENT.size + size
                if len(buffer) < end:
                    break
                payload = bytes(memoryview(buffer)[at + wire.EVENT.size : end])
                at = end
                self._take(kind, payload)
        finally:
            del buffer[:at]

    def _take(self, kind: int, payload: bytes) -> None:
        if kind in _STREAMS:
            self._tails[kind].add(payload)
            if self._on_output is not None:
                text = self._decoders[kind].decode(payload)
                if text:
                    self._on_output(_STREAMS[kind], text)
        elif kind in _BUNDLES:
            self._take_bundle(kind, payload)
        elif kind == wire.ERROR:
            if self._error is not None:
                raise FrameError("a cell raises twice")
            error, _ = bundle_of(payload, 0)
            self._error = CodeError(*(_text(error, key) for key in ("name", "value", "traceback")))
        elif kind == wire.LOST:
            self.lost = mapping_of(payload)
        else:
            if len(payload) != wire.END.size:
                raise FrameError(f"the end of a cell has {len(payload)} bytes")
            self._count, left_out = wire.END.unpack(payload)
            self._left_out = left_out != 0
            self.done = True

    def _take_bundle(self, kind: int, payload: bytes) -> None:
        self._shown += len(payload)
        if self._shown > wire.MOST_RESULTS or len(self._results) == wire.MOST_BUNDLES:
            raise FrameError("a cell shows more than it may")
        bundle, items = bundle_of(payload, self._items_left)
        self._items_left -= items
        if len(bundle) > wire.MOST_TYPES:
            raise FrameError(f"a result has {len(bundle)} types")
        for mime, value in bundle.items():
            is_allowed = isinstance(value, str) or mime.endswith("json")
            if len(mime) > wire.MOST_TYPE or not is_allowed:
                raise FrameError(f"a result of type {mime[: wire.MOST_TYPE]!r} is no text")
        self._results.append(bundle)
        if kind == wire.RESULT:
            self._text = bundle.get(_PLAIN)


def _text(mapping: Mapping[str, Any], key: str) -> str:
    found = mapping.get(key)
    if not isinstance(found, str):
        raise FrameError(f"an error without {key}")
    return found
