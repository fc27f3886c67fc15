"""What a context says is believed only as far as it is bounded and well-formed."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novasandbox.errors import ProtocolViolation
from novasandbox.guest.interpreter import wire
from novasandbox.guest.results import Cell, CodeError


def event(kind: int, payload: bytes) -> bytes:
    return wire.EVENT.pack(kind, len(payload)) + payload


def shown(kind: int = wire.DISPLAY, **bundle: object) -> bytes:
    return event(kind, json.dumps({k.replace("_", "/"): v for k, v in bundle.items()}).encode())


DONE = event(wire.DONE, wire.END.pack(7, 0))


@given(st.integers(1, 40))
def test_events_are_the_same_whatever_pieces_they_come_in(size: int) -> None:
    seen: list[tuple[str, str]] = []
    cell = Cell(lambda *piece: seen.append(piece))
    error = json.dumps({"name": "E", "value": "v", "traceback": "t"}).encode()
    data = event(wire.STDOUT, "gr\u00fc".encode()[:3]) + event(wire.STDOUT, "gr\u00fc".encode()[3:])
    data += event(wire.STDERR, b"bad\n") + shown(text_plain="1")
    data += shown(wire.RESULT, text_plain="two", text_html="<b>") + event(wire.ERROR, error) + DONE
    for at in range(0, len(data), size):
        cell.feed(data[at : at + size])
    assert cell.done
    result = cell.result()
    assert (result.stdout, result.stderr, result.text) == ("gr\u00fc", "bad\n", "two")
    assert result.results == [{"text/plain": "1"}, {"text/plain": "two", "text/html": "<b>"}]
    assert result.error == CodeError("E", "v", "t")
    assert (result.execution_count, result.truncated, result.ok) == (7, frozenset(), False)
    assert "".join(text for stream, text in seen if stream == "stdout") == "gr\u00fc"


@pytest.mark.parametrize(
    "data",
    [
        event(0, b""),
        event(200, b""),
        wire.EVENT.pack(wire.STDOUT, wire.MOST_PIECE + 1),
        wire.EVENT.pack(wire.RESULT, wire.MOST_RESULTS + 1),
        wire.EVENT.pack(wire.ERROR, 2**32 - 1),
        event(wire.DONE, b"\0"),
        event(wire.RESULT, b"no json"),
        event(wire.RESULT, b"\xff\xfe"),
        event(wire.RESULT, b"[1]"),
        event(wire.RESULT, b"[" * 100_000),
        event(wire.RESULT, b'{"application/json":' + b"[" * 200 + b"]" * 200 + b"}"),
        event(wire.RESULT, b'{"text/plain": 1}'),
        event(wire.RESULT, json.dumps({"m" * 300: "x"}).encode()),
        event(wire.RESULT, json.dumps({f"text/{n}": "x" for n in range(40)}).encode()),
        event(wire.ERROR, b'{"name": "E", "value": 1, "traceback": ""}'),
        event(wire.ERROR, b"{}"),
        event(wire.ERROR, b'{"name": "", "value": "", "traceback": ""}') * 2,
        event(wire.LOST, b" " * (wire.MOST_PIECE + 1)),
        shown(text_plain="x") * (wire.MOST_BUNDLES + 1),
    ],
    ids=range(19),
)
def test_what_is_no_event_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        Cell(None).feed(data)


MANY = b"[" + b"[]," * wire.MOST_ITEMS + b"1]"
COMMAS = json.dumps("," * (2 * wire.MOST_ITEMS)).encode()


@pytest.mark.parametrize(
    "data",
    [
        event(wire.DISPLAY, b'{"application/json":' + MANY + b"}"),
        event(wire.DISPLAY, b'{"text/html":' + COMMAS + b',"application/json":' + MANY + b"}"),
        event(wire.DISPLAY, b'{"application/json":%s}' % (b"[" + b"[]," * 333_333 + b"1]")) * 2,
        event(wire.DISPLAY, b"{" + MANY + b":1}"),
        event(wire.DISPLAY, b"{" + b'"a/b":"",' * 2 * wire.MOST_ITEMS + b'"a/c":""}'),
        event(wire.DISPLAY, b'{"text/html":' + COMMAS),
        event(wire.DISPLAY, b'{"text/html":' + COMMAS + b"}}"),
        event(wire.DISPLAY, b'{"text/html":' + COMMAS + b',"x/json":' + b"[" * 200 + b"]" * 200),
        event(wire.ERROR, b'{"name":' + MANY + b"}"),
    ],
    ids=range(9),
)
def test_objects_are_counted_before_they_are_made(data: bytes) -> None:
    cell = Cell(None)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolViolation):
            cell.feed(data)
        # An empty list is 3 bytes of JSON and some 64 of memory.
        assert tracemalloc.get_traced_memory()[1] < 100 * wire.MOST_ITEMS
    finally:
        tracemalloc.stop()


def test_a_comma_in_a_text_counts_for_nothing() -> None:
    cell = Cell(None)
    bundle = b'{"text/html": "%s", "application/json": [1, 2]}' % (b"," * 60_000)
    for _ in range(100):
        cell.feed(event(wire.DISPLAY, bundle))
    assert len(cell.result().results) == 100


def test_much_text_is_no_many_objects() -> None:
    cell = Cell(None)
    bundle = b'{ "text/html": ' + COMMAS + b', "application/json" : [1, {"a": null}] }'
    cell.feed(event(wire.DISPLAY, bundle) * 3 + DONE)
    for shown_one in cell.result().results:
        assert shown_one["application/json"] == [1, {"a": None}]
        assert len(shown_one["text/html"]) == 2 * wire.MOST_ITEMS


@given(st.binary(max_size=300))
def test_any_bytes_are_events_or_a_violation(data: bytes) -> None:
    cell = Cell(None)
    try:
        cell.feed(data)
    except ProtocolViolation:
        return
    cell.result()


def test_nothing_is_taken_after_the_end() -> None:
    cell = Cell(None)
    cell.feed(DONE + event(wire.STDOUT, b"more") + b"\xff" * 50)
    assert cell.result().stdout == ""


def test_half_characters_become_what_can_be_written() -> None:
    cell = Cell(None)
    cell.feed(event(wire.RESULT, b'{"text/plain": "a\\ud800b"}') + DONE)
    assert cell.result().text == "a\ufffdb"
    cell.result().text.encode()  # type: ignore[union-attr]


def test_of_much_output_the_end_is_kept_and_that_is_said() -> None:
    cell = Cell(None)
    piece = event(wire.STDOUT, b"x" * wire.MOST_PIECE)
    for _ in range(300):
        cell.feed(piece)
    cell.feed(event(wire.STDOUT, b"end") + event(wire.DONE, wire.END.pack(1, 1)))
    result = cell.result()
    assert len(result.stdout) == 16 * 2**20
    assert result.stdout.endswith("xend")
    assert result.truncated == {"stdout", "results"}
