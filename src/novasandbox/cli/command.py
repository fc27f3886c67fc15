"""A guest's command with our own standard streams: what `run`, `exec` and `shell` share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from novasandbox.cli import terminal
from novasandbox.cli.errors import INTERRUPTED, Interrupted, binary
from novasandbox.cli.loop import Interrupts
from novasandbox.cli.output import note, print_json
from novasandbox.cli.stdio import Input, Output
from novasandbox.core.sandbox import Sandbox
from novasandbox.errors import NovaError, OperationTimeout
from novasandbox.guest.process import ExecResult, Process

# The guest enforces a timeout. This much later we leave, whatever guest and readers do.
_PATIENCE = 3.0
_STDOUT, _STDERR = 1, 2


@dataclass(frozen=True)
class Job:
    """What to run. stdin: pass our input on; else it sees the end at once.

    pty: on a terminal of its own. timeout: seconds, None: no end.
    """

    command: Sequence[str]
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    user: str | None = None
    timeout: float | None = None
    stdin: bool = False
    pty: bool = False

    @property
    def raw(self) -> bool:
        """Whether our terminal is the guest's for the time being."""
        return self.pty and os.isatty(0)


async def perform(sandbox: Sandbox, job: Job, interrupts: Interrupts, as_json: bool) -> int:
    """Run a job to its end, its output passed through byte by byte; gives the exit code.

    as_json: print the result as JSON instead. Raises CommandNotStarted, OperationTimeout,
    BrokenPipeError when nobody reads our output, the SandboxFailed kinds.
    """
    process = await _start(sandbox, job)
    try:
        with contextlib.ExitStack() as stack:
            if job.raw:
                stack.enter_context(terminal.raw(0))
            attendance = _Attendance(process, job, interrupts, collect=as_json)
            result = await attendance.attend()
    except BaseException:
        process.abandon()
        raise
    code = INTERRUPTED if interrupts.last == signal.SIGINT else result.exit_code
    if as_json:
        print_json({**_as_data(result), "exit_code": code, "sandbox_id": sandbox.id})
    elif result.out_of_memory:
        note("nova: the guest ran out of memory; give it more with --memory")
    return code


async def _start(sandbox: Sandbox, job: Job) -> Process:
    deadline = None if job.timeout is None else job.timeout + _PATIENCE
    env = dict(job.env)
    if job.pty and os.environ.get("TERM"):
        env.setdefault("TERM", os.environ["TERM"])
    try:
        async with asyncio.timeout(deadline):
            return await sandbox.start(
                job.command,
                pty=terminal.size() if job.pty else None,
                cwd=job.cwd,
                env=env,
                user=job.user,
                timeout=job.timeout,
                background=False,
            )
    except TimeoutError as error:
        if isinstance(error, NovaError):
            raise
        raise _too_late(job, "the guest did not start it", sandbox.id) from error


def _too_late(job: Job, why: str, sandbox_id: str | None = None) -> OperationTimeout:
    what = f"{job.command[0]!r} did not end within {job.timeout or 0:g} s"
    return OperationTimeout(what, why=why, sandbox_id=sandbox_id)


def _as_data(result: ExecResult) -> dict[str, Any]:
    return {
        "exit_code": result.exit_code,
        "signal": result.signal,
        "duration": result.duration,
        "stdout": result.stdout,
        "stderr": result.stderr,
        **binary("stdout", result.stdout_bytes),
        **binary("stderr", result.stderr_bytes),
        "truncated": sorted(result.truncated),
        "out_of_memory": result.out_of_memory,
    }


class _Attendance:
    """A running process, our streams, our terminal and our signals, until the end."""

    def __init__(
        self, process: Process, job: Job, interrupts: Interrupts, *, collect: bool
    ) -> None:
        self._process = process
        self._job = job
        self._interrupts = interrupts
        self._output = None if collect else Output()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._changed = asyncio.Event()
        self._presses = 0
        self._give_up_at: float | None = None

    async def attend(self) -> ExecResult:
        """Carry bytes both ways until the process has ended and its output is written."""
        ending = asyncio.create_task(self._copy_output())
        self._spawn(self._copy_input())
        self._interrupts.handler = self._interrupted
        if self._job.raw:
            self._loop.add_signal_handler(signal.SIGWINCH, self._resized)
            self._resized()
        try:
            return await self._watch(ending)
        finally:
            self._interrupts.handler = None
            self._loop.remove_signal_handler(signal.SIGWINCH)
            for task in (ending, *self._tasks):
                task.cancel()
            await asyncio.wait((ending, *self._tasks))

    async def _watch(self, ending: asyncio.Task[ExecResult]) -> ExecResult:
        """Wait for the end, but no longer than a timeout or an impatient user allows."""
        while True:
            changed = asyncio.create_task(self._changed.wait())
            due = self._due()
            delay = None if due is None else max(0.1, due - self._loop.time())
            await asyncio.wait(
                (ending, changed), timeout=delay, return_when=asyncio.FIRST_COMPLETED
            )
            changed.cancel()
            self._changed.clear()
            if ending.done():
                return ending.result()
            due = self._due()
            if due is not None and self._loop.time() >= due:
                if self._give_up_at is not None:
                    raise Interrupted(signal.SIGINT)
                raise _too_late(self._job, "its end, or its output, cannot be delivered")

    def _due(self) -> float | None:
        """When we leave at the latest; a reader who still reads gets time to finish."""
        if self._give_up_at is not None or self._job.timeout is None:
            return self._give_up_at
        read = self._output.last_progress if self._output is not None else self._started
        return max(self._started + self._job.timeout, read) + _PATIENCE

    async def _copy_output(self) -> ExecResult:
        if self._output is not None:
            async for piece in self._process:
                target = _STDOUT if piece.stream == "stdout" else _STDERR
                await self._output.write(target, piece.data)
        return await self._process.wait()

    async def _copy_input(self) -> None:
        escape = terminal.EscapeKey() if self._job.raw else None
        source = Input() if self._job.stdin else None
        with contextlib.suppress(BrokenPipeError, NovaError):
            while source is not None and (data := await source.read()):
                if escape is not None and escape.pressed_in(data):
                    self._give_up()
                    return
                await self._process.stdin.write(data)
            await self._process.stdin.close()

    def _interrupted(self, number: int) -> bool:
        """Ctrl-C ends the guest's command; the second kills all of it; the third leaves."""
        if number != signal.SIGINT:
            return False
        self._presses += 1
        if self._presses == 1:
            # As a terminal does it: everything in the foreground gets the signal.
            self._spawn(self._process.signal(signal.SIGINT, tree=not self._job.pty))
        elif self._presses == 2:
            self._spawn(self._process.kill())
            self._give_up_at = self._loop.time() + _PATIENCE
            self._changed.set()
        return self._presses <= 2

    def _give_up(self) -> None:
        self._give_up_at = self._loop.time()
        self._changed.set()

    def _resized(self) -> None:
        now = terminal.size()
        self._spawn(self._process.resize(now.rows, now.cols))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def harmless() -> None:
            # What made it fail ends the process's stream too, and is told there.
            with contextlib.suppress(NovaError):
                await work

        task = asyncio.create_task(harmless())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
