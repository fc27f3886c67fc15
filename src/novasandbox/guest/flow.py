"""The byte channels of a stream, with credit in both directions."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from novasandbox.guest.frames import (
    FrameError,
    encode_credit,
    encode_data,
    encode_end,
)
from novasandbox.guest.protocol import (
    MAX_WINDOW,
    STDIN,
)

if TYPE_CHECKING:
    from novasandbox.guest.stream import Stream

# One write(2) to a virtio port carries 32 KiB; larger frames only add latency.
PIECE = 32_768 - 20
# Pieces of output that wait for a reader in the exact order of both channels.
_MOST_PIECES = 1_024
_MOST_BYTES = 2**62


class Receiver:
    """A byte channel out of the guest. Holds at most `window` bytes that nobody has read."""

    def __init__(self, stream: Stream, number: int, window: int) -> None:
        self._stream = stream
        self._number = number
        self._window = window
        self._pieces: deque[tuple[int, bytearray | bytes]] = deque()
        self._sink: Callable[[bytes], None] | None = None
        self.received = 0
        self.consumed = 0
        self.limit = window
        self.lost = 0
        self.ended = False
        self._enough = 1

    def feed(self, offset: int, data: bytes) -> None:
        """Take bytes from the guest. Raises FrameError when they break the credit."""
        if self.ended:
            raise FrameError("data after the end of a channel")
        if offset != self.received:
            raise FrameError(f"data at offset {offset}, expected {self.received}")
        if offset + len(data) > self.limit:
            raise FrameError("data beyond the credit given")
        self.received += len(data)
        if self._sink is not None:
            self._sink(data)
            self._consume(len(data))
            return
        self._keep(data)
        if self.held >= self._enough:
            self._stream.output_ready.set()

    def _keep(self, data: bytes) -> None:
        """Hold `data`; small pieces are joined, so that a byte costs about a byte."""
        if self._pieces:
            arrival, last = self._pieces[-1]
            follows = self._stream.arrivals == arrival or len(self._pieces) >= _MOST_PIECES
            if follows and len(last) + len(data) <= PIECE:
                joined = last if isinstance(last, bytearray) else bytearray(last)
                joined += data
                self._pieces[-1] = (arrival, joined)
                return
        self._pieces.append((self._stream.next_arrival(), data))

    def skip_to(self, offset: int) -> None:
        """The guest no longer holds what came before `offset`."""
        if offset > _MOST_BYTES:
            raise FrameError(f"no channel has {offset} bytes")
        self.lost += offset - self.received
        self.received = self.consumed = offset
        self.limit = offset + self._window

    def end(self, offset: int) -> None:
        """The guest says that nothing follows."""
        if offset != self.received:
            raise FrameError(f"a channel ends at {offset} after {self.received} bytes")
        self.close()

    def close(self) -> None:
        """Let readers see the end."""
        self.ended = True
        self._stream.output_ready.set()

    def drain_to(self, sink: Callable[[bytes], None] | None) -> None:
        """Hand every byte to `sink` from now on, as it arrives; None: keep them for readers."""
        self._sink = sink
        while sink is not None and self._pieces:
            sink(self.take())

    @property
    def held(self) -> int:
        """How many bytes are there that nobody has read."""
        return self.received - self.consumed

    async def wait_for(self, size: int) -> None:
        """Wait until `size` bytes are there, or half a window, or the end.

        For who wants many: waking a task for each frame takes longer than the frame itself.
        """
        self._enough = min(size, self._window // 2)
        try:
            while self.held < self._enough and not self.ended:
                await self._stream.wait_for_output()
        finally:
            self._enough = 1

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
        return bytes(piece)

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
        """The offset to resume from: that of the first byte which nobody has read.

        The guest still holds what was received and not read, and sends it again; so a guest
        that breaks its connection time and again cannot make us hold more than a window.
        """
        self._pieces.clear()
        self.received = self.consumed
        self.limit = self.consumed + self._window
        self.ended = False
        return self.consumed


class Sender:
    """The byte channel into the guest. Keeps what the guest has not consumed yet."""

    def __init__(self, stream: Stream, limit: int) -> None:
        self._stream = stream
        self._unacknowledged: deque[tuple[int, bytes]] = deque()
        self._room = asyncio.Event()
        self.sent = 0
        self.consumed = 0
        self.limit = min(limit, MAX_WINDOW)
        self.ended = False

    async def send(self, data: bytes | memoryview) -> None:
        """Send all of `data`, waiting for credit. Raises what ended the stream."""
        view = memoryview(data).cast("B")
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
            self._post(encode_data(self._stream.id, STDIN, self.sent, piece))
            self.sent += size
            await self._stream.writable()

    def begin(self, data: bytes) -> bytes:
        """The frame of the first bytes, to be sent right behind the request."""
        assert self.sent == 0
        assert len(data) <= min(PIECE, self.limit)
        self._unacknowledged.append((0, data))
        self.sent = len(data)
        return encode_data(self._stream.id, STDIN, 0, data)

    def end(self) -> None:
        """Nothing follows. Harmless when repeated or after the stream is over."""
        if not self.ended and not self._stream.finished:
            self._post(encode_end(self._stream.id, STDIN, self.sent))
        self.ended = True
        self._room.set()

    def _post(self, frame: bytes) -> None:
        # Until STATE tells what the guest has, nobody knows where to go on.
        if not self._stream.resuming:
            self._stream.post(frame)

    def credit(self, consumed: int, limit: int) -> None:
        """The guest has consumed, and takes more. Raises FrameError."""
        if consumed > self.sent or limit < consumed:
            raise FrameError("credit for bytes that were never sent")
        self.consumed = max(self.consumed, consumed)
        # All that is sent is kept until it is consumed: the guest does not choose how much.
        self.limit = max(self.limit, min(limit, self.consumed + MAX_WINDOW))
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
        """Send again what the guest did not get before the connection was lost.

        Raises FrameError when it claims bytes that were never sent, or lost some it had.
        """
        if not self.consumed <= received <= self.sent:
            raise FrameError(f"the guest has {received} bytes, of {self.consumed} to {self.sent}")
        for offset, piece in self._unacknowledged:
            if offset + len(piece) > received:
                skip = max(0, received - offset)
                self._post(encode_data(self._stream.id, STDIN, offset + skip, piece[skip:]))
        if self.ended:
            self._post(encode_end(self._stream.id, STDIN, self.sent))

    def go_on_from(self, received: int) -> None:
        """An earlier holder has sent this much; how much more is taken, CREDIT says."""
        if received > _MOST_BYTES:
            raise FrameError(f"no channel has {received} bytes")
        self.sent = self.consumed = self.limit = received
