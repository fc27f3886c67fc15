"""Frames and fields: what is written is read, however it is cut, and nothing else is believed."""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novasandbox.errors import InvalidConfig, ProtocolViolation, from_details
from novasandbox.guest.frames import (
    Fields,
    FieldValue,
    FrameError,
    Message,
    Parser,
    RecordParser,
    decode_offset,
    decode_pair,
    encode,
    encode_credit,
    encode_data,
    encode_end,
    encode_fields,
    encode_resume,
)
from novasandbox.guest.protocol import HEADER_SIZE, MAX_PAYLOAD, Frame, Tag

OF_THE_CONNECTION = {Frame.HELLO, Frame.ATTACH, Frame.ATTACHED, Frame.GOAWAY}
U32 = st.integers(1, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Any frame that the protocol allows."""
    type_ = draw(st.sampled_from([each for each in Frame if each is not Frame.PAD]))
    stream = 0 if type_ in OF_THE_CONNECTION else draw(U32)
    is_data = type_ is Frame.DATA
    payload = draw(st.binary(min_size=int(is_data), max_size=300))
    return Message(type_, draw(st.integers(0, 2)), stream, payload, draw(U64) if is_data else 0)


def wire(message: Message) -> bytes:
    """A message as its bytes."""
    if message.type is Frame.DATA:
        return encode_data(message.stream, message.channel, message.offset, message.payload)
    return encode(message.type, message.stream, message.payload, message.channel)


def parse(pieces: Iterable[bytes]) -> list[Message]:
    """What a parser makes of a byte stream that arrives in these pieces."""
    parser = Parser()
    return [message for piece in pieces for message in parser.feed(piece)]


@given(st.lists(st.tuples(messages(), st.integers(0, 40)), max_size=8), st.data())
def test_any_split_of_the_bytes_gives_the_frames_that_were_written(
    sent: list[tuple[Message, int]], draw: st.DataObject
) -> None:
    stream = b"".join(bytes(padding) + wire(message) for message, padding in sent)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    edges = [0, *cuts, len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert parse(pieces) == [message for message, _ in sent]


def test_frames_that_come_byte_by_byte_are_whole() -> None:
    stream = bytes(3) + encode(Frame.REPLY, 7, b"abcd") + bytes(2) + encode(Frame.CANCEL, 9)
    assert parse(bytes([each]) for each in stream) == [
        Message(Frame.REPLY, 0, 7, b"abcd"),
        Message(Frame.CANCEL, 0, 9, b""),
    ]


@given(st.lists(st.binary(max_size=400), max_size=6))
def test_random_bytes_give_frames_or_a_frame_error_and_nothing_else(pieces: list[bytes]) -> None:
    with contextlib.suppress(FrameError):
        parse(pieces)


@given(messages(), st.integers(0, HEADER_SIZE - 1), st.integers(1, 255))
def test_a_header_with_a_wrong_byte_is_another_frame_or_an_error(
    message: Message, at: int, change: int
) -> None:
    broken = bytearray(wire(message))
    broken[at] ^= change
    try:
        for found in parse([bytes(broken)]):
            assert found.channel <= 2
            assert len(found.payload) <= MAX_PAYLOAD
            assert (found.stream == 0) == (found.type in OF_THE_CONNECTION)
    except FrameError:
        pass


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ((0x05, 0, 0, 1, 0), "unknown frame type"),
        ((Frame.REPLY, 0, 1, 1, 4), "reserved"),
        ((Frame.REPLY, 0, 0, 1, MAX_PAYLOAD + 1), "longer than"),
        ((Frame.DATA, 3, 0, 1, 9), "no channel 3"),
        ((Frame.DATA, 1, 0, 1, 8), "without data"),
        ((Frame.REPLY, 0, 0, 0, 4), "on stream 0"),
        ((Frame.HELLO, 0, 0, 1, 0), "on stream 1"),
    ],
)
def test_a_wrong_header_is_refused_before_its_payload_comes(
    header: tuple[int, int, int, int, int], words: str
) -> None:
    with pytest.raises(FrameError, match=words):
        parse([struct.pack("<BBHII", *header)])


def test_the_longest_frame_passes_and_a_longer_one_is_never_written() -> None:
    longest = encode(Frame.GOAWAY, payload=bytes(MAX_PAYLOAD))
    assert len(parse([longest])[0].payload) == MAX_PAYLOAD
    with pytest.raises(FrameError, match="does not fit"):
        encode(Frame.GOAWAY, payload=bytes(MAX_PAYLOAD + 1))


def test_a_parser_never_holds_more_than_one_frame() -> None:
    parser = Parser()
    frame = encode(Frame.DATA, 1, bytes(MAX_PAYLOAD))
    for _ in range(50):
        assert len(list(parser.feed(frame + frame[:-1]))) == 1
        assert len(parser._rest) < len(frame)
        assert len(list(parser.feed(frame[-1:]))) == 1
        assert not parser._rest


def test_padding_is_skipped_at_once_however_long_it_is() -> None:
    parser = Parser()
    assert list(parser.feed(bytes(HEADER_SIZE + MAX_PAYLOAD))) == []
    assert not parser._rest
    assert parse([bytes(1_000_000) + encode(Frame.CANCEL, 1)]) == [Message(Frame.CANCEL, 0, 1, b"")]


def test_to_a_user_a_frame_error_is_a_protocol_violation() -> None:
    error = FrameError("data beyond the credit given")
    assert isinstance(error, ProtocolViolation)
    assert type(from_details(error.details())) is ProtocolViolation


@given(U32, st.integers(0, 2), U64, st.binary(min_size=1, max_size=99))
def test_data_end_credit_and_resume_read_back(
    stream: int, channel: int, offset: int, body: bytes
) -> None:
    frames = [
        encode_data(stream, channel, offset, body),
        encode_end(stream, channel, offset),
        encode_credit(stream, channel, offset, offset),
        encode_resume(stream, offset, offset),
    ]
    data, end, credit, resume = parse(frames)
    assert (data.type, data.channel, data.stream) == (Frame.DATA, channel, stream)
    assert (data.offset, data.payload) == (offset, body)
    assert decode_offset(end.payload) == offset
    assert decode_pair(credit.payload) == decode_pair(resume.payload) == (offset, offset)


@given(st.binary(max_size=20))
def test_payloads_of_a_wrong_length_are_frame_errors(payload: bytes) -> None:
    for decode, good in (
        (decode_offset, len(payload) == 8),
        (decode_pair, len(payload) == 16),
    ):
        if good:
            decode(payload)
        else:
            with pytest.raises(FrameError):
                decode(payload)


VALUES = st.one_of(U64, st.booleans(), st.binary(max_size=50), st.text(max_size=50))


@given(st.lists(st.tuples(st.sampled_from(list(Tag)), VALUES), max_size=10))
def test_fields_read_back_in_order(pairs: list[tuple[Tag, FieldValue]]) -> None:
    try:
        fields = Fields.decode(encode_fields(pairs))
    except InvalidConfig:
        assert any(isinstance(value, str) and not _encodes(value) for _, value in pairs)
        return
    for tag in {tag for tag, _ in pairs}:
        wanted = [value for each, value in pairs if each == tag]
        assert fields.has(tag)
        assert len(fields.all(tag)) == len(wanted)
        first = wanted[0]
        if isinstance(first, int):
            assert fields.number(tag) == first
        elif isinstance(first, bytes):
            assert fields.get(tag) == first
        else:
            assert fields.text(tag) == first


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


@given(st.binary(max_size=200))
def test_random_fields_are_decoded_or_refused(payload: bytes) -> None:
    with contextlib.suppress(FrameError):
        fields = Fields.decode(payload)
        for tag in Tag:
            fields.text(tag)
            fields.number(tag)


def test_what_is_missing_gives_the_default() -> None:
    fields = Fields.decode(b"")
    assert fields.number(Tag.PID, 5) == 5
    assert fields.text(Tag.NAME, "x") == "x"
    assert fields.get(Tag.PATH, b"y") == b"y"
    assert fields.all(Tag.ARG) == []
    assert not fields.has(Tag.PID)


def test_unknown_tags_are_passed_over() -> None:
    unknown = struct.pack("<HHI", 4_242, 0, 3) + b"new"
    fields = Fields.decode(unknown + encode_fields([(Tag.PID, 9)]))
    assert fields.number(Tag.PID) == 9


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_number_that_is_no_u64_is_the_callers_mistake(number: int) -> None:
    with pytest.raises(InvalidConfig, match="offset="):
        encode_fields([(Tag.OFFSET, number)])


def test_text_that_is_no_unicode_is_the_callers_mistake() -> None:
    with pytest.raises(InvalidConfig, match="surrogate"):
        encode_fields([(Tag.CWD, "\ud800")])


def test_bytes_of_the_file_system_survive_as_text() -> None:
    raw = b"caf\xe9/\xff"
    text = Fields.decode(encode_fields([(Tag.PATH, raw)])).text(Tag.PATH)
    assert Fields.decode(encode_fields([(Tag.PATH, text)])).get(Tag.PATH) == raw


@given(st.lists(st.binary(max_size=60), max_size=8), st.data())
def test_records_are_whole_however_they_are_cut(names: list[bytes], draw: st.DataObject) -> None:
    bodies = [encode_fields([(Tag.NAME, name)]) for name in names]
    stream = b"".join(struct.pack("<I", len(body)) + body for body in bodies)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]
    parser = RecordParser()
    found = [
        fields.get(Tag.NAME)
        for a, b in itertools.pairwise(edges)
        for fields in parser.feed(stream[a:b])
    ]
    assert found == names


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_random_records_are_refused_or_bounded(pieces: list[bytes]) -> None:
    parser = RecordParser()
    try:
        for piece in pieces:
            list(parser.feed(piece))
            assert len(parser._buffer) <= MAX_PAYLOAD + 4
    except FrameError:
        pass


def test_a_record_that_announces_too_much_is_refused_before_it_comes() -> None:
    with pytest.raises(FrameError, match="longer than"):
        list(RecordParser().feed(struct.pack("<I", MAX_PAYLOAD + 1)))
