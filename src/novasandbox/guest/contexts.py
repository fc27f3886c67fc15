"""Contexts: Python processes in the guest that keep what their cells define."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from novasandbox.errors import (
    CommandNotStarted,
    ContextLost,
    ContextNotFound,
    InvalidConfig,
    InvalidRequest,
    NovaError,
    OperationFailed,
    OperationTimeout,
    OutcomeUnknown,
)
from novasandbox.guest.channel import Channel
from novasandbox.guest.flow import PIECE
from novasandbox.guest.frames import FrameError, encode_fields
from novasandbox.guest.interpreter import wire
from novasandbox.guest.launch import check_env
from novasandbox.guest.protocol import STDOUT, Errno, Op, Tag
from novasandbox.guest.python import Interpreter, NotRunning
from novasandbox.guest.results import Cell, CodeResult, OnOutput
from novasandbox.guest.signals import signal_name
from novasandbox.guest.stream import Stream

GRACE = 5.0
"""Seconds in which a cell that was interrupted must end, before its context is ended."""
_ANSWER_GRACE = 15.0
# How long a call that was stopped and never ran is waited for.
_FAREWELL = 1.0
_PAUSE = 0.05
_IDENTITY = re.compile(r"default|[0-9a-f]{12}")
_MADE_ANEW = "It was made anew: run again what your cells need."
_REASONS = {
    "restarted": "it was restarted meanwhile",
    "removed": "it was removed meanwhile",
    "stopped": f"an earlier cell did not end within {GRACE:g} s of its interrupt",
    "cut": "its code closed the connection, or wrote to it",
    "unstarted": "its process could not be started",
    "full": "the guest has no memory or process left for it",
}

_List = list


@dataclass(frozen=True, slots=True)
class Context:
    """A context as `contexts` gives it.

    id: names it in calls; `default` for the one that calls without a context use. cwd: the
    folder that it was made with, if any. created: seconds since the epoch.
    """

    id: str
    cwd: str | None
    created: float


class Contexts:
    """The contexts of a sandbox.

    Cells of one context run one after another, those of several side by side.
    """

    def __init__(self, channel: Channel, interpreter: Interpreter, sandbox_id: str) -> None:
        """Not for users: see `Sandbox.contexts`."""
        self._channel = channel
        self._interpreter = interpreter
        self._sandbox_id = sandbox_id
        self._stopping: set[asyncio.Task[None]] = set()
        # A connection that carried a cell carries the next one of its context too: making one
        # takes longer than a small cell. Only where a request would not be refused: see `_reused`.
        self._idle: dict[str, Stream] = {}

    async def create(self, cwd: str | None = None, env: Mapping[str, str] | None = None) -> Context:
        """A new context, with nothing defined.

        cwd: where it starts, the sandbox's folder unless given; a relative one starts there.
        env: added to the sandbox's environment. Raises CommandNotStarted where `cwd` is no
        folder, OperationFailed where there are as many as may be.
        """
        encode_fields(check_env(env))  # Text that is no Unicode would be the context's end.
        if cwd is not None and (not cwd or "\0" in cwd):
            raise InvalidConfig(f"cwd={cwd!r} cannot be a folder")
        answer = await self._ask("create", cwd=cwd, env=dict(env or {}))
        refused = answer.get("refused")
        if refused == "cwd":
            raise CommandNotStarted(
                "could not make a context",
                errno=errno.ENOENT,
                stage="cwd",
                why=f"cwd {cwd!r}: {str(answer.get('why'))[:200]}",
                sandbox_id=self._sandbox_id,
            )
        if refused is not None:
            self._refused(answer, "create", "")
        return _context(answer)

    async def list(self) -> _List[Context]:
        """All contexts, oldest first; the default one is always there."""
        answer = await self._ask("list")
        found = answer.get("contexts")
        if not isinstance(found, list) or len(found) > wire.MOST_CONTEXTS:
            raise FrameError("the guest's list of contexts is none")
        return [_context(each) for each in found]

    async def restart(self, context: Context | str | None = None) -> None:
        """End a context's process and begin with a new one; a cell that runs ends with it.

        context: the default one unless named. Raises ContextNotFound.
        """
        await self._change("restart", context)

    async def remove(self, context: Context | str) -> None:
        """End a context for good. Raises ContextNotFound; InvalidRequest for the default one."""
        if _identity(context) == wire.DEFAULT:
            raise InvalidRequest(
                "the default context cannot be removed", fix="Use `contexts.restart`."
            )
        await self._change("remove", context)

    async def _change(self, op: str, context: Context | str | None) -> None:
        identity = _identity(context)
        self._drop_idle(identity)
        answer = await self._ask(op, context=identity)
        if answer.get("refused") is not None:
            self._refused(answer, op, identity)

    def _refused(self, answer: Mapping[str, Any], op: str, identity: str) -> NoReturn:
        if answer.get("refused") == "unknown":
            raise self._unknown(identity)
        raise OperationFailed(
            f"the guest could not {op} the context",
            why=str(answer.get("why"))[:200],
            sandbox_id=self._sandbox_id,
        )

    def _unknown(self, identity: str) -> ContextNotFound:
        return ContextNotFound(
            f"there is no context {identity!r}",
            fix="`contexts.list()` names those that are there.",
            sandbox_id=self._sandbox_id,
        )

    async def _ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        with contextlib.suppress(NotRunning):
            return await self._interpreter.ask(op, **arguments)
        await self._interpreter.ensure()
        return await self._interpreter.ask(op, **arguments)

    # Cells.

    async def run(
        self,
        code: str,
        *,
        context: Context | str | None = None,
        timeout: float | None = None,
        on_output: OnOutput | None = None,
    ) -> CodeResult:
        """Run a cell; see `Sandbox.run_code`."""
        if timeout is not None and not 0 < timeout < math.inf:
            raise InvalidConfig(
                f"a timeout of {timeout} s", fix="Give seconds above 0, or None for no end."
            )
        data = code.encode("utf-8", "surrogatepass")
        if len(data) > wire.MOST_CODE:
            raise InvalidRequest(
                f"the code has {len(data):,} bytes, and at most {wire.MOST_CODE:,} can be run",
                fix="Put data into a file.",
            )
        call = _Call(_identity(context), data, Cell(on_output))
        deadline = asyncio.timeout(timeout)
        try:
            async with deadline:
                await self._finish(call)
        except TimeoutError:
            if not deadline.expired() or call.stream is None:
                self._abandon(call)
                raise
            return await self._overdue(call, timeout or 0)
        except BaseException:
            self._abandon(call)
            raise
        self._keep(call)
        return call.cell.result()

    async def rehearse(self, code: str) -> None:
        """Run code in the default context's process that its cells will not know of.

        So the first of them finds a connection at hand, and memory that need not be copied any
        more: a process shares its pages with the server's until it writes to them.
        """
        call = _Call(wire.DEFAULT, code.encode(), Cell(None), wire.REHEARSAL)
        try:
            await self._finish(call)
        except BaseException:
            self._abandon(call)
            raise
        self._keep(call)

    def _keep(self, call: _Call) -> None:
        assert call.stream is not None
        if self._channel.direct and call.context not in self._idle:
            self._idle[call.context] = call.stream
            self._channel.rest(call.stream)
        else:
            call.release()

    def _reused(self, identity: str) -> Stream | None:
        """A connection from before. None where the guest is paused or asleep, or may soon be.

        A holder in another process tells that with the answer to a request only, so there is
        none of these for its channel.
        """
        stream = self._idle.pop(identity, None)
        if stream is None:
            return None
        refuses = self._channel.refusal is not None or not self._channel.flows
        if refuses or stream.outputs[STDOUT].ended:
            stream.release()
            return None
        self._channel.rest(stream, over=True)
        return stream

    def _drop_idle(self, identity: str) -> None:
        stream = self._idle.pop(identity, None)
        if stream is not None:
            stream.release()

    async def _finish(self, call: _Call) -> None:
        """Send a call until something takes it, and read to its end."""
        while True:
            await call.begin(self._channel, self._reused(call.context))
            if await self._read(call):
                return
            assert call.stream is not None
            call.stream.input.end()  # Half of it is closed; the reply comes when all of it is.
            status = (await call.stream.result()).status
            call.release()
            if status == Errno.EAGAIN and not call.cell.begun:
                await asyncio.sleep(_PAUSE)
            elif status == Errno.ECONNREFUSED and not call.cell.begun:
                await self._find(call.context)
            elif status == Errno.ESTALE:
                raise OutcomeUnknown(
                    "the sandbox's holder died while a cell ran",
                    why="it was interrupted, and nobody knows how far it came",
                    sandbox_id=self._sandbox_id,
                )
            else:
                await self._explain(call)

    async def _read(self, call: _Call) -> bool:
        """Take events to the last one; False where the connection ended before it.

        Raises ContextLost where the context died before it took the cell.
        """
        assert call.stream is not None
        output = call.stream.outputs[STDOUT]
        cell = call.cell
        while data := await output.read():
            try:
                cell.feed(data)
            except FrameError as error:
                raise await self._broken(call, error) from error
            if cell.lost is not None:
                raise self._lost(call, cell.lost, "This cell was not run.")
            if cell.done:
                return True
        return False

    async def _broken(self, call: _Call, error: FrameError) -> ContextLost:
        """What a context says can no longer be told from what its code made of it."""
        with contextlib.suppress(NovaError):
            await self._interpreter.ask("restart", context=call.context)
        return self._lost(call, {"reason": "cut"}, f"What it said was no answer: {error.what}.")

    async def _find(self, identity: str) -> None:
        """Nobody listens. Raises ContextNotFound, or ContextLost where the server had died."""
        if await self._interpreter.runs():
            if identity != wire.DEFAULT:
                raise self._unknown(identity)
            await asyncio.sleep(_PAUSE)  # It is being made.
            return
        await self._interpreter.ensure()
        if identity != wire.DEFAULT:
            raise self._unknown(identity)

    async def _explain(self, call: _Call) -> NoReturn:
        """The connection ended without the cell's end: say how the context did."""
        try:
            fate = await self._interpreter.ask("fate", context=call.context, mark=call.mark.hex())
        except NotRunning:
            fate = {"reason": "server"}
            with contextlib.suppress(ContextLost):
                await self._interpreter.ensure()
        if fate.get("refused") == "unknown":
            fate = {"reason": "removed"}
        raise self._lost(call, fate, "" if fate.get("ran", True) else "This cell was not run.")

    def _lost(self, call: _Call, how: Mapping[str, Any], more: str) -> ContextLost:
        out, err = call.cell.output()
        removed = how.get("reason") == "removed"
        return ContextLost(
            f"context {call.context!r} ended and lost its state",
            why=_cause(how),
            fix=f"{more} {'' if removed else _MADE_ANEW}".strip(),
            stdout=out,
            stderr=err,
            sandbox_id=self._sandbox_id,
        )

    # Ending a cell early.

    def _abandon(self, call: _Call) -> None:
        """Nobody waits any more: interrupt the cell, and see to it that it ends."""
        if call.stream is None or call.cell.done or call.cell.lost is not None:
            call.release()
            return
        call.release()
        task = asyncio.create_task(self._see_to(call))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _see_to(self, call: _Call) -> None:
        with contextlib.suppress(NovaError):
            await self._stop(call, told=False)

    async def _stop(self, call: _Call, *, told: bool) -> bool:
        """Wait until a cell is over that was interrupted. Whether its context ended with it."""
        answer = await self._interpreter.ask(
            "stop",
            context=call.context,
            mark=call.mark.hex(),
            grace=GRACE,
            told=told,
            deadline=GRACE + _ANSWER_GRACE,
        )
        return answer.get("ended") is True

    async def _overdue(self, call: _Call, timeout: float) -> CodeResult:
        """Interrupt a cell that took too long, and raise OperationTimeout when it is over.

        A cell that ended well just now is a result all the same.
        """
        assert call.stream is not None
        try:
            if call.is_sent:
                with contextlib.suppress(BrokenPipeError, TimeoutError):
                    async with asyncio.timeout(_FAREWELL):
                        await call.stream.input.send(wire.INTERRUPT)
            reading = asyncio.create_task(self._read(call))
            stopping = asyncio.create_task(self._stop(call, told=True))
            try:
                await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    await asyncio.wait((reading,), timeout=_FAREWELL)
                if reading.done() and not call.cell.done:
                    reading.result()
                    await asyncio.wait((stopping,))
                ended = stopping.done() and stopping.result()
            finally:
                for task in (reading, stopping):
                    task.cancel()
                await asyncio.wait((reading, stopping))
        except NovaError as error:
            raise self._timeout(call, timeout, str(error)) from error
        finally:
            call.release()
        if not call.cell.done:
            why = (
                f"it went on for {GRACE:g} s after its interrupt, so its context was ended: "
                "the state is lost"
                if ended
                else "it was still waiting for an earlier cell"
            )
            raise self._timeout(call, timeout, why)
        result = call.cell.result()
        if result.error is None:
            return result
        raise self._timeout(call, timeout, "it was interrupted; its context goes on")

    def _timeout(self, call: _Call, timeout: float, why: str) -> OperationTimeout:
        out, err = call.cell.output()
        return OperationTimeout(
            f"the cell did not end within {timeout:g} s",
            why=why,
            stdout=out,
            stderr=err,
            sandbox_id=self._sandbox_id,
        )


class _Call:
    """One cell on its way."""

    def __init__(self, context: str, code: bytes, cell: Cell, mark: bytes | None = None) -> None:
        self.context = context
        self.cell = cell
        self.mark = os.urandom(8) if mark is None else mark
        self.stream: Stream | None = None
        self.is_sent = False
        self._request = wire.REQUEST.pack(len(code), self.mark) + code

    async def begin(self, channel: Channel, connection: Stream | None) -> None:
        """Send the code, by a connection that is there or a new one."""
        rest = self._request
        self.is_sent = False
        if connection is None:
            path = wire.CONTEXT + self.context.encode()
            connection = channel.request(Op.CONNECT, [(Tag.PATH, path)], data=rest[:PIECE])
            rest = rest[PIECE:]
        self.stream = connection
        if rest:
            # A context that has ended says why.
            with contextlib.suppress(BrokenPipeError):
                await connection.input.send(rest)
        self.is_sent = True

    def release(self) -> None:
        """Let go of the connection; a cell that runs is interrupted by that."""
        if self.stream is not None:
            self.stream.release()


def _identity(context: Context | str | None) -> str:
    identity = context.id if isinstance(context, Context) else context or wire.DEFAULT
    if not _IDENTITY.fullmatch(identity):
        raise ContextNotFound(
            f"there is no context {identity[:40]!r}",
            fix="Use what `contexts.create` gave, or its id.",
        )
    return identity


def _context(found: Any) -> Context:
    try:
        identity, cwd, created = found["id"], found["cwd"], float(found["created"])
    except (TypeError, LookupError, ValueError, OverflowError) as error:
        raise FrameError("the guest tells of a context that is none") from error
    if not math.isfinite(created):
        raise FrameError("the guest tells of a context that was never made")
    if not isinstance(identity, str) or not _IDENTITY.fullmatch(identity):
        raise FrameError("the guest tells of a context without an id")
    return Context(identity, cwd if isinstance(cwd, str) else None, created)


def _cause(how: Mapping[str, Any]) -> str:
    reason, number = how.get("reason"), how.get("number")
    if reason == "signal" and isinstance(number, int):
        if how.get("oom"):
            return "it was killed, for the guest's memory ran out"
        return f"its process was ended by {signal_name(number)}"
    if reason == "exit" and isinstance(number, int):
        return f"its code ended the process, with exit code {number}"
    if reason == "server":
        return "the guest's interpreter was ended"
    return _REASONS.get(str(reason), "the guest does not say why")
