"""How a `Sandbox` reaches its holder: in this process, or through the holder's socket."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import functools
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from novasandbox.core import creation, registry, sleeping, sockets
from novasandbox.core.exhaustion import host_limits
from novasandbox.core.gate import ADOPT, ATTEND, CONTROL, LAST, REST
from novasandbox.core.holder import Holder
from novasandbox.core.hypervisor import SandboxState
from novasandbox.core.registry import Record
from novasandbox.core.verbs import awake, perform
from novasandbox.core.whole import whole
from novasandbox.errors import (
    GuestUnreachable,
    IllegalTransition,
    NovaError,
    OutcomeUnknown,
    from_details,
)
from novasandbox.guest.channel import Channel, Dial
from novasandbox.guest.frames import Fields, Message, encode, encode_fields
from novasandbox.guest.link import Link
from novasandbox.guest.protocol import Frame, Tag
from novasandbox.guest.rousing import Passenger
from novasandbox.guest.stream import Reply, Stream

# A keeper that takes over another sandbox at that moment may take this long to answer.
_DIAL_DEADLINE = 40.0
# How long a call that was given up may take until it has taken back what it did.
_FAREWELL = 30.0
# How often a sandbox is woken for a request while others put it to sleep.
_TURNS = 5
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError)


class Session(abc.ABC):
    """A way to a sandbox's guest and to its holder."""

    channel: Channel
    ends_with_handle = False
    """Whether leaving the handle's block ends the sandbox, unless it is detached."""

    @abc.abstractmethod
    async def control(self, verb: str, **arguments: Any) -> Any:
        """Ask the holder for one of its verbs."""

    @abc.abstractmethod
    async def fork(self, count: int) -> list[tuple[Session, Record]]:
        """Make children; gives a way to each."""

    @abc.abstractmethod
    def record(self) -> Record:
        """The newest that is known. Raises how the sandbox ended, when it has."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of the sandbox; it goes on."""


class LocalSession(Session):
    """This process is the holder."""

    ends_with_handle = True

    def __init__(self, holder: Holder) -> None:
        assert holder.channel is not None
        self._holder = holder
        self.channel = holder.channel

    async def control(self, verb: str, **arguments: Any) -> Any:
        with host_limits():
            return await perform(self._holder, verb, arguments)

    async def fork(self, count: int) -> list[tuple[Session, Record]]:
        children = await awake(self._holder, lambda: creation.fork(self._holder, count))
        return [(LocalSession(child), child.record) for child in children]

    def record(self) -> Record:
        return self._holder.record

    async def close(self) -> None:
        if self._holder.record.rests is not None and self._holder.state is SandboxState.HIBERNATED:
            # Nobody is left here whose call would wake it.
            await self._holder.let_go()


class RemoteChannel(Channel):
    """A channel to a holder, which may die and be followed by another."""

    direct = False
    reconnect_deadline = _DIAL_DEADLINE

    def __init__(
        self,
        dial: Dial,
        *,
        holder: bytes,
        on_lost: Callable[[BaseException], Awaitable[NovaError]] | None = None,
    ) -> None:
        super().__init__(dial, holder=holder, on_lost=on_lost)
        self.wake: Callable[[], Awaitable[None]] | None = None

    def rest(self, stream: Passenger, *, over: bool = False) -> None:
        """The holder is told as well, for it is he who puts a sandbox to rest."""
        super().rest(stream, over=over)
        self.post(_resting(stream.id, over=over))

    def lost(self, link: Link, error: BaseException | None) -> None:
        """A sandbox that was put to sleep is no loss: the next request has it woken."""
        if link is self._link and isinstance(error, NovaError) and _is_asleep(error):
            self.doze(error, self._rouse_it)
        else:
            super().lost(link, error)

    def ended_by(self, error: BaseException) -> None:
        """Its holder is gone; a sandbox that sleeps lives on without one."""
        if _is_asleep(error):
            self.doze(_holder_died(), self._rouse_it)
        else:
            super().ended_by(error)

    async def _rouse_it(self) -> None:
        for turn in range(_TURNS):
            if self.wake is not None:
                await self.wake()
            try:
                await self.open(self.reconnect_deadline)
                return
            except (OSError, IllegalTransition):
                # Awake, it may have been put to sleep again before we got there.
                if turn == _TURNS - 1:
                    raise

    def goodbye(self, payload: bytes) -> Exception:
        """The holder says why, as data: the same error is raised here."""
        error = _failure(payload)
        if _is_asleep(error) and self.connected:
            # What came after its last request was never run, and is sent to the next holder.
            last = json.loads(payload).get(LAST)
            if isinstance(last, int):
                self.never_taken(last)
        return error

    def received(self, message: Message) -> None:
        """A holder may answer for the guest, as for one that is paused."""
        if message.type is Frame.REPLY:
            failure = Fields.decode(message.payload[4:]).get(Tag.FAILURE)
            stream = self.stream(message.stream)
            if failure and stream is not None:
                stream.fail(_failure(failure))
                return
        super().received(message)

    def resume_frame(self, stream: Passenger) -> bytes:
        """A new holder knows none of our numbers: it is told the guest's."""
        assert isinstance(stream, Stream)
        if stream.request is not None and not stream.state.done():
            if self.is_unsent(stream):
                self.post(stream.request)
                stream.input.resend(0)
                return b""
            stream.fail(_holder_died())
            return b""
        first, second = stream.restart()
        fields = encode_fields(
            [
                (Tag.STREAM, stream.guest_id),
                (Tag.FIRST1, first),
                (Tag.FIRST2, second),
            ]
        )
        adopt = encode(Frame.REQUEST, stream.id, ADOPT.to_bytes(2, "little") + fields)
        return adopt + _resting(stream.id) if self.is_resting(stream) else adopt


class RemoteSession(Session):
    """Another process is the holder."""

    channel: RemoteChannel

    def __init__(self, identity: str, channel: RemoteChannel) -> None:
        self._id = identity
        self.channel = channel

    @classmethod
    async def connect(cls, record: Record) -> Self:
        """Reach the holder of a sandbox. Raises OSError where nobody holds it."""
        path = record.directory / "api.sock"
        channel = RemoteChannel(
            _Dial(path, record.id),
            holder=os.urandom(16),
            on_lost=_Loss(record.id),
        )
        await channel.open(_DIAL_DEADLINE)
        channel.wake = functools.partial(_wake, record.id)
        return cls(record.id, channel)

    async def control(self, verb: str, **arguments: Any) -> Any:
        if verb == "kill":
            record = self.record()
            is_held = record.rests is not None and not self.channel.is_asleep
            if record.state is SandboxState.HIBERNATED and not is_held:
                # It need not be woken for that, and perhaps cannot be.
                return await asyncio.to_thread(registry.end_unheld, self._id)
        return await call(self.channel, verb, **arguments)

    async def fork(self, count: int) -> list[tuple[Session, Record]]:
        children = await call(self.channel, "fork", undo=_end_all, count=count)
        made: list[tuple[Session, Record]] = []
        try:
            for identity in children:
                record = registry.get(identity)
                made.append((await RemoteSession.connect(record), record))
        except BaseException:
            for session, _ in made:
                await session.close()
            await whole(_end_all(children))
            raise
        return made

    def record(self) -> Record:
        return registry.get(self._id)

    async def close(self) -> None:
        await self.channel.close()


def _resting(number: int, *, over: bool = False) -> bytes:
    return encode(Frame.REQUEST, number, (ATTEND if over else REST).to_bytes(2, "little"))


def _holder_died() -> OutcomeUnknown:
    return OutcomeUnknown(
        "the sandbox's holder died while a request was under way",
        why="it may or may not have run",
    )


def _is_asleep(error: BaseException | None) -> bool:
    return isinstance(error, IllegalTransition) and error.current is SandboxState.HIBERNATED


async def _wake(identity: str) -> None:
    """Whoever held it need not be there any more: the keeper holds it from here on."""
    from novasandbox.core.keeper import wake_detached

    await wake_detached(identity)


async def woken_by_its_holder(record: Record) -> RemoteSession | None:
    """A way to a sandbox that fell asleep by itself, awake now; None where nobody holds it."""
    if record.rests is None:
        return None
    try:
        session = await RemoteSession.connect(record)
    except (OSError, IllegalTransition):
        return None
    try:
        await session.control("wake")
    except BaseException:
        await session.close()
        raise
    return session


async def _end_all(identities: list[str]) -> None:
    """End sandboxes that nobody came to know of."""
    for identity in identities:
        await asyncio.to_thread(registry.end_unheld, identity)


async def call(
    channel: Channel,
    verb: str,
    *,
    undo: Callable[[Any], Awaitable[None]] | None = None,
    **arguments: Any,
) -> Any:
    """A CONTROL request. Raises the error that the other end raised.

    undo: takes back what was done, where the caller was cancelled before he learned of it.
    """
    text = json.dumps({"name": verb, "arguments": arguments})
    stream = channel.request(CONTROL, [(Tag.MESSAGE, text)])
    try:
        return _answer(await stream.result())
    except asyncio.CancelledError:
        if undo is not None:
            await whole(_take_back(stream, undo))
        raise
    finally:
        stream.release()


async def _take_back(stream: Stream, undo: Callable[[Any], Awaitable[None]]) -> None:
    stream.cancel()
    with contextlib.suppress(NovaError, OSError, TimeoutError):
        async with asyncio.timeout(_FAREWELL):
            reply = await stream.result()
        await undo(_answer(reply))


def _answer(reply: Reply) -> Any:
    told = reply.fields.get(Tag.MESSAGE)
    try:
        answer = json.loads(told)
        if "error" not in answer:
            return answer["result"]
        failure = answer["error"]
    except _MALFORMED as error:
        raise _unreadable(told) from error
    raise from_details(failure)


def _failure(text: bytes) -> NovaError:
    """The error that a holder tells as JSON; of what is none, one that shows it."""
    try:
        return from_details(json.loads(text))
    except _MALFORMED:
        return _unreadable(text)


def _unreadable(text: bytes) -> NovaError:
    return GuestUnreachable(
        "the sandbox's holder answered what cannot be read",
        why=text[:200].decode("utf-8", "replace") or None,
    )


class _Dial:
    """Dials the holder's socket; when a detached sandbox has lost its holder, a new one."""

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self._id = identity

    async def __call__(self, protocol: Any) -> Any:
        try:
            return await sockets.dial(self._path, protocol)
        except (ConnectionRefusedError, FileNotFoundError):
            record = registry.get(self._id)
            if not record.config.get("detach") or record.state is SandboxState.HIBERNATED:
                raise
        from novasandbox.core.keeper import ensure_keeper

        await ensure_keeper(adopt=self._id)
        return await sockets.dial(self._path, protocol)


class _Loss:
    """What to say when the holder cannot be reached any more: how the sandbox ended."""

    def __init__(self, identity: str) -> None:
        self._id = identity

    async def __call__(self, reason: BaseException) -> NovaError:
        if isinstance(reason, NovaError):
            return reason
        try:
            record = registry.get(self._id)
        except NovaError as ended:
            return ended
        if record.state is SandboxState.HIBERNATED:
            return sleeping.asleep_error(self._id)
        return GuestUnreachable(
            "the process that holds the sandbox is gone", why=str(reason), sandbox_id=self._id
        )
