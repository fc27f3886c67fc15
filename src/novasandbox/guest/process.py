"""A program in the guest: watched, written to, signalled, waited for."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from novasandbox.errors import (
    CommandNotStarted,
    OperationFailed,
    OperationTimeout,
    OutputLimitExceeded,
    ProcessNotFound,
)
from novasandbox.guest.attendance import Attendance
from novasandbox.guest.channel import Channel
from novasandbox.guest.frames import Fields, FieldValue
from novasandbox.guest.launch import (
    DEFAULT_OUTPUT_LIMIT,
    Launch,
    OnLimit,
    Tail,
)
from novasandbox.guest.protocol import STDERR, STDOUT, Errno, Op, Tag
from novasandbox.guest.signals import SIGKILL, signal_name, signal_number
from novasandbox.guest.stream import Reply, Stream

_NAMES = {STDOUT: "stdout", STDERR: "stderr"}
# MAX_ARG_STRLEN of Linux, less the NUL at its end.
_SHORTER = "One argument has at most 131,071 bytes; pass what is longer as input or as a file."


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of what a process printed, in the order of arrival.

    stream: `stdout` or `stderr`; with a PTY all is `stdout`.
    data: the bytes. text: the same as text; a character cut in two is in the later piece.
    """

    stream: str
    data: bytes
    text: str


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a command ended.

    exit_code: its own; 128 + n where signal n ended it, as shells count.
    signal: the name of that signal, as `SIGKILL`, else None.
    duration: seconds, measured in the guest.
    truncated: the names of the streams (`stdout`, `stderr`) that lost their beginning to
        `output_limit`, or to nobody reading; empty where all is there.
    out_of_memory: the guest's memory ran out and its kernel killed something of the command.
    """

    exit_code: int
    signal: str | None = None
    duration: float = 0.0
    stdout_bytes: bytes = field(default=b"", repr=False)
    stderr_bytes: bytes = field(default=b"", repr=False)
    truncated: frozenset[str] = frozenset()
    out_of_memory: bool = False

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are no UTF-8 become U+FFFD."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as text."""
        return self.stderr_bytes.decode("utf-8", "replace")

    @property
    def ok(self) -> bool:
        """Whether the exit code is 0."""
        return self.exit_code == 0


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process that `start` made, as `processes` lists it.

    pid: in the guest. started: seconds since the epoch. exit_code: None while it runs.
    """

    pid: int
    command: tuple[str, ...]
    started: float
    user: str
    name: str | None
    pty: bool
    background: bool
    exit_code: int | None
    signal: str | None
    stream: int


class Stdin:
    """A process's standard input."""

    def __init__(self, stream: Stream, attendance: Attendance) -> None:
        self._stream = stream
        self._attendance = attendance

    async def write(self, data: bytes | str) -> None:
        """Send all of `data`; waits while the process reads slowly.

        Raises BrokenPipeError when the process has ended.
        """
        self._attendance.change(1)
        try:
            await self._stream.input.send(data.encode() if isinstance(data, str) else data)
        finally:
            self._attendance.change(-1)

    async def close(self) -> None:
        """Let the process see the end of its input."""
        self._attendance.change(1)
        self._stream.input.end()
        self._attendance.change(-1)


class Process:
    """A program in the guest. Iterate over it for its output, or `wait` for all of it.

    It lives on when this handle is dropped, and can be attached to again by its pid.
    """

    def __init__(
        self,
        channel: Channel,
        stream: Stream,
        pid: int,
        command: tuple[str, ...],
        *,
        sandbox_id: str,
        output_limit: int = DEFAULT_OUTPUT_LIMIT,
        on_limit: OnLimit = "tail",
        timeout: float | None = None,
        rests: bool = False,
    ) -> None:
        """Not for users. rests: while nobody uses this handle, it keeps no sandbox awake."""
        self.pid = pid
        self.command = command
        self._attendance = Attendance(channel, stream, rests)
        self.stdin = Stdin(stream, self._attendance)
        self._channel = channel
        self._stream = stream
        self._sandbox_id = sandbox_id
        self._tails = {n: Tail(output_limit) for n in (STDOUT, STDERR)}
        self._collectors = {n: _Collector(weakref.ref(self), n) for n in (STDOUT, STDERR)}
        self._on_limit = on_limit
        self._timeout = timeout
        self._iterations = 0
        self._waiting = 0
        self._over_limit: str | None = None
        self._result: ExecResult | None = None
        # Without a reader its output would come to a stand, and then the process.
        loop = asyncio.get_running_loop()
        self._when_dropped = weakref.finalize(self, _soon, loop, stream.detach)
        self._when_dropped.atexit = False

    def __repr__(self) -> str:
        return f"<Process {self.pid} {self.command[0]!r}>"

    def __aiter__(self) -> AsyncIterator[Output]:
        """Yield what the process prints until it ends. Bytes handed out here are not kept."""
        self.iterates(1)
        return _Outputs(self, self._stream)

    def iterates(self, change: int) -> None:
        """An iteration begins (1) or is over (-1): its output belongs to those who wait then."""
        self._iterations += change
        self._attendance.change(change)
        self._collect()

    async def wait(self) -> ExecResult:
        """Wait for the end. The result holds the output that nobody has iterated over.

        Raises OperationTimeout (with the output so far) when the process was ended by its
        timeout, OutputLimitExceeded with `on_limit="error"`, SandboxFailed kinds when the
        sandbox is gone.
        """
        if self._result is not None:
            return self._result
        self._waiting += 1
        self._attendance.change(1)
        self._collect()
        try:
            reply = await self._stream.result()
        finally:
            self._waiting -= 1
            self._attendance.change(-1)
            self._collect()
        self._result = self._conclude(reply)
        return self._result

    def _collect(self) -> None:
        """Take the output while somebody waits and nobody iterates."""
        wanted = self._waiting > 0 and self._iterations == 0
        for number, collector in self._collectors.items():
            self._stream.outputs[number].drain_to(collector if wanted else None)

    def collect(self, number: int, data: bytes, total: int) -> None:
        """Keep output; with `on_limit="error"` too much of it ends the command."""
        tail = self._tails[number]
        tail.add(data)
        if total > tail.limit and self._on_limit == "error" and self._over_limit is None:
            self._over_limit = _NAMES[number]
            self._stream.cancel()

    def _conclude(self, reply: Reply) -> ExecResult:
        out, err = self.collected()
        self._stream.release()
        # Nothing is left to detach from, and waking the loop would cost 0.1 ms.
        self._when_dropped.detach()
        if self._over_limit is not None:
            limit = self._tails[STDOUT].limit
            raise OutputLimitExceeded(
                f"{self.command[0]!r} printed more than {limit} bytes on {self._over_limit}",
                fix="It was ended. Raise output_limit, or use on_limit='tail'.",
                stdout=out,
                stderr=err,
                sandbox_id=self._sandbox_id,
            )
        if reply.fields.has(Tag.TIMED_OUT):
            raise OperationTimeout(
                f"{self.command[0]!r} did not end within {self._timeout or 0:g} s",
                why="its whole process tree was ended",
                stdout=out,
                stderr=err,
                sandbox_id=self._sandbox_id,
            )
        if reply.status == Errno.ESTALE:
            raise ProcessNotFound(
                f"process {self.pid} is no longer ours to wait for",
                why="somebody else has attached to it, or has waited for its end",
                sandbox_id=self._sandbox_id,
            )
        if reply.status:
            raise not_started(Launch(self.command), reply, self._sandbox_id)
        cut = {
            _NAMES[n]
            for n in (STDOUT, STDERR)
            if self._tails[n].cut or self._stream.outputs[n].lost
        }
        return _result(reply.fields, out, err, frozenset(cut))

    def collected(self) -> tuple[bytes, bytes]:
        """What `wait` has kept of both outputs so far."""
        return self._tails[STDOUT].get(), self._tails[STDERR].get()

    async def signal(self, name: str | int, *, tree: bool = False) -> None:
        """Send a signal (`SIGTERM`, `term`, 15); with a PTY to its foreground group.

        tree: send it to every descendant too. Harmless when the process has ended.
        """
        await self._signal(signal_number(name), tree)

    async def kill(self) -> None:
        """End the process and every descendant, whatever they did to get away."""
        await self._signal(SIGKILL, tree=True)

    async def _signal(self, number: int, tree: bool) -> None:
        fields: list[tuple[Tag, FieldValue]] = [
            (Tag.TARGET, self._stream.guest_id),
            (Tag.SIGNAL, number),
        ]
        if tree:
            fields.append((Tag.TREE, 1))
        await self._channel.call(Op.SIGNAL, fields)

    async def resize(self, rows: int, cols: int) -> None:
        """Tell the process's terminal its new size, in characters."""
        await self._channel.call(
            Op.RESIZE,
            [(Tag.TARGET, self._stream.guest_id), (Tag.ROWS, rows), (Tag.COLS, cols)],
        )

    def detach(self) -> None:
        """Let go of the handle: the process goes on, its latest output is kept for later."""
        self._stream.detach()

    def abandon(self) -> None:
        """End the process's tree without waiting; for a cancelled `exec`."""
        self._stream.release()


class _Outputs(AsyncIterator[Output]):
    """An iteration over a process's output; it ends when it is dropped."""

    def __init__(self, process: Process, stream: Stream) -> None:
        self._process = process  # Kept alive, so that it is not let go meanwhile.
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._decoders = {
            n: codecs.getincrementaldecoder("utf-8")("replace") for n in (STDOUT, STDERR)
        }

    async def __anext__(self) -> Output:
        piece = await self._stream.read()
        if piece is None:
            raise StopAsyncIteration
        number, data = piece
        return Output(_NAMES[number], data, self._decoders[number].decode(data))

    def __del__(self) -> None:
        _soon(self._loop, self._process.iterates, -1)


@dataclass(slots=True)
class _Collector:
    process: weakref.ref[Process]
    number: int
    total: int = 0

    def __call__(self, data: bytes) -> None:
        self.total += len(data)
        process = self.process()
        if process is not None:
            process.collect(self.number, data, self.total)


def _soon(loop: asyncio.AbstractEventLoop, work: Callable[..., None], *arguments: int) -> None:
    """Whatever thread drops an object: what follows happens in the loop."""
    with contextlib.suppress(RuntimeError):  # The loop is closed, and all is over.
        loop.call_soon_threadsafe(work, *arguments)


def _result(fields: Fields, out: bytes, err: bytes, cut: frozenset[str]) -> ExecResult:
    number = fields.number(Tag.SIGNAL)
    return ExecResult(
        exit_code=128 + number if number else fields.number(Tag.EXIT),
        signal=signal_name(number) if number else None,
        duration=fields.number(Tag.DURATION) / 1e6,
        stdout_bytes=out,
        stderr_bytes=err,
        truncated=cut,
        out_of_memory=fields.has(Tag.OOM),
    )


def not_started(launch: Launch, reply: Reply, sandbox_id: str) -> OperationFailed:
    """The error for a program that never ran; it names what was missing."""
    stage = reply.fields.text(Tag.STAGE, "exec")[:20]
    culprit = {"cwd": launch.cwd, "user": launch.user}.get(stage)
    reason = reply.fields.text(Tag.MESSAGE)[:500] or os.strerror(reply.status)
    return CommandNotStarted(
        f"could not start {shown_command(launch.command)}",
        errno=reply.status,
        stage=stage,
        why=f"{stage} {culprit!r}: {reason}" if culprit else reason,
        fix=_SHORTER if reply.status == Errno.E2BIG else None,
        sandbox_id=sandbox_id,
    )


def shown_command(command: tuple[str, ...]) -> str:
    """A command in the words of an error: short, and a shell's without the shell."""
    text = command[2] if command[:2] == ("/bin/sh", "-c") and len(command) == 3 else command[0]
    return repr(text if len(text) <= 60 else text[:57] + "...")
