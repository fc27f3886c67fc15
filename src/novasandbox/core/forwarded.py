"""A client's stream on the guest's channel; the client notices no connection lost behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from novasandbox.guest.frames import (
    Fields,
    FrameError,
    Message,
    decode_offset,
    decode_pair,
    encode,
    encode_credit,
    encode_data,
    encode_end,
    encode_fields,
    encode_resume,
    operation,
)
from novasandbox.guest.protocol import (
    HEADER_SIZE,
    MAX_WINDOW,
    STDERR,
    STDIN,
    STDOUT,
    Errno,
    Frame,
    Op,
    Tag,
)

_FIRST = {STDOUT: Tag.FIRST1, STDERR: Tag.FIRST2}


class Client(Protocol):
    """Whoever has opened the stream."""

    def write(self, frame: bytes) -> None:
        """Send a frame to the client."""

    def fail(self, own: int, error: BaseException) -> None:
        """Tell the client why a stream of its own has ended."""


@dataclass(slots=True)
class _Output:
    """Offsets of a byte channel out of the guest.

    sent: by the guest, on this connection. passed: on to the client. consumed, limit: what
    the client has said last; due: the guest has not been told.
    """

    sent: int = 0
    passed: int = 0
    consumed: int = 0
    limit: int = 0
    due: bool = False


class Forwarded:
    """What the channel asks of a stream, on behalf of a client.

    client, own: the client, and its own number of the stream. number: the guest's.
    request: the REQUEST frame; None where the stream was opened by somebody else.
    post: puts a frame on the guest's channel, or drops it while there is no connection.
    window: how much of each output the client lets the guest send ahead.
    """

    def __init__(
        self,
        client: Client,
        own: int,
        number: int,
        request: bytes | None,
        post: Callable[[bytes], None],
        *,
        seen: tuple[int, int] = (0, 0),
        foreground: bool = True,
        window: int = MAX_WINDOW,
    ) -> None:
        self.id = number
        self.window = min(window, MAX_WINDOW)
        self.adoptable = request is None or operation(request) == Op.EXEC
        self.finished = False
        self.foreground = foreground
        self._client = client
        self._own = own
        self._request = request
        self._post = post
        self._outputs = {
            n: _Output(passed=at, consumed=at) for n, at in zip((STDOUT, STDERR), seen, strict=True)
        }
        self._input: deque[tuple[int, bytes]] = deque()
        self._end: int | None = None
        self._cancelled = False
        self._introduced = False
        self._resuming = request is None

    # From the client.

    def send(self, message: Message) -> None:
        """Pass a frame of the client's on to the guest. Raises FrameError."""
        match message.type:
            case Frame.DATA:
                offset, data = message.offset, message.payload
                self._input.append((offset, data))
                self._send_on(encode_data(self.id, STDIN, offset, data))
            case Frame.END:
                self._end = decode_offset(message.payload)
                self._send_on(encode_end(self.id, STDIN, self._end))
            case Frame.CREDIT:
                output = self._output(message.channel)
                output.consumed, output.limit = decode_pair(message.payload)
                output.due = True
                self._give_credit(message.channel)
            case Frame.CANCEL:
                self._cancelled = True
                self._post(encode(Frame.CANCEL, self.id))
            case _:
                raise FrameError(f"{message.type.name} is not a client's to send")

    def _send_on(self, frame: bytes) -> None:
        # Until STATE tells what the guest has, nobody knows where to go on.
        if not self._resuming:
            self._post(frame)

    def _output(self, number: int) -> _Output:
        if number not in self._outputs:
            raise FrameError(f"channel {number} carries no output")
        return self._outputs[number]

    def _give_credit(self, number: int) -> None:
        """Tell the guest what was consumed, when it has sent as much on this connection."""
        output = self._outputs[number]
        if output.due and not self._resuming and output.consumed <= output.sent:
            output.due = False
            self._post(encode_credit(self.id, number, output.consumed, output.limit))

    # From the guest.

    def take(self, message: Message) -> None:
        """Pass a frame of the guest's on to the client. Raises FrameError."""
        if self.finished:
            return
        match message.type:
            case Frame.DATA | Frame.END | Frame.CREDIT:
                # What was in flight when we asked for a place to go on from.
                if not self._resuming:
                    self._take_bytes(message)
            case Frame.STATE:
                self._take_state(message)
            case Frame.REPLY:
                self._take_reply(message)
            case _:
                raise FrameError(f"{message.type.name} is not the guest's to send")

    def _take_bytes(self, message: Message) -> None:
        match message.type:
            case Frame.DATA:
                self._take_data(message.channel, message.offset, message.payload)
                return
            case Frame.CREDIT:
                consumed, _ = decode_pair(message.payload)
                while self._input and self._input[0][0] + len(self._input[0][1]) <= consumed:
                    self._input.popleft()
        self._hand_on(message)

    def _take_data(self, number: int, offset: int, data: bytes) -> None:
        output = self._output(number)
        output.sent = offset + len(data)
        # What the client has already comes again when the guest resumes.
        repeated = output.passed - offset
        if repeated < len(data):
            data = data[max(0, repeated) :]
            offset = output.sent - len(data)
            output.passed = output.sent
            self._client.write(encode_data(self._own, number, offset, data))
        self._give_credit(number)

    def _take_state(self, message: Message) -> None:
        fields = Fields.decode(message.payload)
        self._request = None
        was_resuming, self._resuming = self._resuming, False
        if was_resuming:
            self._go_on(fields)
        if not (was_resuming and self._introduced):
            self._introduced = True
            told = encode_fields([(Tag.STREAM, self.id)]) + message.payload
            self._client.write(encode(Frame.STATE, self._own, told))

    def _go_on(self, fields: Fields) -> None:
        for number, tag in _FIRST.items():
            output, first = self._outputs[number], fields.number(tag)
            if not self._introduced and first > output.passed:
                output.passed = output.consumed = first
        if fields.has(Tag.RECEIVED):
            self._resend(fields.number(Tag.RECEIVED))

    def _resend(self, received: int) -> None:
        for offset, data in self._input:
            if offset + len(data) > received:
                skip = max(0, received - offset)
                self._post(encode_data(self.id, STDIN, offset + skip, data[skip:]))
        if self._end is not None:
            self._post(encode_end(self.id, STDIN, self._end))

    def _take_reply(self, message: Message) -> None:
        status = int.from_bytes(message.payload[:4], "little")
        if Fields.decode(message.payload[4:]).has(Tag.FAILURE):
            raise FrameError("the guest speaks for its holder")
        adopting = self._resuming and self._request is None and not self._introduced
        if adopting and status != Errno.ESTALE:
            return  # In flight to the reader before; it comes again, after the output.
        self.finished = True
        self._hand_on(message)

    def _hand_on(self, message: Message) -> None:
        self._client.write(encode(message.type, self._own, message.payload, message.channel))

    def resume(self) -> bytes:
        """The frames that go on with this stream over a new connection to the guest."""
        self._resuming = True
        for output in self._outputs.values():
            output.sent = output.consumed
            output.due = False  # RESUME implies it.
        first, second = (self._outputs[n].consumed for n in (STDOUT, STDERR))
        resume = encode_resume(self.id, first, second)
        frames = resume if self._request is None else self._request
        if self._request is not None and _goes_on_in_its_input(self._request):
            frames += resume
        return frames + encode(Frame.CANCEL, self.id) if self._cancelled else frames

    def fail(self, error: BaseException) -> None:
        """The connection to the guest is lost for good."""
        if not self.finished:
            self.finished = True
            self._client.fail(self._own, error)


def _goes_on_in_its_input(request: bytes) -> bool:
    """Whether a guest that has this request for new says STATE only when it has its input."""
    fields = request[HEADER_SIZE + 2 :]
    return operation(request) == Op.EXEC and Fields.decode(fields).has(Tag.MORE)
