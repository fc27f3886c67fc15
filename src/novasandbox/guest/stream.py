"""One request to the guest and its byte channels, with credit in both directions."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from novasandbox.guest.frames import (
    Fields,
    FrameError,
    Message,
    decode_data,
    decode_offset,
    decode_pair,
    encode,
    encode_credit,
    encode_data,
    encode_end,
    encode_resume,
)
from novasandbox.guest.protocol import DEFAULT_WINDOW, STDERR, STDIN, STDOUT, Frame, Tag

if TYPE_CHECKING:
    from novasandbox.guest.channel import Channel

# One write(2) to a virtio port carries 32 KiB; larger frames only add latency.
PIECE = 32_768 - 20


@dataclass(frozen=True, slots=True)
class Reply:
    """The end of a request: `status` is 0 or a Linux errno."""

    status: int
    fields: Fields


class Receiver:
    """A byte channel out of the guest. Holds at most `window` bytes that nobody has read."""

    def __init__(self, stream: Stream, number: int, window: int) -> None:
        self._stream = stream
        self._number = number
        self._window = window
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._sink: Callable[[bytes], None] | None = None
        self.received = 0
        self.consumed = 0
        self.limit = window
        self.lost = 0
        self.ended = False

    def feed(self, offset: int, data: bytes, may_skip: bool) -> None:
        """Take bytes from the guest. Raises FrameError when they break the credit."""
        if self.ended:
            raise FrameError("data after the end of a channel")
        if offset != self.received:
            if offset < self.received or not may_skip:
                raise FrameError(f"data at offset {offset}, expected {self.received}")
            self._skip(offset)
        if offset + len(data) > self.limit:
            raise FrameError("data beyond the credit given")
        self.received = offset + len(data)
        if self._sink is not None:
            self._sink(data)
            self._consume(len(data))
            return
        self._pieces.append((self._stream.next_arrival(), data))
        self._stream.output_ready.set()

    def _skip(self, offset: int) -> None:
        self.lost += offset - self.received
        self.consumed += offset - self.received
        self.limit = max(self.limit, offset + self._window)
        self.received = offset

    def end(self, offset: int, may_skip: bool) -> None:
        """The guest says that nothing follows."""
        if offset != self.received:
            if offset < self.received or not may_skip:
                raise FrameError(f"a channel ends at {offset} after {self.received} bytes")
            self._skip(offset)
        self.close()

    def close(self) -> None:
        """Let readers see the end."""
        self.ended = True
        self._stream.output_ready.set()

    def drain_to(self, sink: Callable[[bytes], None]) -> None:
        """Hand every byte to `sink` from now on, as it arrives."""
        self._sink = sink
        while self._pieces:
            sink(self.take())

    async def read(self) -> bytes:
        """The next bytes, of any number; empty at the end. Raises what ended the stream."""
        while not self._pieces:
            if self.ended:
                self._stream.raise_if_failed()
                return b""
            await self._stream.wait_for_output()
        return self.take()

    def take(self) -> bytes:
        """The next bytes, which must be there."""
        _, piece = self._pieces.popleft()
        self._consume(len(piece))
        return piece

    @property
    def arrival(self) -> int | None:
        """When the next bytes arrived, in the stream's own count; None: nothing is there."""
        return self._pieces[0][0] if self._pieces else None

    def _consume(self, size: int) -> None:
        self.consumed += size
        if self.limit - self.consumed <= self._window // 2 and not self.ended:
            self.limit = self.consumed + self._window
            self._stream.post(
                encode_credit(self._stream.id, self._number, self.consumed, self.limit)
            )

    def restart(self) -> int:
        """The offset to resume from; the limit that RESUME implies is taken over."""
        self.limit = self.received + self._window
        return self.received


class Sender:
    """The byte channel into the guest. Keeps what the guest has not consumed yet."""

    def __init__(self, stream: Stream, limit: int) -> None:
        self._stream = stream
        self._unacknowledged: deque[tuple[int, bytes]] = deque()
        self._room = asyncio.Event()
        self.sent = 0
        self.limit = limit
        self.ended = False

    async def send(self, data: bytes | memoryview) -> None:
        """Send all of `data`, waiting for credit. Raises what ended the stream."""
        view = memoryview(data)
        while view:
            self._stream.raise_if_failed()
            if self._stream.finished or self.ended:
                raise BrokenPipeError("the other end no longer reads")
            size = min(len(view), PIECE, self.limit - self.sent)
            if size <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            piece = bytes(view[:size])
            view = view[size:]
            self._unacknowledged.append((self.sent, piece))
            self._stream.post(encode_data(self._stream.id, STDIN, self.sent, piece))
            self.sent += size
            await self._stream.writable()

    def end(self) -> None:
        """Nothing follows. Harmless when repeated or after the stream is over."""
        if not self.ended and not self._stream.finished:
            self._stream.post(encode_end(self._stream.id, STDIN, self.sent))
        self.ended = True

    def credit(self, consumed: int, limit: int) -> None:
        """The guest has consumed, and takes more."""
        if consumed > self.sent or limit < consumed:
            raise FrameError("credit for bytes that were never sent")
        self.limit = max(self.limit, limit)
        while self._unacknowledged:
            offset, piece = self._unacknowledged[0]
            if offset + len(piece) > consumed:
                break
            self._unacknowledged.popleft()
        self._room.set()

    def wake(self) -> None:
        """Let a waiting sender see that the stream is over."""
        self._room.set()

    def resend(self, received: int) -> None:
        """Send again what the guest did not get before the connection was lost."""
        for offset, piece in list(self._unacknowledged):
            if offset + len(piece) > received:
                skip = max(0, received - offset)
                self._stream.post(encode_data(self._stream.id, STDIN, offset + skip, piece[skip:]))
        if self.ended:
            self._stream.post(encode_end(self._stream.id, STDIN, self.sent))


class Stream:
    """A request under way. Made by `Channel.request` and `Channel.adopt`."""

    def __init__(
        self,
        channel: Channel,
        number: int,
        request: bytes | None,
        *,
        send_limit: int,
        window: int = DEFAULT_WINDOW,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.id = number
        self.request = request
        self.guest_id = number
        self.input = Sender(self, send_limit)
        self.outputs = {n: Receiver(self, n, window) for n in (STDOUT, STDERR)}
        self.state: asyncio.Future[Fields] = loop.create_future()
        self.reply: asyncio.Future[Reply] = loop.create_future()
        self.output_ready = asyncio.Event()
        self.finished = False
        self.cancelled = False
        self.may_skip = request is None
        self._arrivals = 0
        self._resuming = request is None
        self._channel = channel
        self._error: BaseException | None = None
        # Whoever awaits these sees their exceptions; nobody has to.
        self.state.add_done_callback(_seen)
        self.reply.add_done_callback(_seen)

    async def started(self) -> Fields | None:
        """STATE's fields once the guest took the request; None if it ended before that."""
        await asyncio.wait((self.state, self.reply), return_when=asyncio.FIRST_COMPLETED)
        if self.state.done():
            return self.state.result()
        self.reply.result()
        return None

    async def result(self) -> Reply:
        """The reply, once it is there. Raises what ended the stream from outside."""
        await asyncio.wait((self.reply,))
        return self.reply.result()

    async def read(self) -> tuple[int, bytes] | None:
        """The next output of either channel in the order of arrival; None at the end."""
        while True:
            there = [
                (output.arrival, number)
                for number, output in self.outputs.items()
                if output.arrival is not None
            ]
            if there:
                number = min(there)[1]
                return number, self.outputs[number].take()
            if all(output.ended for output in self.outputs.values()):
                self.raise_if_failed()
                return None
            await self.wait_for_output()

    async def wait_for_output(self) -> None:
        """Wait until any channel has new bytes or has ended."""
        self.output_ready.clear()
        await self.output_ready.wait()

    def next_arrival(self) -> int:
        """Number the pieces of output in the order of their arrival."""
        self._arrivals += 1
        return self._arrivals

    def post(self, frame: bytes) -> None:
        """Put a frame of this stream on the wire."""
        self._channel.post(frame)

    async def writable(self) -> None:
        """Wait while the connection's own buffer is full."""
        await self._channel.writable()

    def cancel(self) -> None:
        """Ask the guest to end the operation; its reply still comes."""
        if not self.finished:
            self.cancelled = True
            self.post(encode(Frame.CANCEL, self.id))

    def release(self) -> None:
        """Forget the stream here and in the guest; ends the operation if it still runs."""
        self._channel.forget(self)

    def detach(self) -> None:
        """Forget the stream here; in the guest it goes on, with nobody reading."""
        if not self.finished:
            self.post(encode(Frame.DETACH, self.id))
        self._channel.forget(self, release=False)

    def raise_if_failed(self) -> None:
        """Raise what ended the stream from outside, if anything did."""
        if self._error is not None:
            raise self._error

    def take(self, message: Message) -> None:
        """Dispatch a frame of this stream. Raises FrameError."""
        if self.finished:
            return
        match message.type:
            case Frame.DATA:
                offset, data = decode_data(message.payload)
                self._output(message.channel).feed(offset, data, self.may_skip)
            case Frame.END:
                self._output(message.channel).end(decode_offset(message.payload), self.may_skip)
            case Frame.CREDIT:
                if message.channel != STDIN:
                    raise FrameError("credit for a channel that the guest sends on")
                self.input.credit(*decode_pair(message.payload))
            case Frame.STATE:
                self._take_state(Fields.decode(message.payload))
            case Frame.REPLY:
                self._take_reply(message.payload)
            case _:
                raise FrameError(f"{message.type.name} is not the guest's to send")

    def _output(self, number: int) -> Receiver:
        if number == STDIN:
            raise FrameError("data on the channel that the host sends on")
        return self.outputs[number]

    def _take_state(self, fields: Fields) -> None:
        if fields.has(Tag.STREAM):
            self.guest_id = fields.number(Tag.STREAM)
        if self._resuming:
            self._resuming = False
            self.input.resend(fields.number(Tag.RECEIVED))
        if not self.state.done():
            self.state.set_result(fields)

    def _take_reply(self, payload: bytes) -> None:
        if len(payload) < 4:
            raise FrameError("a REPLY without a status")
        reply = Reply(int.from_bytes(payload[:4], "little"), Fields.decode(payload[4:]))
        self._finish()
        self.reply.set_result(reply)

    def _finish(self) -> None:
        self.finished = True
        self.input.wake()
        for output in self.outputs.values():
            output.close()

    def fail(self, error: BaseException) -> None:
        """End the stream from outside: the connection or the machine is gone."""
        if self.finished:
            return
        self._error = error
        self._finish()
        for future in (self.state, self.reply):
            if not future.done():
                future.set_exception(error)

    def resume(self) -> bytes:
        """The frames that go on with this stream over a new connection."""
        frame = self._resume()
        return frame + encode(Frame.CANCEL, self.id) if self.cancelled else frame

    def _resume(self) -> bytes:
        if self.request is not None and not self.state.done():
            for output in self.outputs.values():
                output.restart()
            return self.request
        return encode_resume(self.id, *self.restart())

    def restart(self) -> tuple[int, int]:
        """The offsets to resume from; the next STATE says where the input goes on."""
        self._resuming = True
        return self.outputs[STDOUT].restart(), self.outputs[STDERR].restart()


def _seen(future: asyncio.Future[object]) -> None:
    if not future.cancelled():
        future.exception()
