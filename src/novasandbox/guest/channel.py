"""The connection to a guest's agent: many streams over one byte stream.

A lost connection is dialled again and every stream goes on where it stood; only
when that fails within its deadline do the streams fail. The same class serves
both ends of the house: a sandbox's holder dials the machine's port, every other
process dials the holder.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from novasandbox.errors import GuestUnreachable, InvalidRequest, NovaError
from novasandbox.guest.frames import (
    FieldList,
    Fields,
    FrameError,
    Message,
    encode,
    encode_fields,
)
from novasandbox.guest.link import Link, explain
from novasandbox.guest.protocol import (
    DEFAULT_WINDOW,
    MAX_PAYLOAD,
    Errno,
    Frame,
    Op,
    Tag,
)
from novasandbox.guest.rousing import Passenger, Streams
from novasandbox.guest.stream import Reply, Stream

log = logging.getLogger(__name__)

Dial = Callable[[asyncio.Protocol], Awaitable[asyncio.Transport]]
"""Connects the given protocol to the other end. Raises OSError where that fails."""


_RECONNECT_PAUSE = 0.05
# A connection that lived shorter than this is no success: the deadline goes on running.
_STABLE = 1.0
_FAREWELL_DELAY = 0.02


class Channel(Streams):
    """A connection to the agent (or to the holder that passes frames on to it).

    dial: opens the byte stream.
    holder: 16 bytes that stay the same while the same program holds the sandbox.
    takeover: whether bytes of an earlier holder may be in flight.
    on_lost: asked for the error that streams end with when the connection is lost for
        good; it may wait for the hypervisor's process to tell the reason.
    """

    direct = True
    """The other end is the agent itself, so that its stream numbers are ours."""
    reconnect_deadline = 5.0
    """Seconds in which a lost connection must be there again."""

    def __init__(
        self,
        dial: Dial,
        *,
        holder: bytes,
        takeover: bool = False,
        on_lost: Callable[[BaseException], Awaitable[NovaError]] | None = None,
    ) -> None:
        super().__init__()
        self._dial = dial
        self._holder = holder
        self._takeover = takeover
        self._on_lost = on_lost
        self._window = DEFAULT_WINDOW
        self._up = asyncio.Event()
        self._farewell_timer: asyncio.TimerHandle | None = None
        self._give_up_at = 0.0
        self._error: BaseException | None = None
        self.boot_id = b""
        self.refusal: NovaError | None = None
        """Raised by new requests, while the guest cannot take any: it is paused."""

    def renew(self, dial: Dial, *, holder: bytes) -> None:
        """The guest goes on in another machine: dial that one from here on."""
        self._dial = dial
        self._holder = holder
        self._takeover = True

    async def open(self, timeout: float) -> Fields:
        """Connect and shake hands within `timeout` seconds; gives ATTACHED's fields.

        Raises GuestUnreachable (nobody answered in time), ProtocolViolation, or OSError
        where the other end cannot be dialled.
        """
        link = Link(self)
        try:
            async with asyncio.timeout(timeout):
                await self._dial(link)
                fields = await link.attach(self._holder, self._takeover)
            self.raise_if_closed()
            link.raise_if_lost()
        except TimeoutError as error:
            link.abort()
            raise GuestUnreachable(f"the guest did not answer within {timeout:g} s") from error
        except BaseException:
            link.abort()
            raise
        self._takeover = True
        self._rouse = None
        self._link = link
        self._window = fields.number(Tag.WINDOW, DEFAULT_WINDOW)
        self._next = max(self._next, fields.number(Tag.NEXT_STREAM, 1))
        self.boot_id = fields.get(Tag.BOOT_ID)
        self._up.set()
        return fields

    def request(
        self,
        op: int,
        fields: FieldList = (),
        *,
        window: int = DEFAULT_WINDOW,
        data: bytes = b"",
    ) -> Stream:
        """Send a request; it runs once or never.

        data: the first bytes of its input, at most PIECE; they leave in one write with it, so
        the operation must take input from the start.

        Raises what closed the channel, what `refusal` holds, and InvalidRequest for one that
        does not fit a frame.
        """
        body = op.to_bytes(2, "little") + encode_fields(fields)
        if window != DEFAULT_WINDOW:
            body += encode_fields([(Tag.WINDOW, window)])
        if len(body) > MAX_PAYLOAD:
            raise InvalidRequest(
                "the request is too long",
                why=f"it has {len(body):,} bytes, and at most {MAX_PAYLOAD:,} can be sent",
                fix="Put what is long into a file.",
            )
        number = self.reserve()
        frame = encode(Frame.REQUEST, number, body)
        stream = Stream(
            self,
            number,
            frame,
            guest_id=number if self.direct else 0,
            send_limit=self._window,
            window=window,
        )
        self._streams[number] = stream
        frame += stream.input.begin(data) if data else b""
        if self.leaves(number):
            self.post(frame)
        return stream

    def adopt(self, number: int, *, window: int = DEFAULT_WINDOW) -> Stream:
        """Attach to a stream that an earlier holder, or another handle, has started.

        number: the guest's. A stream that this channel carries already is shared. Raises
        FrameError for one that is no process's: the guest has lied about its number.
        """
        for known in self._streams.values():
            if isinstance(known, Stream) and known.guest_id == number:
                _check_adoptable(known)
                return known
        if self.direct:
            self.check_adoptable(number)
        own = number if self.direct else self.reserve()
        stream = Stream(self, own, None, guest_id=number, send_limit=0, window=window)
        frame = self.resume_frame(stream)
        self._carry(stream)
        self.post(frame)
        return stream

    def check_adoptable(self, number: int) -> None:
        """Raise FrameError where stream `number` is open and no process's."""
        known = self._streams.get(number)
        if known is not None:
            _check_adoptable(known)

    def _carry(self, stream: Passenger) -> None:
        """Dispatch to `stream` from now on; one that had its number before is told so."""
        self.raise_if_closed()
        before = self._streams.get(stream.id)
        self._streams[stream.id] = stream
        if before is not None and before is not stream:
            before.take(Message(Frame.REPLY, 0, stream.id, Errno.ESTALE.to_bytes(4, "little")))

    async def call(self, op: Op, fields: FieldList = (), *, timeout: float | None = None) -> Reply:
        """A request without byte channels, from start to end; released when it returns."""
        stream = self.request(op, fields)
        try:
            async with asyncio.timeout(timeout):
                return await stream.result()
        finally:
            stream.release()

    @contextlib.asynccontextmanager
    async def held(self, timeout: float) -> AsyncIterator[None]:
        """In this block nothing is on its way to the guest: it has taken whole frames only.

        timeout: seconds for the guest to take what was sent before; one that does not is
        harmed by nobody but itself.
        """
        link = self._link
        self._say_farewells()
        barrier = self.request(Op.PING)
        if link is not None:
            self.hold(link)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await barrier.result()
            yield
        finally:
            if link is not None and not self._standing:
                self.let_go(link)
            barrier.release()

    def reserve(self) -> int:
        """A fresh stream number, for a request that is passed on for another process."""
        self.raise_if_closed()
        if self.refusal is not None:
            raise self.refusal.with_traceback(None)
        self.uses += 1
        if self._rouse is not None:
            self.begin_rousing()
        early = self.early_number()
        if early is not None:
            return early
        while self._next in self._streams:  # Adopted, and from an earlier holder.
            self._next += 1
        number = self._next
        self._next += 1
        return number

    def forward(self, stream: Passenger, frame: bytes, *, is_new: bool = True) -> None:
        """Carry another process's stream, opened by `frame`. is_new: `frame` is its request."""
        self._carry(stream)
        if not is_new or self.leaves(stream.id):
            self.post(frame)

    def drop_forwarded(self, stream: Passenger, *, detach: bool) -> None:
        """Stop carrying a stream: released in the guest, or left there with nobody reading."""
        if self._streams.get(stream.id) is not stream:
            return
        self.drop(stream.id)
        self._farewell(stream.id, detach=detach, at_once=True)

    @property
    def send_window(self) -> int:
        """How many bytes of a stream's input the guest takes at first."""
        return self._window

    def stream(self, number: int) -> Passenger | None:
        """The open stream of that number."""
        return self._streams.get(number)

    @property
    def connected(self) -> bool:
        """Whether there is a connection at this moment."""
        return self._link is not None and self._link.alive

    def post(self, frame: bytes) -> None:
        """Write a frame, or drop it while there is no connection: resuming repeats it."""
        if self._link is None or not self._link.alive:
            return
        if self._farewells:
            frame = bytes(self._farewells) + frame
            self._farewells.clear()
        self._link.write(frame)

    async def writable(self) -> None:
        """Wait while the connection's buffer is full, or while there is no connection."""
        while self._error is None:
            link = self._link
            if link is not None and link.alive:
                await link.writable()
                if link.alive:
                    return
            else:
                self._up.clear()
                await self._up.wait()

    def forget(self, stream: Stream, *, detach: bool = False) -> None:
        """Drop a stream; the guest ends it, or with `detach` goes on with it.

        What tells the guest so rides with the next frame, or goes alone soon; while there is
        no connection it waits for the next one.
        """
        if self._streams.get(stream.id) is not stream:
            return
        self.drop(stream.id)
        ended = stream.finished
        if not ended:
            stream.fail(BrokenPipeError("the request was given up"))
        self._farewell(stream.id, detach=detach, at_once=not ended)

    def _farewell(self, number: int, *, detach: bool, at_once: bool) -> None:
        if self._error is not None:
            return
        self._farewells += encode(Frame.DETACH if detach else Frame.RELEASE, number)
        if at_once:
            self._say_farewells()
        elif self._farewell_timer is None:
            loop = asyncio.get_running_loop()
            self._farewell_timer = loop.call_later(_FAREWELL_DELAY, self._say_farewells)

    def _say_farewells(self) -> None:
        if self._farewell_timer is not None:
            self._farewell_timer.cancel()
            self._farewell_timer = None
        if self._farewells:
            self.post(b"")

    async def withdraw(self) -> None:
        """Give up a guest that was dialled: the channel ends, but for one that sleeps on."""
        if not self.has_slept:
            await self.close()
        elif self._link is not None:
            self._link.abort()
            self._link = None

    async def close(self, error: BaseException | None = None) -> None:
        """End the connection; streams still open fail with `error`. Harmless when repeated."""
        if self._error is None:
            self._say_farewells()
        self._end(error or GuestUnreachable("the connection to the sandbox was closed"))
        tasks = {self._reconnecting, self._rousing} - {None, asyncio.current_task()}
        self._reconnecting = None
        for task in tasks:
            assert task is not None
            task.cancel()
            await asyncio.wait((task,))

    def _end(self, error: BaseException) -> None:
        self._error = self._error or error
        if self._farewell_timer is not None:
            self._farewell_timer.cancel()
        if self._link is not None:
            self._link.abort()
        self._up.set()
        self.fail_streams(self._error)

    def raise_if_closed(self) -> None:
        """Raise what ended the channel for good, if anything did."""
        if self._error is not None:
            # One error is raised in many places: each has a traceback of its own.
            raise self._error.with_traceback(None)

    # What differs between a guest's agent and a holder that passes frames on.

    def ended_by(self, error: BaseException) -> None:
        """The connection is lost for good."""
        self._end(error)

    def goodbye(self, payload: bytes) -> Exception:
        """The error that a GOAWAY stands for."""
        text = payload[:200].decode("utf-8", "replace")
        return FrameError(f"the guest ended the connection: {text!r}")

    def resume_frame(self, stream: Passenger) -> bytes:
        """What goes on with a stream over a new connection."""
        return stream.resume()

    # What the link reports.

    def received(self, message: Message) -> None:
        """Dispatch a frame. Raises FrameError."""
        if message.type is Frame.HELLO:
            return  # The agent repeats it whenever it sees the host come back.
        if message.type is Frame.GOAWAY:
            raise self.goodbye(message.payload)
        if not message.stream:
            raise FrameError(f"{message.type.name} on a connection that is attached")
        stream = self._streams.get(message.stream)
        if stream is not None:
            stream.take(message)
        elif message.stream >= self._next:
            raise FrameError(f"a frame for stream {message.stream}, which nobody opened")

    def lost(self, link: Link, error: BaseException | None) -> None:
        """The connection is gone; reconnect unless it was closed on purpose."""
        if link is not self._link or self._error is not None:
            return
        if self.direct and self.is_waking:
            self.lost_while_woken()
            return
        if isinstance(error, NovaError):
            self._reconnecting = asyncio.create_task(self._give_up(explain(error)))
            return
        now = asyncio.get_running_loop().time()
        pause = _RECONNECT_PAUSE
        if now - link.since >= _STABLE or not self._give_up_at:
            self._give_up_at = now + self.reconnect_deadline
            pause = 0.0
        self._reconnecting = asyncio.create_task(self._reconnect(error, pause))

    async def _reconnect(self, error: BaseException | None, pause: float) -> None:
        reason: BaseException = error or ConnectionResetError("the other end closed it")
        boot_id = self.boot_id
        try:
            async with asyncio.timeout_at(self._give_up_at):
                while True:
                    await asyncio.sleep(pause)
                    try:
                        await self.open(self.reconnect_deadline)
                        break
                    except OSError as dial_error:
                        reason = dial_error
                        if self._on_lost is not None and isinstance(
                            dial_error, (ConnectionRefusedError, FileNotFoundError)
                        ):
                            raise
                    pause = _RECONNECT_PAUSE
        except (TimeoutError, OSError, NovaError) as last:
            await self._give_up(last if isinstance(last, NovaError) else reason)
            return
        except Exception as unforeseen:
            await self._give_up(unforeseen)
            raise
        if self.boot_id != boot_id:
            await self._give_up(GuestUnreachable("the guest was started anew"))
            return
        log.debug("connection restored, %d streams go on", len(self._streams))
        self.resume_all()
        self._say_farewells()

    def resume_all(self) -> None:
        """Go on with all streams over a new connection."""
        for stream in list(self._streams.values()):
            if not stream.finished:
                self.post(self.resume_frame(stream))
            if isinstance(stream, Stream) and stream.cancelled and not stream.finished:
                self.post(encode(Frame.CANCEL, stream.id))
        self._unsent.clear()

    async def _give_up(self, reason: BaseException) -> None:
        error: BaseException
        if isinstance(reason, NovaError):
            error = reason
        else:
            error = GuestUnreachable("the connection to the sandbox was lost", why=str(reason))
            error.__cause__ = reason
        try:
            if self._on_lost is not None:
                error = await self._on_lost(reason)
        finally:
            self.ended_by(error)


def _check_adoptable(stream: Passenger) -> None:
    if not stream.adoptable:
        raise FrameError(f"stream {stream.id} is said to be a process's, and is none")
