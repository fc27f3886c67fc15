"""The holder's socket: other processes of this user use the sandbox through it.

It speaks the guest protocol, so the same channel serves both ends. Requests for the
guest get a stream number of the guest's and are passed on frame by frame, with credit
from end to end: a slow client holds up its own streams and no other. Four operations
are the holder's own: CONTROL, ADOPT for a stream that runs already, REST and ATTEND.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from novasandbox.core import sockets
from novasandbox.core.exhaustion import host_limits
from novasandbox.core.forwarded import Forwarded
from novasandbox.errors import InvalidRequest, NovaError, OperationFailed
from novasandbox.guest.frames import (
    Fields,
    FrameError,
    Message,
    Parser,
    encode,
    encode_fields,
)
from novasandbox.guest.protocol import (
    ATTACH_MAGIC,
    DEFAULT_WINDOW,
    VERSION,
    Frame,
    Op,
    Tag,
)

if TYPE_CHECKING:
    from novasandbox.core.holder import Holder

log = logging.getLogger(__name__)

CONTROL = 0x8001
ADOPT = 0x8002
# Of a stream that is there already: nobody waits for it, or somebody does again.
REST = 0x8003
ATTEND = 0x8004
# A client that does not read its socket is dropped before it costs much memory: this much,
# besides the output that it asked for itself by giving credit.
_BACKLOG_LIMIT = 8 * 2**20
# Of an error as JSON: with its fields around it, it fits a frame.
_MOST_FAILURE = 60_000
_FAREWELL = 1.0
LAST = "last_request"
"""In the farewell: the number of the client's last request that was taken."""


class Gate:
    """The socket of one sandbox."""

    def __init__(self, holder: Holder, path: Path) -> None:
        self._holder = holder
        self._path = path
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._clients: set[_Client] = set()

    async def open(self) -> None:
        """Listen, mode 0600."""
        loop = asyncio.get_running_loop()
        listening = sockets.listen(self._path)
        self._inode = self._path.stat().st_ino
        # Apart, since a caller who is cancelled while it starts must still be able to shut it.
        self._server = await loop.create_unix_server(
            self._client, sock=listening, start_serving=False
        )
        await self._server.start_serving()

    def _client(self) -> _Client:
        return _Client(self._holder, self._clients)

    @property
    def is_used(self) -> bool:
        """Whether any client is there."""
        return bool(self._clients)

    def shut(self) -> None:
        """Take no more clients and requests. The next holder may listen at once."""
        for client in self._clients:
            client.go_deaf()
        server, self._server = self._server, None
        if server is not None:
            server.close()
            with contextlib.suppress(FileNotFoundError):
                # The next holder may listen there already.
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()

    async def close(self, error: BaseException | None) -> None:
        """Stop listening, let calls under way end, and tell every client why.

        error: None says nothing, so that clients look for the next holder.
        """
        self.shut()
        clients = list(self._clients)
        tasks = {task for client in clients for task in client.calls}
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=_FAREWELL)
            for client in clients:
                client.say_goodbye(error)
            if error is not None:
                # A client that writes meanwhile would lose what it has not read.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_FAREWELL):
                        for client in clients:
                            await client.gone.wait()
        finally:
            for client in clients:
                client.close()


class _Client(asyncio.Protocol):
    """One connection of another process."""

    def __init__(self, holder: Holder, clients: set[_Client]) -> None:
        self._holder = holder
        self._clients = clients
        self._parser = Parser()
        self._transport: asyncio.Transport | None = None
        self._attached = False
        self._streams: dict[int, Forwarded] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._last = 0
        self._deaf = False
        self.gone = asyncio.Event()

    @property
    def calls(self) -> set[asyncio.Task[None]]:
        """The holder's own verbs that are under way."""
        return set(self._calls.values())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._clients.add(self)
        hello = encode_fields(
            [(Tag.VERSION, VERSION), (Tag.MIN_VERSION, VERSION), (Tag.WINDOW, DEFAULT_WINDOW)]
        )
        self.write(encode(Frame.HELLO, payload=hello))

    def write(self, frame: bytes) -> None:
        """Send a frame to the client, or drop a client that does not read."""
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(frame)
        if self._does_not_read(self._transport.get_write_buffer_size()):
            log.warning("a client of %s does not read; dropped", self._holder.id)
            self._transport.abort()

    def _does_not_read(self, waiting: int) -> bool:
        # Both outputs of each stream may fill their windows before the client has read a byte.
        return waiting > _BACKLOG_LIMIT and waiting > _BACKLOG_LIMIT + sum(
            2 * stream.window for stream in self._streams.values()
        )

    def fail(self, stream: int, error: BaseException) -> None:
        """End one stream with an error of the holder's."""
        body = errno.EIO.to_bytes(4, "little")
        body += encode_fields([(Tag.FAILURE, failure_text(error))])
        self.write(encode(Frame.REPLY, stream, body))

    def go_deaf(self) -> None:
        """Take no more requests: the client sends them to the next holder."""
        self._deaf = True

    def say_goodbye(self, error: BaseException | None) -> None:
        """Tell the client why, if there is a reason, and its last request that was taken."""
        if error is not None:
            told = b'{"%s": %d, ' % (LAST.encode(), self._last) + failure_text(error)[1:]
            self.write(encode(Frame.GOAWAY, payload=told))

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def _dismiss(self, error: BaseException) -> None:
        self.say_goodbye(error)
        self.close()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._parser.feed(data):
                if self._attached:
                    self._take(message)
                else:
                    self._attach(message)
        except FrameError as error:
            self._dismiss(InvalidRequest("the client broke the protocol", why=str(error)))
        except NovaError as error:
            self._dismiss(error)

    def _attach(self, message: Message) -> None:
        if message.type is not Frame.ATTACH or len(message.payload) != 34:
            raise FrameError("the first frame must be ATTACH")
        if self._holder.failure is not None:
            raise self._holder.failure.with_traceback(None)
        channel = self._holder.channel
        boot_id = channel.boot_id if channel is not None else b""
        window = channel.send_window if channel is not None else DEFAULT_WINDOW
        fields = encode_fields([(Tag.BOOT_ID, boot_id), (Tag.NEXT_STREAM, 1), (Tag.WINDOW, window)])
        self.write(encode(Frame.ATTACHED, payload=ATTACH_MAGIC + message.payload[:16] + fields))
        self._attached = True

    def _take(self, message: Message) -> None:
        if message.type is Frame.REQUEST:
            self._request(message)
            return
        if message.stream in self._calls:
            # Nobody waits for it any more: it is cut short as one of our own would be.
            if message.type in (Frame.RELEASE, Frame.CANCEL):
                self._calls[message.stream].cancel()
            return
        stream = self._streams.get(message.stream)
        if stream is None:
            return
        channel = self._holder.channel
        if channel is None:
            return
        if message.type in (Frame.RELEASE, Frame.DETACH):
            del self._streams[message.stream]
            channel.drop_forwarded(stream, detach=message.type is Frame.DETACH)
        else:
            stream.send(message)

    def _request(self, message: Message) -> None:
        if len(message.payload) < 2:
            raise FrameError("a REQUEST without an operation")
        op = int.from_bytes(message.payload[:2], "little")
        if self._deaf:
            return
        self._last = max(self._last, message.stream)
        fields = Fields.decode(message.payload[2:])
        if op == CONTROL:
            task = asyncio.create_task(self._control(message.stream, fields))
            self._calls[message.stream] = task
            task.add_done_callback(lambda _: self._calls.pop(message.stream, None))
        elif op == ADOPT:
            self._adopt(message.stream, fields)
        elif op in (REST, ATTEND):
            stream = self._streams.get(message.stream)
            if stream is not None and self._holder.channel is not None:
                self._holder.channel.rest(stream, over=op == ATTEND)
        else:
            self._forward(message, op, fields)

    def _forward(self, message: Message, op: int, fields: Fields) -> None:
        channel = self._holder.channel
        assert channel is not None  # The gate opens after the guest has answered.
        try:
            number = channel.reserve()
        except NovaError as error:
            self.fail(message.stream, error)
            return
        frame = encode(Frame.REQUEST, number, message.payload)
        lasts = op == Op.EXEC and fields.has(Tag.BACKGROUND)
        stream = Forwarded(
            self,
            message.stream,
            number,
            frame,
            channel.post,
            foreground=not lasts,
            window=fields.number(Tag.WINDOW, DEFAULT_WINDOW),
        )
        self._streams[message.stream] = stream
        channel.forward(stream, frame)

    def _adopt(self, own: int, fields: Fields) -> None:
        channel = self._holder.channel
        assert channel is not None
        seen = fields.number(Tag.FIRST1), fields.number(Tag.FIRST2)
        try:
            number = fields.stream()
            channel.check_adoptable(number)
        except FrameError as error:
            self.fail(own, error)
            return
        stream = Forwarded(self, own, number, None, channel.post, seen=seen, foreground=False)
        frame = stream.resume()
        self._streams[own] = stream
        channel.forward(stream, frame, is_new=False)

    async def _control(self, own: int, fields: Fields) -> None:
        try:
            answer = await self._answer(fields.get(Tag.MESSAGE))
        except asyncio.CancelledError:
            self.fail(own, OperationFailed("the call was given up"))
            raise
        body = (0).to_bytes(4, "little") + encode_fields([(Tag.MESSAGE, answer)])
        self.write(encode(Frame.REPLY, own, body))

    async def _answer(self, call: bytes) -> bytes:
        """What a verb gave, or its error, as JSON. Whatever happens: somebody waits for it."""
        # The verbs stand on the holder, which opens this gate.
        from novasandbox.core.verbs import perform

        failure: Exception
        try:
            with host_limits():
                asked = json.loads(call)
                result = await perform(self._holder, str(asked["name"]), dict(asked["arguments"]))
                return json.dumps({"result": result}).encode()
        except NovaError as error:
            failure = error
        except (KeyError, TypeError, ValueError) as error:
            failure = InvalidRequest("a malformed call", why=repr(error))
        except Exception as error:
            # Blind on purpose: without an answer the caller waits for ever.
            log.exception("a verb of %s failed", self._holder.id)
            failure = error
        return b'{"error": ' + failure_text(failure) + b"}"

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (the base class names it)
        self._clients.discard(self)
        self.gone.set()
        for task in self.calls:
            task.cancel()
        channel = self._holder.channel
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            # What ran in the background goes on; what somebody waited for ends with him.
            if channel is not None:
                channel.drop_forwarded(stream, detach=not stream.foreground)


def failure_text(error: BaseException) -> bytes:
    """An error as JSON that fits a frame, so that the client raises the same."""
    if not isinstance(error, NovaError):
        error = OperationFailed("the sandbox's holder failed", why=repr(error))
    details = error.details()
    text = b""
    # A character is one to twelve bytes of JSON, so the length is known only afterwards.
    for most in (4_000, 1_000, 250):
        cut = {key: v[:most] if isinstance(v, str) else v for key, v in details.items()}
        text = json.dumps(cut).encode()
        if len(text) <= _MOST_FAILURE:
            break
    return text
