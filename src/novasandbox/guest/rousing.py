"""A channel's streams while their guest sleeps or stands still, and how a request rouses it."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from novasandbox.errors import GuestUnreachable, NovaError
from novasandbox.guest.frames import Message, encode
from novasandbox.guest.link import Link
from novasandbox.guest.protocol import Frame

# Requests that whoever rouses a guest may make of it.
_EARLY = 16


class Passenger(Protocol):
    """What the channel asks of a stream; a holder's clients have streams of another kind."""

    id: int
    finished: bool
    adoptable: bool
    """Whether another reader may take its place: it is a process."""

    def take(self, message: Message) -> None:
        """Dispatch a frame of this stream. Raises FrameError."""

    def resume(self) -> bytes:
        """The frames that go on with this stream over a new connection."""

    def fail(self, error: BaseException) -> None:
        """The stream ends: the connection is lost for good."""


class Streams(abc.ABC):
    """The open streams of a channel, and what becomes of them when the guest is not there."""

    def __init__(self) -> None:
        self._streams: dict[int, Passenger] = {}
        self._resting: set[int] = set()
        # Their requests have not left: there was no connection, or it was held.
        self._unsent: set[int] = set()
        self._next = 1
        self._link: Link | None = None
        self._farewells = bytearray()
        self._reconnecting: asyncio.Task[None] | None = None
        self._rousing: asyncio.Task[Exception | None] | None = None
        self._rouse: Callable[[], Awaitable[None]] | None = None
        self._standing = False
        self._early: list[int] = []
        self.has_slept = False
        """Whether there are handles that go on with it once its guest is roused."""
        self.uses = 0
        """Goes up with all that is done with the guest, and when it is over."""

    @abc.abstractmethod
    def post(self, frame: bytes) -> None:
        """Write a frame, or drop it while there is no connection: resuming repeats it."""

    @abc.abstractmethod
    def resume_all(self) -> None:
        """Go on with all streams over a new connection."""

    @abc.abstractmethod
    def raise_if_closed(self) -> None:
        """Raise what ended the channel for good, if anything did."""

    # Who uses the guest.

    @property
    def busy(self) -> bool:
        """Whether anybody waits for the guest."""
        return len(self._streams) > len(self._resting)

    def rest(self, stream: Passenger, *, over: bool = False) -> None:
        """Nobody waits for a stream for now. over: somebody does again, and rouses a guest."""
        if stream.id not in self._streams:
            return
        self.uses += 1
        if not over:
            self._resting.add(stream.id)
            return
        self._resting.discard(stream.id)
        if self._rouse is not None:
            self.begin_rousing()

    @property
    def is_wanted(self) -> bool:
        """Whether a request waits for the guest to be there again."""
        return bool(self._unsent & self._streams.keys())

    def is_unsent(self, stream: Passenger) -> bool:
        """Whether the request of a stream has not left."""
        return stream.id in self._unsent

    def is_resting(self, stream: Passenger) -> bool:
        """Whether nobody waits for a stream."""
        return stream.id in self._resting

    @property
    def is_asleep(self) -> bool:
        """Whether the guest sleeps or stands still until a request rouses it."""
        return self._rouse is not None

    @property
    def flows(self) -> bool:
        """Whether what is sent leaves at once: the guest is there and not about to sleep."""
        link = self._link
        return link is not None and link.alive and not link.is_holding and self._rousing is None

    def leaves(self, number: int) -> bool:
        """Whether a request is sent now, if only to be held; else what resumes it sends it."""
        link = self._link
        if link is not None and link.is_holding:
            self._unsent.add(number)
            return True
        # The guest takes growing numbers only, and has not heard of those that wait.
        waits = self._rousing is not None and self._rousing is not asyncio.current_task()
        if waits or link is None or not link.alive:
            self._unsent.add(number)
            return False
        return True

    def early_number(self) -> int | None:
        """A number for a request of whoever rouses the guest, when he asks."""
        if self._rousing is None or asyncio.current_task() is not self._rousing:
            return None
        if self._link is None:
            raise _lost_while_woken()
        return self._early.pop(0)

    def drop(self, number: int) -> None:
        """Stop carrying a stream."""
        del self._streams[number]
        self._resting.discard(number)
        self._unsent.discard(number)
        self.uses += 1

    def fail_streams(self, error: BaseException) -> None:
        """End every stream."""
        streams, self._streams = list(self._streams.values()), {}
        self._resting.clear()
        self._unsent.clear()
        for stream in streams:
            stream.fail(error)

    # The guest is away, and comes back.

    def doze(
        self, reason: NovaError, rouse: Callable[[], Awaitable[None]], *, keeping: bool = False
    ) -> None:
        """The guest sleeps: streams end with `reason`, and the next request rouses it.

        rouse: does so, and has the connection open when it returns. A request that has not
        left does not end, and rouses it at once. keeping: who rouses it is the same holder to
        it, and processes that nobody waits for go on here as well.
        """
        kept = {n: each for n, each in self._streams.items() if self._outlasts(each, keeping)}
        resting = self._resting & kept.keys()
        link, self._link = self._link, None
        # One that let a guest go on which only stood still has nothing left to do.
        is_rousing = self._rousing is not None and not self._standing
        if self._rousing is not None and not is_rousing:
            self._rousing.cancel()
        if self._reconnecting not in (None, asyncio.current_task()):
            self._reconnecting.cancel()
        self._farewells.clear()
        for number, stream in list(self._streams.items()):
            if number not in kept:
                del self._streams[number]
                if keeping:
                    end = Frame.DETACH if stream.adoptable else Frame.RELEASE
                    self._farewells += encode(end, number)
                stream.fail(reason)
        if link is not None:
            link.abort()
        self._resting = resting
        self._rouse, self._standing = rouse, False
        self.has_slept = True
        if self.is_wanted and not is_rousing:
            self.begin_rousing()

    def _outlasts(self, stream: Passenger, keeping: bool) -> bool:
        if stream.id in self._unsent:
            return True
        return keeping and stream.adoptable and stream.id in self._resting

    def never_taken(self, last: int) -> None:
        """The other end took no request later than number `last`."""
        self._unsent |= {number for number in self._streams if number > last}

    def stand_by(self, rouse: Callable[[], Awaitable[None]]) -> None:
        """The guest stands still: the next request rouses it, and is sent then.

        What was asked while the channel was held, and it is so, rouses it at once.
        """
        if self._link is not None and not self._link.is_holding:
            self.hold(self._link)
        self._standing = True
        self._rouse = rouse
        if self.is_wanted:
            self.begin_rousing()

    def get_up(self) -> None:
        """It was roused otherwise: what was kept back is sent."""
        self._rouse = None
        if self._link is not None:
            self.let_go(self._link)

    def hold(self, link: Link) -> None:
        """Keep back what is written from here on."""
        # What a rousing asks of the guest has to have smaller numbers than what is kept back.
        self._early = self._some_numbers()
        link.hold()

    def let_go(self, link: Link) -> None:
        """Send what was kept back."""
        self._standing = False
        if link.is_holding:
            link.release()
        if link is self._link:
            self._unsent.clear()

    def _some_numbers(self) -> list[int]:
        numbers = list(range(self._next, self._next + _EARLY))
        self._next += _EARLY
        return numbers

    def begin_rousing(self) -> None:
        """Have the guest roused; what waits for it is sent then."""
        rouse, self._rouse = self._rouse, None
        assert rouse is not None
        if not (self.is_wanted and self._early):
            self._early = self._some_numbers()
        self._rousing = asyncio.create_task(self._awaken(rouse, stood=self._standing))

    async def roused(self) -> None:
        """Have a guest that sleeps roused now, by whom it was to be. Raises why it was not."""
        if self._rouse is not None:
            self.begin_rousing()
        task = self._rousing
        if task is None:
            return
        await asyncio.wait((task,))
        if task.cancelled():
            self.raise_if_closed()
        elif (error := task.result()) is not None:
            raise error

    @property
    def is_waking(self) -> bool:
        """Whether a guest that slept is being roused."""
        return self._rousing is not None and not self._standing

    def lost_while_woken(self) -> None:
        """The connection is gone. Whoever wakes the guest learns of it, and it sleeps on."""
        self._link = None
        for number in self._streams.keys() - self._unsent - self._resting:
            stream = self._streams[number]
            self.drop(number)
            stream.fail(_lost_while_woken())

    async def _awaken(
        self, rouse: Callable[[], Awaitable[None]], *, stood: bool
    ) -> Exception | None:
        """Gives why it could not be roused."""
        try:
            await rouse()
        except Exception as error:
            self.fail_streams(error)
            self._rouse = rouse
            if stood and self._link is not None:
                self._link.hold()  # What was kept back is nobody's any more.
            if not isinstance(error, (NovaError, OSError)):
                raise
            return error
        finally:
            if self._rousing is asyncio.current_task():
                self._rousing = None
        link = self._link
        if link is not None and stood:
            self.let_go(link)
        elif link is not None and link.alive:
            self.resume_all()
        return None


def _lost_while_woken() -> GuestUnreachable:
    return GuestUnreachable("the guest was lost while it was woken")
