"""One connection to the agent or to a holder: its handshake, its frames, its loss."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from novasandbox.errors import NovaError, ProtocolViolation
from novasandbox.guest.frames import MOST_STREAM, Fields, FrameError, Message, Parser, encode
from novasandbox.guest.protocol import (
    ATTACH_MAGIC,
    HEADER_SIZE,
    MAX_PAYLOAD,
    MAX_WINDOW,
    VERSION,
    Frame,
    Tag,
)

if TYPE_CHECKING:
    from novasandbox.guest.channel import Channel


def explain(error: BaseException) -> BaseException:
    """An error as users know it: FrameError is this side's own word."""
    if isinstance(error, FrameError):
        return ProtocolViolation("the guest broke the protocol", why=str(error))
    return error


class Link(asyncio.Protocol):
    """One byte stream, from its handshake to its loss."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._parser = Parser()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._attached: asyncio.Future[Fields] = asyncio.get_running_loop().create_future()
        self._attached.add_done_callback(lambda f: f.cancelled() or f.exception())
        self._hello = asyncio.Event()
        self._nonce = os.urandom(16)
        self._hunting = bytearray()
        self._hunt = False
        self._failure: BaseException | None = None
        self._held: bytearray | None = None
        self.alive = False
        self.since = 0.0

    async def attach(self, holder: bytes, takeover: bool) -> Fields:
        """Shake hands. Without a takeover the agent is waited for: it speaks first."""
        attach = encode(Frame.ATTACH, payload=self._nonce + holder + VERSION.to_bytes(2, "little"))
        if takeover:
            self._hunt = True
            self.write(bytes(HEADER_SIZE + MAX_PAYLOAD) + attach)
        else:
            hello = asyncio.create_task(self._hello.wait())
            try:
                await asyncio.wait((hello, self._attached), return_when=asyncio.FIRST_COMPLETED)
            finally:
                hello.cancel()
            self.write(attach)
        return await self._attached

    def raise_if_lost(self) -> None:
        """Raise what ended the connection right after its handshake, if anything did."""
        if self._failure is not None:
            raise explain(self._failure)
        if not self.alive:
            raise ConnectionResetError("closed right after the handshake")

    def write(self, data: bytes) -> None:
        """Send, or drop it where the connection is gone."""
        if self._held is not None:
            self._held += data
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def hold(self) -> None:
        """Keep back what is written from here on."""
        self._held = bytearray()

    @property
    def is_holding(self) -> bool:
        """Whether what is written is kept back."""
        return self._held is not None

    def release(self) -> None:
        """Send what was kept back."""
        held, self._held = self._held, None
        if held:
            self.write(bytes(held))

    async def writable(self) -> None:
        """Wait while the buffer is full."""
        await self._writable.wait()

    def abort(self) -> None:
        """Cut the connection."""
        self.alive = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def pause_writing(self) -> None:
        """The buffer is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The buffer has room again."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Cut bytes into frames and hand them on; a wrong one ends the connection."""
        if self._failure is not None:
            return
        try:
            if self._hunt:
                found = self._hunt_for_attached(data)
                if found is None:
                    return
                data = found
            for message in self._parser.feed(data):
                if self.alive:
                    self._channel.received(message)
                else:
                    self._handshake(message)
        except NovaError as error:
            self._failure = error
            self.abort()

    def _hunt_for_attached(self, data: bytes) -> bytes | None:
        """What an earlier holder left in flight is thrown away up to our own ATTACHED."""
        self._hunting += data
        at = self._hunting.find(ATTACH_MAGIC + self._nonce)
        if at < HEADER_SIZE:
            del self._hunting[: -(HEADER_SIZE + len(ATTACH_MAGIC) + len(self._nonce))]
            return None
        self._hunt = False
        rest = bytes(self._hunting[at - HEADER_SIZE :])
        self._hunting.clear()
        return rest

    def _handshake(self, message: Message) -> None:
        match message.type:
            case Frame.HELLO:
                hello = Fields.decode(message.payload)
                if not hello.number(Tag.MIN_VERSION) <= VERSION <= hello.number(Tag.VERSION):
                    raise FrameError("the agent speaks no version of the protocol that we do")
                self._hello.set()
            case Frame.ATTACHED:
                head = ATTACH_MAGIC + self._nonce
                if not message.payload.startswith(head):
                    raise FrameError("ATTACHED does not answer our ATTACH")
                fields = Fields.decode(message.payload[len(head) :])
                if fields.number(Tag.WINDOW) > MAX_WINDOW:
                    raise FrameError("the agent's window is larger than allowed")
                if fields.number(Tag.NEXT_STREAM) > MOST_STREAM:
                    raise FrameError("the agent has used up its stream numbers")
                self.alive = True
                self.since = asyncio.get_running_loop().time()
                if not self._attached.done():
                    self._attached.set_result(fields)
            case Frame.GOAWAY:
                raise self._channel.goodbye(message.payload)
            case _:
                raise FrameError(f"{message.type.name} before ATTACHED")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever shakes hands, and the channel."""
        self.alive = False
        self._writable.set()
        error = self._failure or exc
        if not self._attached.done():
            self._attached.set_exception(
                explain(error) if error else ConnectionResetError("closed during the handshake")
            )
        self._channel.lost(self, error)
