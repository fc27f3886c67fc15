"""Frames and fields of the guest protocol, encoded and decoded; no I/O.

What comes from a guest may be crafted, so every length is checked before it is
believed, and a wrong byte raises `FrameError` and nothing else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from novasandbox.errors import InvalidConfig, ProtocolViolation
from novasandbox.guest.protocol import HEADER_SIZE, MAX_PAYLOAD, Frame, Tag

_HEADER = struct.Struct("<BBHII")
_FIELD = struct.Struct("<HHI")
_OFFSET = struct.Struct("<Q")
_PAIR = struct.Struct("<QQ")
_KNOWN = frozenset(Frame)
_CONNECTION_FRAMES = frozenset({Frame.HELLO, Frame.ATTACH, Frame.ATTACHED, Frame.GOAWAY})
_NOT_PAD = re.compile(rb"[^\0]")
_MOST = 2**64 - 1
MOST_STREAM = 2**31
"""The numbers of a guest's streams may begin high, but leave room for many more."""

FieldValue = int | bytes | str | bool
FieldList = Sequence[tuple[Tag, FieldValue]]


class FrameError(ProtocolViolation):
    """Bytes that the protocol does not allow; to a user it is a ProtocolViolation."""

    def details(self) -> dict[str, Any]:
        """The error as plain data, by the name that users know."""
        return super().details() | {"type": ProtocolViolation.__name__}


@dataclass(frozen=True, slots=True)
class Message:
    """One frame. `channel` and `stream` are 0 where the frame's type has none.

    offset: of a DATA frame, where its payload stands in its channel; 0 for others.
    """

    type: Frame
    channel: int
    stream: int
    payload: bytes
    offset: int = 0


def encode(type_: Frame, stream: int = 0, payload: bytes = b"", channel: int = 0) -> bytes:
    """A frame's bytes. Raises FrameError for a payload above 64 KiB."""
    if len(payload) > MAX_PAYLOAD:
        raise FrameError(f"a payload of {len(payload)} bytes does not fit a frame")
    return _HEADER.pack(type_, channel, 0, stream, len(payload)) + payload


def encode_data(stream: int, channel: int, offset: int, data: bytes) -> bytes:
    """A DATA frame: `data` stands at `offset` of the stream's channel."""
    size = len(data) + _OFFSET.size
    return _HEADER.pack(Frame.DATA, channel, 0, stream, size) + _OFFSET.pack(offset) + data


def encode_end(stream: int, channel: int, offset: int) -> bytes:
    """An END frame: the channel ends at `offset`."""
    return encode(Frame.END, stream, _OFFSET.pack(offset), channel)


def encode_credit(stream: int, channel: int, consumed: int, limit: int) -> bytes:
    """A CREDIT frame: bytes up to `consumed` are done with, up to `limit` may be sent."""
    return encode(Frame.CREDIT, stream, _PAIR.pack(consumed, limit), channel)


def encode_resume(stream: int, first: int, second: int) -> bytes:
    """A RESUME frame: send channel 1 from `first` on and channel 2 from `second` on."""
    return encode(Frame.RESUME, stream, _PAIR.pack(first, second))


def decode_offset(payload: bytes) -> int:
    """The offset of an END frame."""
    if len(payload) != _OFFSET.size:
        raise FrameError(f"an offset has 8 bytes, not {len(payload)}")
    return int(_OFFSET.unpack(payload)[0])


def decode_pair(payload: bytes) -> tuple[int, int]:
    """The two offsets of a CREDIT or RESUME frame."""
    if len(payload) != _PAIR.size:
        raise FrameError(f"two offsets have 16 bytes, not {len(payload)}")
    first, second = _PAIR.unpack(payload)
    return int(first), int(second)


def operation(request: bytes) -> int:
    """The operation of a REQUEST frame."""
    return int.from_bytes(request[HEADER_SIZE : HEADER_SIZE + 2], "little")


class Parser:
    """Cuts a byte stream into frames, whatever pieces it arrives in.

    At most one frame (64 KiB) is buffered. After a FrameError the parser is spent.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield every frame that `data` completes. Raises FrameError."""
        data = self._rest + data if self._rest else data
        position, size = 0, len(data)
        try:
            while position < size:
                if data[position] == Frame.PAD:
                    found = _NOT_PAD.search(data, position)
                    position = found.start() if found else size
                    continue
                if size - position < HEADER_SIZE:
                    break
                type_, channel, zero, stream, length = _HEADER.unpack_from(data, position)
                _check_header(type_, channel, zero, stream, length)
                begin = position + HEADER_SIZE
                end = begin + length
                if end > size:
                    break
                position = end
                if type_ == Frame.DATA:
                    # Cut out once: of many megabytes every copy counts.
                    (offset,) = _OFFSET.unpack_from(data, begin)
                    payload = data[begin + _OFFSET.size : end]
                    yield Message(Frame.DATA, channel, stream, payload, offset)
                else:
                    yield Message(Frame(type_), channel, stream, data[begin:end])
        finally:
            self._rest = data[position:]


def _check_header(type_: int, channel: int, zero: int, stream: int, length: int) -> None:
    if type_ not in _KNOWN:
        raise FrameError(f"unknown frame type {type_:#04x}")
    if zero:
        raise FrameError("a reserved field is not zero")
    if length > MAX_PAYLOAD:
        raise FrameError(f"a frame of {length} bytes is longer than {MAX_PAYLOAD}")
    if type_ == Frame.DATA and length <= _OFFSET.size:
        raise FrameError("a DATA frame without data")
    if channel > 2:
        raise FrameError(f"there is no channel {channel}")
    if (stream == 0) != (type_ in _CONNECTION_FRAMES):
        raise FrameError(f"frame type {type_:#04x} on stream {stream}")


def encode_fields(fields: Iterable[tuple[Tag, FieldValue]]) -> bytes:
    """Fields one after the other; integers and booleans as u64, text as UTF-8.

    Text that came from the file system keeps its surrogate escapes as raw bytes. Raises
    InvalidConfig for a number that is no u64, and for text that is no Unicode.
    """
    parts = []
    for tag, value in fields:
        data = _field_bytes(tag, value)
        parts.append(_FIELD.pack(tag, 0, len(data)))
        parts.append(data)
    return b"".join(parts)


def _field_bytes(tag: Tag, value: FieldValue) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, int):
        if not 0 <= value <= _MOST:
            raise InvalidConfig(
                f"{tag.name.lower()}={value!r}", why="it must be a whole number from 0 to 2**64 - 1"
            )
        return _OFFSET.pack(value)
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidConfig(
            f"{tag.name.lower()} holds a lone surrogate, which is no character"
        ) from error


class Fields:
    """Decoded fields. A tag may stand more than once; `get` gives its first value."""

    __slots__ = ("_values",)

    def __init__(self, values: list[tuple[int, bytes]]) -> None:
        self._values = values

    @classmethod
    def decode(cls, payload: bytes) -> Fields:
        """Raises FrameError where a length does not fit; unknown tags are kept."""
        values = []
        position, size = 0, len(payload)
        while position < size:
            if size - position < _FIELD.size:
                raise FrameError("a field's header is cut off")
            tag, zero, length = _FIELD.unpack_from(payload, position)
            position += _FIELD.size
            if zero:
                raise FrameError("a field's reserved bytes are not zero")
            if length > size - position:
                raise FrameError(f"a field of {length} bytes is cut off")
            values.append((tag, payload[position : position + length]))
            position += length
        return cls(values)

    def get(self, tag: Tag, default: bytes = b"") -> bytes:
        """The first value of `tag`, as bytes."""
        return next((value for found, value in self._values if found == tag), default)

    def all(self, tag: Tag) -> list[bytes]:
        """Every value of `tag`, in order."""
        return [value for found, value in self._values if found == tag]

    def has(self, tag: Tag) -> bool:
        """Whether `tag` is there at all."""
        return any(found == tag for found, _ in self._values)

    def number(self, tag: Tag, default: int = 0) -> int:
        """The first value of `tag` as an integer. Raises FrameError if it is none."""
        for found, value in self._values:
            if found == tag:
                if len(value) != _OFFSET.size:
                    raise FrameError(f"field {tag.name} has {len(value)} bytes, not 8")
                return int(_OFFSET.unpack(value)[0])
        return default

    def stream(self) -> int:
        """The stream that the fields name. Raises FrameError where none can have its number."""
        number = self.number(Tag.STREAM)
        if not 1 <= number < MOST_STREAM:
            raise FrameError(f"no stream has the number {number}")
        return number

    def text(self, tag: Tag, default: str = "") -> str:
        """The first value of `tag` as text; bytes that are not UTF-8 are escaped."""
        if not self.has(tag):
            return default
        return self.get(tag).decode("utf-8", "surrogateescape")


class RecordParser:
    """Cuts channel 1's records (`u32 length` + fields) out of pieces of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Fields]:
        """Yield every record that `data` completes. Raises FrameError."""
        buffer = self._buffer
        buffer += data
        position = 0
        try:
            while len(buffer) - position >= 4:
                (length,) = struct.unpack_from("<I", buffer, position)
                if length > MAX_PAYLOAD:
                    raise FrameError(f"a record of {length} bytes is longer than {MAX_PAYLOAD}")
                if len(buffer) - position - 4 < length:
                    break
                body = bytes(memoryview(buffer)[position + 4 : position + 4 + length])
                position += 4 + length
                yield Fields.decode(body)
        finally:
            del buffer[:position]
