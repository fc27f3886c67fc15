"""`Pool`: sandboxes that are made ahead, so that taking one takes milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from novasandbox.core import host_load
from novasandbox.core.admission import likely_mib
from novasandbox.core.hypervisor import DEFAULT_TIMEOUT, SandboxConfig
from novasandbox.core.member import Member
from novasandbox.core.sandbox import Sandbox
from novasandbox.errors import (
    CapacityExceeded,
    InvalidConfig,
    InvalidRequest,
    NameTaken,
    SandboxFailed,
)

log = logging.getLogger(__name__)

LABEL = "pool"
"""The key in the metadata of those that nobody has taken; its value is the pool's name."""

_LATE = ("metadata", "timeout", "detach")
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0
# A full host may have room again at any moment, and being refused costs next to nothing.
_PAUSE_WHEN_FULL = 1.0
# Between two that are made ahead on a busy host, and two looks at one that is short of memory.
_PAUSE_WHEN_BUSY = 1.0
# Making one takes processors from whoever has just taken one: his first calls go before it.
_LULL = 0.1
# What is made ahead leaves so many times the memory that the host keeps for itself.
_MODESTY = 2
# New members that die as they are taken, until a taker is told.
_MOST_LOST = 3


@dataclass(eq=False)
class _Taker:
    """Somebody who waits. patient: until his deadline, whatever goes wrong meanwhile."""

    turn: asyncio.Future[Member]
    patient: bool


class Pool:
    """Keeps `size` sandboxes of one kind ready, each for one taker.

        async with Pool("debian-python", size=4) as pool:
            sandbox = await pool.acquire()

    They are of this process, and end with it. `Sandbox.list` shows those that nobody has taken
    with the pool's name in their metadata, under `pool`. It belongs to the loop it is used in.
    """

    def __init__(
        self,
        template: str | None = None,
        size: int = 2,
        *,
        name: str | None = None,
        **config: Any,
    ) -> None:
        """A pool, which starts with its `async with` block or its first `acquire`.

        template, config: as for `Sandbox.create`, but for what is said when one is taken. user,
        cwd and env are those of takers who say nothing else. size: how many are kept ready; 0:
        each is made when it is asked for. name: of the pool, to find its idle ones by; eight
        hex digits unless given.

        Raises InvalidConfig.
        """
        early = [key for key in _LATE if key in config]
        if early:
            raise InvalidConfig(
                f"a pool has no {early[0]}",
                fix="Each taker has his own: give it to acquire().",
            )
        _check_size(size)
        self._name = name if name is not None else secrets.token_hex(4)
        self._size = size
        self._config = SandboxConfig(
            template=template, **{**config, "env": dict(config.get("env", {}))}
        )
        self._label = replace(self._config, metadata={LABEL: self._name}).metadata
        self._idle: deque[Member] = deque()
        self._takers: deque[_Taker] = deque()
        # Those who wait until so many are ready.
        self._onlookers: dict[asyncio.Future[None], int] = {}
        self._making: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._filling: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._closed = False
        # Of the makings that went wrong since one went well: how many, the last, and until when
        # nothing more is tried, by the loop's clock.
        self._failures = 0
        self._failure: Exception | None = None
        self._pause_ends = 0.0
        # Members that died since one was taken well, and until when nothing is made ahead.
        self._losses = 0
        self._rest_ends = 0.0
        self._lull_ends = 0.0

    def __repr__(self) -> str:
        return f"<Pool {self._name!r}: {len(self._idle)} of {self._size} ready>"

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._name

    @property
    def size(self) -> int:
        """How many are kept ready."""
        return self._size

    @property
    def idle(self) -> int:
        """How many are ready now."""
        return len(self._idle)

    async def acquire(
        self,
        *,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        cwd: str | None = None,
        user: str | None = None,
        timeout_wait: float | None = None,
    ) -> Sandbox:
        """A ready sandbox, the caller's own from here on: it is never given to anybody else.

        name, metadata, user, cwd: as for `Sandbox.create`. env: added to the pool's. timeout: its
        life in seconds from now; None: no end. Those who wait are served in the order in which
        they came. timeout_wait: seconds that are waited for one, also while none can be made;
        None: until there is one, or making one fails.

        What the caller gets has entropy, clock, machine-id and name of its own. One that cannot
        get its settings is ended.

        Raises InvalidConfig (as for a user whom no guest can have), NameTaken;
        CapacityExceeded where none was free in time; what `Sandbox.create` raises where none
        can be made; InvalidRequest when the pool is closed.
        """
        config = replace(
            self._config,
            name=name,
            env={**self._config.env, **(env or {})},
            metadata=dict(metadata or {}),
            timeout=timeout,
            cwd=cwd if cwd is not None else self._config.cwd,
            user=user if user is not None else self._config.user,
        )
        if timeout_wait is not None and not timeout_wait >= 0:
            raise InvalidConfig(f"timeout_wait={timeout_wait!r}", why="it must be seconds, or None")
        return (await self.assigned(config, timeout_wait)).sandbox()

    async def assigned(self, config: SandboxConfig, timeout_wait: float | None) -> Member:
        """A member that is `config` now, of the pool's own kind; see `acquire`."""
        self.start()
        loop = asyncio.get_running_loop()
        deadline = None if timeout_wait is None else loop.time() + timeout_wait
        lost = 0
        while True:
            member = await self._next(deadline, first=lost > 0)
            try:
                await member.assign(config)
                self._losses = 0
                return member
            except NameTaken:
                self._offer(member, first=True)
                raise
            except SandboxFailed as error:
                log.warning("pool %s: %s had died: %s", self._name, member.id, error)
                self._end(member)
                self._put_off()
                lost += 1
                if lost == self._size + _MOST_LOST:
                    raise
            except BaseException:
                self._end(member)
                raise

    async def ready(self, count: int | None = None) -> None:
        """Wait until so many are ready, however long the host is too busy to make them.

        count: all of `size` unless given. Raises what went wrong where one cannot be made.
        """
        self.start()
        wanted = self._size if count is None else min(count, self._size)
        if len(self._idle) < wanted:
            onlooker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._onlookers[onlooker] = wanted
            try:
                await onlooker
            finally:
                del self._onlookers[onlooker]

    def start(self) -> None:
        """Begin to make them, in the loop that runs. Raises InvalidRequest when it is closed."""
        if self._closed:
            raise _closed()
        if self._filling is None:
            self._filling = asyncio.create_task(self._fill(), name=f"pool {self._name}")

    async def close(self) -> None:
        """End those that nobody has taken, and those being made. Harmless when repeated.

        What was taken lives on. Who waits is told that the pool is closed.
        """
        self._closed = True
        for taker in self._takers:
            _fail(taker.turn, _closed())
        for onlooker in self._onlookers:
            _fail(onlooker, _closed())
        works = [*self._making] if self._filling is None else [*self._making, self._filling]
        for work in works:
            work.cancel()
        while self._idle:
            self._end(self._idle.popleft())
        await asyncio.gather(*works, return_exceptions=True)
        # Those as well that were being ended anyway, or given back just now.
        while self._ending:
            await asyncio.wait(set(self._ending))

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # Who gets which.

    async def _next(self, deadline: float | None, *, first: bool) -> Member:
        """The next one that is free. first: whoever asks has waited already."""
        # While somebody waits none is idle: nobody is overtaken here.
        while self._idle:
            member = self._idle.popleft()
            if member.is_usable:
                self._taken_now()
                return member
            self._end(member)
        if self._closed:
            raise _closed()
        taker = _Taker(asyncio.get_running_loop().create_future(), deadline is not None)
        error = self._hopeless(taker)
        if error is not None:
            raise copy.copy(error) from error
        if first:
            self._takers.appendleft(taker)
        else:
            self._takers.append(taker)
        self._changed.set()
        try:
            async with asyncio.timeout_at(deadline):
                return await taker.turn
        except TimeoutError as error:
            if _has_failed(taker.turn):  # With what is a TimeoutError too.
                raise
            self._give_back(taker)
            raise self._too_late() from (self._failure or error)
        except asyncio.CancelledError:
            self._give_back(taker)
            raise
        finally:
            with contextlib.suppress(ValueError):
                self._takers.remove(taker)

    def _taken_now(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._lull_ends <= now:  # Else many in a row would put it off for ever.
            self._lull_ends = now + _LULL
        self._changed.set()

    def _give_back(self, taker: _Taker) -> None:
        """He no longer waits; what he was given at this very moment is for the next."""
        if taker.turn.done() and not taker.turn.cancelled() and not _has_failed(taker.turn):
            self._offer(taker.turn.result(), first=True)

    def _too_late(self) -> Exception:
        if isinstance(self._failure, CapacityExceeded):
            return copy.copy(self._failure)
        return CapacityExceeded(
            f"no sandbox of pool {self._name!r} was free in time",
            why=f"none could be made: {self._failure}"
            if self._failure is not None
            else f"{len(self._takers)} waited for one, and {len(self._making)} were being made",
            fix="Wait longer, or make the pool larger.",
        )

    def _offer(self, member: Member, *, first: bool = False) -> None:
        """A member is free: for who has waited longest, else it is kept."""
        if self._closed or not member.is_usable:
            self._end(member)
            return
        while self._takers:
            taker = self._takers.popleft()
            if not taker.turn.done():
                taker.turn.set_result(member)
                return
        if len(self._idle) >= self._size:  # It was made for somebody who no longer waits.
            self._end(member)
            return
        member.on_end(lambda: self._lost(member))
        if first:
            self._idle.appendleft(member)
        else:
            self._idle.append(member)
        for onlooker, wanted in self._onlookers.items():
            if len(self._idle) >= wanted and not onlooker.done():
                onlooker.set_result(None)

    def _lost(self, member: Member) -> None:
        """A member has ended by itself, or by somebody else's doing."""
        with contextlib.suppress(ValueError):
            self._idle.remove(member)
            log.warning("pool %s: %s has ended, and is replaced", self._name, member.id)
            self._end(member)
            self._put_off()

    def _put_off(self) -> None:
        """One has died. Where they all do, making others soon would not help."""
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0**self._losses)
        self._losses = min(self._losses + 1, 20)
        self._rest_ends = asyncio.get_running_loop().time() + pause

    def _end(self, member: Member) -> None:
        task = asyncio.create_task(member.end())
        self._ending.add(task)
        task.add_done_callback(self._ended)
        self._changed.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("pool %s: one could not be ended: %s", self._name, task.exception())

    # Making them.

    async def _fill(self) -> None:
        while True:
            self._changed.clear()
            pause = self._start_some()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    def _start_some(self) -> float | None:
        """Begin as many as are missing and may be; seconds until that is looked at again.

        None: when something has changed.
        """
        loop = asyncio.get_running_loop()
        most = max(1, host_load.processors() // 2)
        while len(self._making) < most:
            # Those that are made go to who waits first.
            urgent = len(self._takers) - len(self._making)
            if self._size + urgent - len(self._idle) <= 0:
                return None
            pause = self._pause_ends - loop.time()
            if pause > 0:
                return pause
            if urgent <= 0:
                rest = max(self._rest_ends, self._lull_ends) - loop.time()
                if rest > 0:
                    return rest
                if self._is_short_of_memory():
                    return _PAUSE_WHEN_BUSY
                if host_load.is_busy():
                    if self._making:
                        return None
                    self._rest_ends = loop.time() + _PAUSE_WHEN_BUSY
            task = asyncio.create_task(self._make())
            self._making.add(task)
            task.add_done_callback(self._made)
        return None

    def _is_short_of_memory(self) -> bool:
        memory = host_load.memory()
        left = memory.available - likely_mib(self._config.memory_mib) * (len(self._making) + 1)
        return left < _MODESTY * memory.reserve

    async def _make(self) -> None:
        member = await Member.make(self._config, dict(self._label))
        if not self._takers:  # Else one waits, whose own first cell is no slower than that.
            await member.warm()
        self._failures, self._failure, self._pause_ends = 0, None, 0.0
        self._offer(member)

    def _made(self, task: asyncio.Task[None]) -> None:
        self._making.discard(task)
        self._changed.set()
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        level = logging.INFO if self._failures else logging.WARNING
        log.log(level, "pool %s: none could be made: %s", self._name, error)
        longest = _PAUSE_WHEN_FULL if isinstance(error, CapacityExceeded) else _LONGEST_PAUSE
        pause = min(longest, _FIRST_PAUSE * 2.0**self._failures)
        self._failures = min(self._failures + 1, 20)
        self._failure = error
        self._pause_ends = asyncio.get_running_loop().time() + pause
        for taker in self._takers:
            if self._hopeless(taker) is not None:
                _fail(taker.turn, error)
        for onlooker in self._onlookers:
            _fail(onlooker, error)

    def _hopeless(self, taker: _Taker) -> Exception | None:
        """Why somebody need not wait; None where he may hope."""
        if self._failure is None or self._making:
            return None
        if asyncio.get_running_loop().time() >= self._pause_ends:
            return None
        if taker.patient and not isinstance(self._failure, InvalidRequest):
            return None
        return self._failure


def _check_size(size: Any) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InvalidConfig(f"size={size!r}", why="it must be a whole number, 0 or more")


def _has_failed(turn: asyncio.Future[Member]) -> bool:
    return turn.done() and not turn.cancelled() and turn.exception() is not None


def _closed() -> InvalidRequest:
    return InvalidRequest("the pool is closed", fix="Make a new one.")


def _fail(waiting: asyncio.Future[Any], error: Exception) -> None:
    """Each who waits is told by an error of his own, whose traceback is his."""
    if not waiting.done():
        own = copy.copy(error)
        own.__cause__ = error
        waiting.set_exception(own)
