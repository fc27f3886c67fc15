"""The guest's end of the protocol on a real socket, played by a test, frame by frame.

It reads and writes bytes by itself, after docs/protocol.md, so that a mistake in the code
under test cannot hide in it.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from novasandbox.core import sockets
from novasandbox.errors import NovaError
from novasandbox.guest.channel import Channel
from novasandbox.guest.protocol import Frame, Op, Tag

BOOT_ID = b"boot-of-the-peer"
HOLDER = b"holder-of-a-test"
WINDOW = 262_144
LONGEST = 65_536
DEADLINE = 20.0


@dataclass(frozen=True)
class Heard:
    """A frame that the host sent."""

    type: int
    channel: int
    stream: int
    payload: bytes

    @property
    def op(self) -> int:
        """The operation of a REQUEST."""
        return int(struct.unpack_from("<H", self.payload)[0])

    @property
    def fields(self) -> dict[int, list[bytes]]:
        """The fields of a REQUEST, by tag."""
        return parse_fields(self.payload[2:])

    @property
    def offset(self) -> int:
        """The offset of DATA or END, the first of RESUME and CREDIT."""
        return int(struct.unpack_from("<Q", self.payload)[0])

    @property
    def second(self) -> int:
        """The second offset of RESUME, the limit of CREDIT."""
        return int(struct.unpack_from("<Q", self.payload, 8)[0])

    @property
    def data(self) -> bytes:
        """The bytes of DATA."""
        return self.payload[8:]


def parse_fields(payload: bytes) -> dict[int, list[bytes]]:
    """Fields by tag."""
    found: dict[int, list[bytes]] = {}
    at = 0
    while at < len(payload):
        tag, zero, size = struct.unpack_from("<HHI", payload, at)
        assert zero == 0
        found.setdefault(tag, []).append(payload[at + 8 : at + 8 + size])
        at += 8 + size
    return found


def frame(type_: int, stream: int = 0, payload: bytes = b"", channel: int = 0) -> bytes:
    """A frame's bytes."""
    return struct.pack("<BBHII", type_, channel, 0, stream, len(payload)) + payload


def fields(*pairs: tuple[int, int | bytes]) -> bytes:
    """Fields, one after the other."""
    parts = []
    for tag, value in pairs:
        data = struct.pack("<Q", value) if isinstance(value, int) else value
        parts.append(struct.pack("<HHI", tag, 0, len(data)) + data)
    return b"".join(parts)


def data(stream: int, offset: int, body: bytes, channel: int = 1) -> bytes:
    """DATA."""
    return frame(Frame.DATA, stream, struct.pack("<Q", offset) + body, channel)


def end(stream: int, offset: int, channel: int = 1) -> bytes:
    """END."""
    return frame(Frame.END, stream, struct.pack("<Q", offset), channel)


def credit(stream: int, consumed: int, limit: int, channel: int = 0) -> bytes:
    """CREDIT."""
    return frame(Frame.CREDIT, stream, struct.pack("<QQ", consumed, limit), channel)


def state(stream: int, *pairs: tuple[int, int | bytes]) -> bytes:
    """STATE."""
    return frame(Frame.STATE, stream, fields(*pairs))


def reply(stream: int, status: int = 0, *pairs: tuple[int, int | bytes]) -> bytes:
    """REPLY."""
    return frame(Frame.REPLY, stream, struct.pack("<I", status) + fields(*pairs))


def record(*pairs: tuple[int, int | bytes]) -> bytes:
    """A record of channel 1."""
    body = fields(*pairs)
    return struct.pack("<I", len(body)) + body


class Connection:
    """One connection of the host's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.padding = 0
        self.attach_payload = b""

    def send(self, *frames: bytes) -> None:
        """Write bytes, without waiting."""
        self._writer.write(b"".join(frames))

    async def flush(self) -> None:
        """Wait until the host has read most of what was sent."""
        await self._writer.drain()

    async def read(self) -> Heard:
        """The next frame; PADs are counted. Raises IncompleteReadError at the end."""
        async with asyncio.timeout(DEADLINE):
            while (first := await self._reader.readexactly(1)) == b"\0":
                self.padding += 1
            head = first + await self._reader.readexactly(11)
            type_, channel, zero, stream, size = struct.unpack("<BBHII", head)
            assert zero == 0
            assert size <= LONGEST
            return Heard(type_, channel, stream, await self._reader.readexactly(size))

    async def expect(self, type_: Frame) -> Heard:
        """The next frame, releases of what is over left out; it must be of this type."""
        heard = await self.read()
        while heard.type == Frame.RELEASE and type_ is not Frame.RELEASE:
            heard = await self.read()
        assert heard.type == type_, f"{heard}, expected {type_.name}"
        return heard

    async def request(self, op: Op) -> Heard:
        """The next frame, which must be a REQUEST for `op`."""
        heard = await self.expect(Frame.REQUEST)
        assert heard.op == op, f"operation {heard.op}, expected {op.name}"
        return heard

    async def input(self, size: int) -> bytes:
        """`size` bytes of channel 0, whose offsets must follow each other."""
        got = bytearray()
        first: int | None = None
        while len(got) < size:
            heard = await self.expect(Frame.DATA)
            first = heard.offset if first is None else first
            assert heard.offset == first + len(got)
            got += heard.data
        return bytes(got)

    async def attach(
        self, *, next_stream: int = 1, window: int = WINDOW, boot_id: bytes = BOOT_ID
    ) -> None:
        """Shake hands as an agent does."""
        self.hello()
        await self.attached(next_stream=next_stream, window=window, boot_id=boot_id)

    def hello(self, version: int = 1, least: int = 1) -> None:
        """Say HELLO."""
        body = fields((Tag.VERSION, version), (Tag.MIN_VERSION, least), (Tag.BOOT_ID, BOOT_ID))
        self.send(frame(Frame.HELLO, 0, body))

    async def attached(
        self, *, next_stream: int = 1, window: int = WINDOW, boot_id: bytes = BOOT_ID
    ) -> None:
        """Wait for ATTACH and answer it."""
        self.attach_payload = (await self.expect(Frame.ATTACH)).payload
        self.send(self.attached_frame(next_stream, window, boot_id))

    def attached_frame(
        self, next_stream: int = 1, window: int = WINDOW, boot_id: bytes = BOOT_ID
    ) -> bytes:
        """The ATTACHED that answers the ATTACH that came."""
        body = fields((Tag.BOOT_ID, boot_id), (Tag.NEXT_STREAM, next_stream), (Tag.WINDOW, window))
        return frame(Frame.ATTACHED, 0, b"NOVA-ATT" + self.attach_payload[:16] + body)

    def cut(self) -> None:
        """Lose the connection, whatever is in flight."""
        self._writer.transport.abort()

    async def ended(self) -> bytes:
        """Wait until the host has closed; the bytes that came until then."""
        async with asyncio.timeout(DEADLINE):
            try:
                return await self._reader.read()
            except ConnectionResetError:
                return b""


class Peer:
    """A listening socket; every connection of the host's is handed to the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server: asyncio.Server | None = None
        self._came: asyncio.Queue[Connection] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self._channels: list[Channel] = []

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for channel in self._channels:
            await channel.close()
        self.stop()
        # What was dialled just now is on its way to `_accepted` for some turns of the loop.
        for _ in range(10):
            await asyncio.sleep(0)
        for writer in self._writers:
            writer.transport.abort()

    async def listen(self) -> None:
        """Take connections."""
        self._server = await asyncio.start_unix_server(
            self._accepted, sock=sockets.listen(self.path)
        )

    def stop(self) -> None:
        """Take no more connections."""
        if self._server is not None:
            self._server.close()
            self.path.unlink(missing_ok=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._came.put_nowait(Connection(reader, writer))

    async def accept(self) -> Connection:
        """The host's next connection."""
        async with asyncio.timeout(DEADLINE):
            return await self._came.get()

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """What a channel dials."""
        return await sockets.dial(self.path, protocol)

    def channel(
        self,
        *,
        takeover: bool = False,
        on_lost: Callable[[BaseException], Awaitable[NovaError]] | None = None,
    ) -> Channel:
        """A channel to this peer, closed with it."""
        channel = Channel(self.dial, holder=HOLDER, takeover=takeover, on_lost=on_lost)
        self._channels.append(channel)
        return channel

    async def connect(self) -> tuple[Channel, Connection]:
        """A channel that is open, and the peer's end of it."""
        channel = self.channel()
        opening = asyncio.create_task(channel.open(DEADLINE))
        connection = await self.accept()
        await connection.attach()
        await opening
        return channel, connection

    async def reconnected(self) -> Connection:
        """The host's next connection, after it has taken over."""
        connection = await self.accept()
        await connection.attach()
        assert connection.padding >= LONGEST + 12
        return connection


def noise(size: int) -> bytes:
    """Bytes in which a hole or a repetition shows."""
    return os.urandom(size)
