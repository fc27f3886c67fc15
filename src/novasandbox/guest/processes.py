"""The programs of a guest: started, listed, and attached to again."""

from __future__ import annotations

import asyncio
import contextlib

from novasandbox.errors import (
    CommandFailed,
    OperationTimeout,
    ProcessNotFound,
)
from novasandbox.guest.channel import Channel
from novasandbox.guest.frames import Fields, FrameError, encode_fields
from novasandbox.guest.launch import (
    Launch,
)
from novasandbox.guest.process import ExecResult, Process, ProcessInfo, not_started, shown_command
from novasandbox.guest.protocol import MAX_PAYLOAD, MAX_STREAMS, Op, Tag
from novasandbox.guest.signals import signal_name
from novasandbox.guest.stream import Stream

# The guest enforces a timeout; a guest that does not is given up on this much later.
_TIMEOUT_GRACE = 15.0
# As many as the agent keeps, and some that end while it lists them.
_MOST_PROCESSES = MAX_STREAMS + 64
_List = list  # `Processes.list` hides the built-in inside its class.
OWN_NAME = "nova-interpreter"
"""The name of what runs the cells of `run_code`."""


class Processes:
    """Starts programs in a guest, lists them, and attaches to them again."""

    def __init__(self, channel: Channel, sandbox_id: str) -> None:
        self._channel = channel
        self._sandbox_id = sandbox_id

    async def start(self, launch: Launch) -> Process:
        """Start a program; returns once it runs. Raises CommandNotStarted."""
        stream, more = self._open(launch)
        try:
            if more:
                # Where the guest refuses before it has all of it, its reply says why.
                with contextlib.suppress(BrokenPipeError):
                    await stream.input.send(more)
            state = await stream.started()
            if state is None:
                raise not_started(launch, await stream.result(), self._sandbox_id)
        except BaseException:
            stream.release()
            raise
        return Process(
            self._channel,
            stream,
            state.number(Tag.PID),
            launch.command,
            sandbox_id=self._sandbox_id,
            output_limit=launch.output_limit,
            on_limit=launch.on_limit,
            timeout=launch.timeout,
            rests=launch.background and launch.pty is None,
        )

    def _open(self, launch: Launch) -> tuple[Stream, bytes]:
        fields = launch.fields()
        more = b""
        if len(encode_fields(fields)) > MAX_PAYLOAD - 64:
            more = encode_fields(fields)
            fields = [(Tag.MORE, len(more))]
        stream = self._channel.request(Op.EXEC, fields)
        if more:
            stream.state_needs = Tag.PID
        return stream, more

    async def run(self, launch: Launch, stdin: bytes | None, check: bool) -> ExecResult:
        """Start a program, feed it, wait for its end; a cancelled call ends its tree."""
        # One deadline for all of it: a guest that never says that the program runs must not
        # hold up the caller any more than one that never says that it ended.
        limit = None if launch.timeout is None else launch.timeout + _TIMEOUT_GRACE
        deadline = asyncio.timeout(limit)
        process: Process | None = None
        try:
            async with deadline:
                process = await self.start(launch)
                result = await _finished(process, stdin)
        except TimeoutError as error:
            if isinstance(error, OperationTimeout) or not deadline.expired():
                raise
            raise self._overdue(launch, process) from error
        if check and not result.ok:
            raise CommandFailed(
                f"{shown_command(launch.command)} ended with {_ending(result)}",
                result=result,
                sandbox_id=self._sandbox_id,
            )
        return result

    def _overdue(self, launch: Launch, process: Process | None) -> OperationTimeout:
        """The guest did not enforce the timeout. Raises how the sandbox ended, when it has."""
        self._channel.raise_if_closed()
        out, err = (b"", b"") if process is None else process.collected()
        return OperationTimeout(
            f"{shown_command(launch.command)} did not end within {launch.timeout or 0:g} s",
            why=f"and the guest said nothing in the {_TIMEOUT_GRACE:g} s after that",
            fix="It ends when the guest answers again; kill the sandbox if it does not.",
            stdout=out,
            stderr=err,
            sandbox_id=self._sandbox_id,
        )

    async def list(self) -> _List[ProcessInfo]:
        """The processes that were started and not yet waited for."""
        return [info for info in await self._every() if info.name != OWN_NAME and _counts(info)]

    async def own(self) -> _List[ProcessInfo]:
        """What the library itself has started, which `list` does not show."""
        return [info for info in await self._every() if info.name == OWN_NAME]

    async def forget(self, info: ProcessInfo) -> None:
        """Let the guest forget a process; one that runs is ended first, with its tree."""
        process = await self._handle(info)
        if info.exit_code is None and info.signal is None:
            await process.kill()
        await process.wait()

    async def _every(self) -> _List[ProcessInfo]:
        stream = self._channel.request(Op.PROCESSES)
        try:
            found: _List[ProcessInfo] = []
            async for fields in stream.records():
                if len(found) == _MOST_PROCESSES:
                    raise FrameError(f"the guest lists more than {_MOST_PROCESSES} processes")
                found.append(_info(fields))
            await stream.result()
        finally:
            stream.release()
        return found

    async def attach(self, pid: int) -> Process:
        """A handle on a process started earlier, with the output it still holds.

        Raises ProcessNotFound when no process of that pid was started by `start`.
        """
        info = next((each for each in await self.list() if each.pid == pid), None)
        if info is None:
            raise ProcessNotFound(
                f"no process {pid} was started here",
                fix="`processes()` lists those that can be attached to.",
                sandbox_id=self._sandbox_id,
            )
        return await self._handle(info)

    async def _handle(self, info: ProcessInfo) -> Process:
        stream = self._channel.adopt(info.stream)
        try:
            await stream.started()
        except BaseException:
            stream.detach()
            raise
        return Process(
            self._channel,
            stream,
            info.pid,
            info.command,
            sandbox_id=self._sandbox_id,
            rests=info.background and not info.pty,
        )


async def _finished(process: Process, stdin: bytes | None) -> ExecResult:
    """How a process ended that was fed; where nobody waits any more, its tree is ended."""
    feeding: asyncio.Task[None] | None = None
    try:
        if stdin is not None:
            feeding = asyncio.create_task(_feed(process, stdin))
        return await process.wait()
    except BaseException:
        process.abandon()
        raise
    finally:
        if feeding is not None:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)


async def _feed(process: Process, data: bytes) -> None:
    try:
        await process.stdin.write(data)
    except BrokenPipeError:
        return
    await process.stdin.close()


def _counts(info: ProcessInfo) -> bool:
    """Whether it is anybody's: what was run to its end for one who is gone is nobody's."""
    return info.background or (info.exit_code is None and info.signal is None)


def _info(fields: Fields) -> ProcessInfo:
    number = fields.number(Tag.SIGNAL)
    ended = number or fields.has(Tag.EXIT)
    return ProcessInfo(
        pid=fields.number(Tag.PID),
        command=tuple(word.decode("utf-8", "surrogateescape") for word in fields.all(Tag.ARG)),
        started=fields.number(Tag.STARTED) / 1e9,
        user=fields.text(Tag.USER),
        name=fields.text(Tag.NAME) or None,
        pty=fields.has(Tag.PTY),
        background=fields.has(Tag.BACKGROUND),
        exit_code=(128 + number if number else fields.number(Tag.EXIT)) if ended else None,
        signal=signal_name(number) if number else None,
        stream=fields.stream(),
    )


def _ending(result: ExecResult) -> str:
    if result.out_of_memory:
        return "out of memory"
    return result.signal or f"exit code {result.exit_code}"
