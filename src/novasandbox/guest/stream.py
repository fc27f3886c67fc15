"""One request to the guest, from its first frame to its reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from novasandbox.guest.flow import Receiver, Sender
from novasandbox.guest.frames import (
    Fields,
    FrameError,
    Message,
    RecordParser,
    decode_offset,
    decode_pair,
    encode,
    encode_resume,
    operation,
)
from novasandbox.guest.protocol import (
    DEFAULT_WINDOW,
    MAX_ERRNO,
    STDERR,
    STDIN,
    STDOUT,
    Errno,
    Frame,
    Op,
    Tag,
)

if TYPE_CHECKING:
    from novasandbox.guest.channel import Channel

# Of records that are kept: a million directory entries with names of usual length.
MOST_RECORDS = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Reply:
    """The end of a request: `status` is 0 or a Linux errno."""

    status: int
    fields: Fields


class Stream:
    """A request under way. Made by `Channel.request` and `Channel.adopt`.

    request: the REQUEST frame; None for a stream that somebody else has opened.
    guest_id: its number in the guest, where that is known.
    """

    def __init__(
        self,
        channel: Channel,
        number: int,
        request: bytes | None,
        *,
        guest_id: int,
        send_limit: int,
        window: int = DEFAULT_WINDOW,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.id = number
        self.request = request
        self.guest_id = guest_id
        self.input = Sender(self, send_limit)
        self.outputs = {n: Receiver(self, n, window) for n in (STDOUT, STDERR)}
        self.state: asyncio.Future[Fields] = loop.create_future()
        self.reply: asyncio.Future[Reply] = loop.create_future()
        self.output_ready = asyncio.Event()
        self.finished = False
        self.adoptable = request is None or operation(request) == Op.EXEC
        self.cancelled = False
        self.resuming = request is None
        self.arrivals = 0
        self.state_needs: Tag | None = None
        """What STATE must hold to count as one: a request that goes on in its input."""
        self._may_skip = request is None
        self._channel = channel
        self._error: BaseException | None = None
        # Whoever awaits these sees their exceptions; nobody has to.
        self.state.add_done_callback(_seen)
        self.reply.add_done_callback(_seen)

    async def started(self) -> Fields | None:
        """STATE's fields once the guest took the request; None if it ended before that."""
        if not self.state.done() and not self.reply.done():
            await asyncio.wait((self.state, self.reply), return_when=asyncio.FIRST_COMPLETED)
        if self.state.done():
            return self.state.result()
        self.reply.result()
        return None

    async def result(self) -> Reply:
        """The reply, once it is there. Raises what ended the stream from outside."""
        # Even for one that is done, asyncio.wait goes around the loop twice.
        if not self.reply.done():
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

    async def records(self, most: int | None = MOST_RECORDS) -> AsyncIterator[Fields]:
        """The records of channel 1, to its end. Raises FrameError for a broken one.

        most: bytes of all of them, above which it is a FrameError too: whoever keeps them has
        no more memory than that for a guest. None for records that nobody keeps.
        """
        parser = RecordParser()
        total = 0
        while data := await self.outputs[STDOUT].read():
            total += len(data)
            if most is not None and total > most:
                raise FrameError(f"more than {most:,} bytes of records")
            for fields in parser.feed(data):
                yield fields

    def next_arrival(self) -> int:
        """Number the pieces of output in the order of their arrival."""
        self.arrivals += 1
        return self.arrivals

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
        self._channel.forget(self, detach=True)

    def raise_if_failed(self) -> None:
        """Raise what ended the stream from outside, if anything did."""
        if self._error is not None:
            # One error is raised in many places: each has a traceback of its own.
            raise self._error.with_traceback(None)

    def take(self, message: Message) -> None:
        """Dispatch a frame of this stream. Raises FrameError."""
        if self.finished:
            return
        match message.type:
            case Frame.DATA | Frame.END | Frame.CREDIT:
                # What was in flight when we asked for a place to go on from.
                if not self.resuming:
                    self._take_bytes(message)
            case Frame.STATE:
                self._take_state(Fields.decode(message.payload))
            case Frame.REPLY:
                self._take_reply(message.payload)
            case _:
                raise FrameError(f"{message.type.name} is not the guest's to send")

    def _take_bytes(self, message: Message) -> None:
        if message.type is Frame.CREDIT:
            if message.channel != STDIN:
                raise FrameError("credit for a channel that the guest sends on")
            self.input.credit(*decode_pair(message.payload))
            return
        if message.channel == STDIN:
            raise FrameError("data on the channel that the host sends on")
        if not self.state.done():
            raise FrameError("output of an operation that has not begun")
        output = self.outputs[message.channel]
        if message.type is Frame.DATA:
            output.feed(message.offset, message.payload)
        else:
            output.end(decode_offset(message.payload))

    def _take_state(self, fields: Fields) -> None:
        if fields.has(Tag.STREAM) and not self._channel.direct:
            self.guest_id = fields.stream()
        if self.resuming:
            self.resuming = False
            self._go_on(fields)
        if not self.state.done() and (self.state_needs is None or fields.has(self.state_needs)):
            self.state.set_result(fields)

    def _go_on(self, fields: Fields) -> None:
        """Both sides agree on the offsets to go on from."""
        for number, tag in ((STDOUT, Tag.FIRST1), (STDERR, Tag.FIRST2)):
            first = fields.number(tag)
            if first > self.outputs[number].received:
                if not self._may_skip:
                    raise FrameError("output is missing that nobody has read")
                self.outputs[number].skip_to(first)
        self._may_skip = False
        adopted = self.request is None and not self.state.done()
        if adopted:
            # Where the guest has no input for it, RECEIVED is missing.
            self.input.ended = not fields.has(Tag.RECEIVED)
            self.input.go_on_from(fields.number(Tag.RECEIVED))
        elif fields.has(Tag.RECEIVED):
            self.input.resend(fields.number(Tag.RECEIVED))

    def _take_reply(self, payload: bytes) -> None:
        if len(payload) < 4:
            raise FrameError("a REPLY without a status")
        status = int.from_bytes(payload[:4], "little")
        if status > MAX_ERRNO:
            raise FrameError(f"{status} is no error number")
        adopting = self.resuming and self.request is None
        if adopting and not self.state.done() and status != Errno.ESTALE:
            return  # In flight to the reader before us; it comes again, after the output.
        reply = Reply(status, Fields.decode(payload[4:]))
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
        offsets = self._rewind()
        if self.request is None or self.state.done():
            return encode_resume(self.id, *offsets)
        if self.state_needs is not None and self.input.sent:
            # A guest that takes the request for new says STATE only when it has its input;
            # RESUME is always answered.
            return self.request + encode_resume(self.id, *offsets)
        return self.request

    def restart(self) -> tuple[int, int]:
        """The offsets to go on from with another holder: nobody read for a while."""
        self._may_skip = True
        return self._rewind()

    def _rewind(self) -> tuple[int, int]:
        self.resuming = True
        return self.outputs[STDOUT].restart(), self.outputs[STDERR].restart()


def _seen(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
