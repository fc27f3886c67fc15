"""Runs a hypervisor in an empty room: what goes in, the start, and how it ended.

The program `nova-jail` does the work (native/jail). It stays as the *supervisor*, outside the
jail: it kills the program when the owner goes, keeps the logs small, removes the cgroup, and
says what happened on its status line.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from novasandbox import native
from novasandbox.core.owner import Owner
from novasandbox.errors import BootFailed, HostResourceExhausted, NovaError, ProviderUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from novasandbox.core.uids import UidLease

_START_DEADLINE = 10.0
_KILL_DEADLINE = 2.0
_EXHAUSTED = {
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.EAGAIN,
    errno.ENOSPC,
    errno.EUSERS,
    errno.EDQUOT,
}
_LENDING = "open-read-only"
_PARTS = frozenset(
    {"mount", "pid", "ipc", "uts", "net", "cgroupns", "room", "uid", "bounding", "seccomp"}
    | {"cgroup", "core", "oom"}
)


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or folder of the host that is there in the room. A device keeps its own path."""

    source: str
    dest: str
    access: Literal["read-only", "read-write", "device"] = "read-only"

    def words(self) -> tuple[str, ...]:
        """As the jail's command line has it."""
        if self.access == "device":
            return ("--device", self.source)
        return ("--bind-ro" if self.access == "read-only" else "--bind", self.source, self.dest)


@dataclass(frozen=True, slots=True)
class Console:
    """A pipe that the program writes to as `fd`; the last 64 to 128 KiB of it lie in `path`."""

    fd: int
    path: Path


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A control group that is made for the program and removed after it."""

    folder: Path
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class JailSpec:
    """A program, and all that it gets.

    program: its path in the room. keep_fds: descriptors it keeps, under their numbers.
    hold_fds: descriptors (locks) that the supervisor keeps open until it ends. env: its whole
    environment. limits: rlimits by their short names (`nofile`, `as`, …), soft and hard alike.
    lease: a uid of its own; None: that of the caller. groups: supplementary group ids.
    owner_fd: read end of a pipe, at whose end of file the program is killed. log: its stdout
    and stderr, the last 64 to 128 KiB. strict: refuse to start where a part of the jail cannot
    be had. allow_fork: it may make processes, not only threads. open_read_only: a file
    of a read-only bind, by its name in the room (its source, where no room can be built): the
    first time that the program opens it to read and write, it gets a descriptor to read only.
    This needs Linux 5.9.
    """

    program: str
    arguments: tuple[str, ...] = ()
    binds: tuple[Bind, ...] = ()
    keep_fds: tuple[int, ...] = ()
    hold_fds: tuple[int, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    limits: Mapping[str, int] = field(default_factory=dict)
    lease: UidLease | None = None
    groups: tuple[int, ...] = ()
    cgroups: tuple[Cgroup, ...] = ()
    consoles: tuple[Console, ...] = ()
    log: Path | None = None
    owner_fd: int | None = None
    hostname: str = "sandbox"
    oom_score_adj: int | None = 500
    strict: bool = False
    allow_fork: bool = False
    open_read_only: str | None = None

    def __post_init__(self) -> None:
        standard = [fd for fd in (*self.keep_fds, *(c.fd for c in self.consoles)) if fd < 3]
        if standard:
            raise ValueError(f"standard descriptors cannot be handed on: {standard}")
        shared = {
            path for b in self.binds if b.access == "read-only" for path in (b.source, b.dest)
        }
        if self.open_read_only is not None and self.open_read_only not in shared:
            raise ValueError(f"no read-only bind has it: {self.open_read_only}")

    def command(self, jail: Path, status_fd: int) -> list[str]:
        """The jail's command line."""
        return [str(jail), "--status-fd", str(status_fd), *self._options(), "--", self.program,
                *self.arguments]  # fmt: skip

    def descriptors(self) -> set[int]:
        """Those that the supervisor must inherit."""
        wanted = {*self.keep_fds, *self.hold_fds}
        if self.lease is not None:
            wanted.add(self.lease.descriptor)
        if self.owner_fd is not None:
            wanted.add(self.owner_fd)
        return wanted

    def _options(self) -> Iterator[str]:
        for bind in self.binds:
            yield from bind.words()
        for fd in self.keep_fds:
            yield from ("--keep-fd", str(fd))
        for fd in self.hold_fds:
            yield from ("--hold-fd", str(fd))
        for key, value in self.env.items():
            yield from ("--env", f"{key}={value}")
        for name, limit in self.limits.items():
            yield from ("--rlimit", f"{name}={limit}")
        for console in self.consoles:
            yield from ("--console", str(console.fd), str(console.path))
        for cgroup in self.cgroups:
            yield from ("--cgroup", str(cgroup.folder))
            for file, value in cgroup.settings.items():
                yield from ("--cgroup-set", f"{file}={value}")
        if self.lease is not None:
            yield from ("--uid", str(self.lease.uid), "--hold-fd", str(self.lease.descriptor))
        for group in self.groups:
            yield from ("--group", str(group))
        if self.log is not None:
            yield from ("--log", str(self.log))
        if self.owner_fd is not None:
            yield from ("--owner-fd", str(self.owner_fd))
        if self.oom_score_adj is not None:
            yield from ("--oom-score-adj", str(self.oom_score_adj))
        yield from ("--hostname", self.hostname)
        if self.strict:
            yield "--strict"
        if self.allow_fork:
            yield "--allow-fork"
        if self.open_read_only is not None:
            yield from ("--open-read-only", self.open_read_only)


@dataclass(frozen=True, slots=True)
class Reduction:
    """A part of the jail that this host did not give, and why."""

    part: str
    why: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How the program ended: with an exit code, or by a signal. Neither: nobody saw it.

    out_of_memory: the kernel killed it at its cgroup's limit.
    """

    code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False

    def __str__(self) -> str:
        if self.out_of_memory:
            return "it used more memory than its cgroup allows, and the kernel killed it"
        if self.signal is not None:
            with contextlib.suppress(ValueError):
                return f"it was killed by {signal.Signals(self.signal).name}"
            return f"it was killed by signal {self.signal}"
        return "it ended" if self.code is None else f"it ended with exit code {self.code}"


class JailedProcess:
    """A program in its jail, and its supervisor outside.

    process, supervisor: who they are for the host. reductions: parts of the jail that are
    missing.
    """

    def __init__(
        self,
        supervisor: Owner,
        process: Owner,
        reductions: tuple[Reduction, ...] = (),
        status: asyncio.StreamReader | None = None,
        transport: asyncio.BaseTransport | None = None,
    ) -> None:
        self.supervisor = supervisor
        self.process = process
        self.reductions = reductions
        self._status = status
        self._transport = transport
        self._ending = Ending()
        self._ended = False
        self._reading = asyncio.Lock()

    @property
    def pid(self) -> int:
        """The program's process id, as the host has it."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether the program still runs."""
        return self.process.alive

    async def wait(self) -> Ending:
        """Wait until program and supervisor have ended; may be called by many, and again."""
        async with self._reading:
            if not self._ended:
                await self._read_ending()
                await self.supervisor.wait()
                self._forget()
                self._ended = True
        return self._ending

    async def kill(self) -> None:
        """End the program at once and wait for it. Harmless when repeated."""
        _signal(self.supervisor, signal.SIGTERM)
        try:
            async with asyncio.timeout(_KILL_DEADLINE):
                await self.wait()
        except TimeoutError:
            # The program dies with its supervisor, by the kernel's hand.
            self.supervisor.kill()
            self.process.kill()
            await self.wait()

    def outlive_owner(self) -> None:
        """Let the program live when its owner ends."""
        _signal(self.supervisor, signal.SIGUSR1)

    def let_go(self) -> None:
        """Stop watching; the program lives on."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    async def _read_ending(self) -> None:
        if self._status is None:
            await self.process.wait()
            return
        async for line in self._status:
            word, _, number = line.decode().strip().partition(" ")
            if word == "exited":
                self._ending = Ending(code=int(number))
            elif word == "signaled":
                self._ending = replace(self._ending, signal=int(number))
            elif word == "out-of-memory":
                self._ending = Ending(out_of_memory=True)

    def _forget(self) -> None:
        self.let_go()
        # Ours to bury when we started it; when adopted it is init's.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.supervisor.pid, os.WNOHANG)


async def launch(spec: JailSpec) -> JailedProcess:
    """Start the program in its jail; returns when it runs. Nothing is left behind on failure.

    Raises ProviderUnavailable (the jail is missing, or incomplete in strict mode, or the host
    cannot do what `open_read_only` asks for), HostResourceExhausted, BootFailed.
    """
    jail = native.path("nova-jail")
    reader, writer = os.pipe()
    try:
        pid = _spawn(spec, jail, writer)
    except OSError as error:
        os.close(reader)
        raise _not_started("spawn", error.errno or 0, str(error)) from error
    finally:
        os.close(writer)
    status = asyncio.StreamReader()
    transport: asyncio.BaseTransport | None = None
    try:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(status), os.fdopen(reader, "rb", buffering=0)
        )
        async with asyncio.timeout(_START_DEADLINE):
            child, reductions = await _read_start(status, strict=spec.strict)
        return JailedProcess(Owner.of(pid), _owner(child), reductions, status, transport)
    except BaseException as error:
        await _bury(pid)
        if transport is not None:
            transport.close()
        if isinstance(error, TimeoutError):
            raise BootFailed(
                "the jail did not start its program", why=f"no word in {_START_DEADLINE:.0f} s"
            ) from error
        raise


def _spawn(spec: JailSpec, jail: Path, status_fd: int) -> int:
    # Not asyncio's own subprocesses: those kill the child when their transport goes, and a
    # detached machine has to live on. A dup2 onto itself makes a descriptor inheritable.
    inherit = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in sorted({*spec.descriptors(), status_fd})]
    null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in range(3)]
    command = spec.command(jail, status_fd)
    return os.posix_spawn(jail, command, {}, file_actions=[*null, *inherit], setsid=True)


async def _read_start(
    status: asyncio.StreamReader, *, strict: bool
) -> tuple[int, tuple[Reduction, ...]]:
    reductions = []
    async for line in status:
        word, _, rest = line.decode(errors="replace").strip().partition(" ")
        if word == "reduced":
            part, _, why = rest.partition(" ")
            reductions.append(Reduction(part, why))
        elif word == "started":
            return int(rest), tuple(reductions)
        elif word == "failed":
            stage, number, why = rest.split(" ", 2)
            raise _not_started(stage, int(number), why, strict=strict)
    raise BootFailed("the jail ended before its program began")


def _not_started(stage: str, number: int, why: str, *, strict: bool = False) -> NovaError:
    if number in _EXHAUSTED:
        return HostResourceExhausted("the hypervisor could not be started", why=why)
    if strict and stage in _PARTS:
        return ProviderUnavailable(
            "the jail is incomplete on this host, and a strict one was asked for",
            why=f"{stage}: {why}",
            fix="See `nova doctor` for what mends it, or start without strict mode.",
        )
    if stage == _LENDING:
        return ProviderUnavailable(
            "this host cannot make sure that the hypervisor only reads a file that others share",
            why=why,
            fix="Use Linux 5.9 or later, in a container that leaves seccomp and "
            "process_vm_readv to its programs.",
        )
    return BootFailed("the hypervisor could not be started in its jail", why=f"{stage}: {why}")


def _owner(pid: int) -> Owner:
    try:
        return Owner.of(pid)
    except ProcessLookupError:
        # It has ended already, and `wait` tells how.
        return Owner(pid, 0.0)


async def _bury(pid: int) -> None:
    """End a supervisor of ours, and with it its program; it cleans up where it still can."""
    try:
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            os.kill(pid, signal.SIGTERM)
            async with asyncio.timeout(_KILL_DEADLINE):
                await Owner.of(pid).wait()
    finally:
        _reap(pid)


def _reap(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _signal(who: Owner, number: signal.Signals) -> None:
    if who.alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(who.pid, number)
