"""`Sandbox` without an event loop; each call is explained in `novasandbox.core.sandbox`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from novasandbox.core import sandbox as core
from novasandbox.core.background import background
from novasandbox.core.events import Event
from novasandbox.core.hypervisor import DEFAULT_TIMEOUT, OnTimeout, SandboxConfig, SandboxState
from novasandbox.core.info import Logs, Metrics, SandboxInfo
from novasandbox.core.session import LocalSession
from novasandbox.core.snapshots import Snapshot
from novasandbox.errors import NovaError
from novasandbox.guest.contexts import Context
from novasandbox.guest.launch import DEFAULT_OUTPUT_LIMIT, Command, OnLimit, PtySize
from novasandbox.guest.process import ExecResult, ProcessInfo
from novasandbox.guest.results import CodeResult, OnOutput
from novasandbox.guest.transfer import Refused
from novasandbox.sync.contexts import Contexts
from novasandbox.sync.files import Files
from novasandbox.sync.handle import Handle
from novasandbox.sync.process import Process

_List = list  # `Sandbox.list` hides the name inside the class.

_held: set[core.Sandbox] = set()
"""What this process holds and has not ended; used in the loop only."""


class Sandbox(Handle):
    """A microVM of its own, running untrusted code.

    Make one with `create`, find one with `connect`. A sandbox made with `detach=False` ends
    with the `with` block, with `kill`, with its time-to-live, and with this process.
    """

    def __init__(self, sandbox: core.Sandbox) -> None:
        """Not for users: see `create` and `connect`."""
        super().__init__()
        self._sandbox = sandbox
        self.files = Files(sandbox.files)
        self.contexts = Contexts(sandbox.contexts)

    def __repr__(self) -> str:
        return repr(self._sandbox)

    # Making and finding.

    @staticmethod
    def create(
        template: str | None = None,
        *,
        image: str | None = None,
        snapshot: str | None = None,
        vcpus: int = 1,
        memory_mib: int = 256,
        disk_mib: int = 2048,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        name: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        on_timeout: OnTimeout = "kill",
        idle_timeout: float | None = None,
        on_idle: OnTimeout = "hibernate",
        network: None = None,
        provider: str = "auto",
        kernel: str | None = None,
        strict: bool | None = None,
        cold: bool = False,
        detach: bool = False,
    ) -> Sandbox:
        """A running sandbox; use it as it is, or in `with`.

        template: `debian-python` unless named. memory_mib, disk_mib: MiB. user, cwd, env: for
        every command, unless the command says otherwise. timeout: its life in seconds; None:
        no end. on_timeout: `kill`, or `pause` or `hibernate` until the next call wakes it.
        idle_timeout: seconds without a call, an open stream or a process that computes, after
        which on_idle happens, as on_timeout does (docs/copies.md). None: never; with snapshot:
        both as they were there, and math.inf for never.
        kernel: a guest kernel's path, instead of NOVA_KERNEL's or Debian's. strict:
        refuse a host that cannot give every part of the jail (None: NOVA_STRICT_JAIL=1).
        cold: boot it, instead of copying its template's snapshot. detach: it outlives this
        process, until its timeout or `kill`.

        Raises InvalidConfig, TemplateNotFound, NameTaken; Unavailable kinds (a provider, a
        download or host resources are missing); BootFailed, GuestPanicked. Whatever happens,
        Ctrl-C included, nothing half-made is left.
        """
        creating = core.Sandbox.create(
            template,
            image=image,
            snapshot=snapshot,
            vcpus=vcpus,
            memory_mib=memory_mib,
            disk_mib=disk_mib,
            user=user,
            cwd=cwd,
            env=env,
            metadata=metadata,
            name=name,
            timeout=timeout,
            on_timeout=on_timeout,
            idle_timeout=idle_timeout,
            on_idle=on_idle,
            network=network,
            provider=provider,
            kernel=kernel,
            strict=strict,
            cold=cold,
            detach=detach,
        )

        async def made() -> core.Sandbox:
            return _hold(await creating)

        return Sandbox(background.call(made, undo=lambda made: made.kill()))

    @classmethod
    def connect(cls, id_or_name: str) -> Self:
        """The same sandbox from any process of this user; its lifetime is not changed.

        One that is hibernated is woken; unless it is detached, this process then holds it.

        id_or_name: an id, a unique start of one, or a name. One that is still being made is
        waited for. Raises SandboxNotFound, GuestUnreachable (the process that holds it does not
        answer), or how it ended (SandboxExpired, SandboxFailed).
        """

        async def found() -> core.Sandbox:
            return _hold(await core.Sandbox.connect(id_or_name))

        return cls(background.call(found, undo=_let_be))

    @staticmethod
    def list(
        *,
        metadata: Mapping[str, str] | None = None,
        state: SandboxState | None = None,
    ) -> _List[SandboxInfo]:
        """This user's living sandboxes, oldest first.

        metadata: only those that have all of these labels. state: only those in it.
        """
        return background.call(lambda: core.Sandbox.list(metadata=metadata, state=state))

    # What it is.

    @property
    def id(self) -> str:
        """Twelve hex digits, its own for ever."""
        return self._sandbox.id

    @property
    def name(self) -> str | None:
        """The name it was given."""
        return self._sandbox.name

    @property
    def state(self) -> SandboxState:
        """Where it is in its life, as far as this process knows."""
        return self._sandbox.state

    @property
    def config(self) -> SandboxConfig:
        """What it was made with; the values of `env` are not shown."""
        return self._sandbox.config

    def info(self) -> SandboxInfo:
        """It at this moment. Raises how it ended, when it has."""
        return self._call(self._sandbox.info)

    # Running things in it.

    def exec(
        self,
        command: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stdin: bytes | str | None = None,
        timeout: float | None = None,
        check: bool = False,
        output_limit: int = DEFAULT_OUTPUT_LIMIT,
        on_limit: OnLimit = "tail",
    ) -> ExecResult:
        """Run a command to its end.

        command: text goes through `/bin/sh -c`, a list is run as it is. stdin: all of its
        input; without it the command sees end-of-file at once. timeout: seconds, after which
        its whole process tree is ended. check: raise CommandFailed unless it exits with 0.
        output_limit: bytes kept of each stream, of its end; on_limit="error" ends the command
        instead. Ctrl-C ends the command.

        Raises CommandNotStarted, CommandFailed, OperationTimeout (with the output so far),
        OutputLimitExceeded; the SandboxFailed kinds when the sandbox is gone.
        """
        return self._call(
            lambda: self._sandbox.exec(
                command,
                cwd=cwd,
                env=env,
                user=user,
                stdin=stdin,
                timeout=timeout,
                check=check,
                output_limit=output_limit,
                on_limit=on_limit,
            )
        )

    def start(
        self,
        command: Command,
        *,
        pty: PtySize | bool | tuple[int, int] | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        timeout: float | None = None,
        name: str | None = None,
        background: bool = True,
        output_limit: int = DEFAULT_OUTPUT_LIMIT,
        on_limit: OnLimit = "tail",
    ) -> Process:
        """Start a command and return while it runs; it lives on in the background.

        pty: give it a terminal: True (24 by 80), a PtySize, or (rows, cols); stdout and stderr
        are then one stream. background: False, and it ends with this process's connection.
        The rest is as in `exec`. Raises CommandNotStarted.
        """
        return Process(
            self._call(
                lambda: self._sandbox.start(
                    command,
                    pty=pty,
                    cwd=cwd,
                    env=env,
                    user=user,
                    timeout=timeout,
                    name=name,
                    background=background,
                    output_limit=output_limit,
                    on_limit=on_limit,
                )
            )
        )

    def processes(self) -> _List[ProcessInfo]:
        """What `start` began and nobody has waited for, ended ones included."""
        return self._call(self._sandbox.processes)

    def attach(self, pid: int) -> Process:
        """A handle on what `start` began, with the output it still holds.

        Raises ProcessNotFound.
        """
        return Process(self._call(lambda: self._sandbox.attach(pid)))

    def run_code(
        self,
        code: str,
        *,
        context: Context | str | None = None,
        timeout: float | None = None,
        on_output: OnOutput | None = None,
    ) -> CodeResult:
        """Run Python code in a process that keeps what it defines, as a notebook's cells do.

        context: what `contexts.create` gave, or its id; without it the default one, which has
        the environment, folder and user of `exec`. timeout: seconds, after which the cell is
        interrupted; its context goes on, unless the cell does not end within 5 s of that.
        on_output: told each piece of output as it arrives, `stdout` or `stderr` and the text,
        in another thread. Ctrl-C interrupts the cell.

        Raises OperationTimeout (with the output so far), ContextLost (the process ended, or had
        ended before: its state is gone), ContextNotFound, CommandNotStarted (no Python in this
        template); the SandboxFailed kinds when the sandbox is gone. What the code raises is in
        the result.
        """
        return self._call(
            lambda: self._sandbox.run_code(
                code, context=context, timeout=timeout, on_output=on_output
            )
        )

    # Moving trees.

    def upload(
        self,
        local: str | os.PathLike[str],
        remote: str,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> _List[Refused]:
        """Copy a file or tree into the sandbox; modes and links are kept.

        progress: told the size of each piece, in bytes, when it has been copied, in another
        thread. Returns what could not be copied, and why: sockets, devices, unreadable files.
        """
        return self._call(lambda: self._sandbox.upload(local, remote, progress=progress))

    def download(
        self,
        remote: str,
        local: str | os.PathLike[str],
        *,
        progress: Callable[[int], None] | None = None,
        max_bytes: int | None = None,
    ) -> _List[Refused]:
        """Copy a file or tree out of the sandbox; modes and links are kept.

        The guest is not trusted: nothing outside `local` is touched, whatever names and links
        it makes. Returns what was refused, and why. progress: as for `upload`. max_bytes: raise
        OperationFailed when all files together have more; None: no limit.
        """
        return self._call(
            lambda: self._sandbox.download(remote, local, progress=progress, max_bytes=max_bytes)
        )

    # Its life.

    def set_timeout(self, seconds: float | None) -> None:
        """Let it live `seconds` from now; None: no end."""
        self._call(lambda: self._sandbox.set_timeout(seconds))

    def pause(self) -> None:
        """Stop its vCPUs; memory is kept. Raises IllegalTransition unless it runs."""
        self._call(self._sandbox.pause)

    def resume(self) -> None:
        """Let its vCPUs run again, with the clock set right. Raises IllegalTransition."""
        self._call(self._sandbox.resume)

    def hibernate(self) -> None:
        """Put it to sleep on disk: memory, processes and files, but no process of the host.

        The next call through this handle wakes it, as does `Sandbox.connect` from any process,
        also after a reboot of the host. What runs lives on then, but streams end; sleep takes no
        time from its life.

        Raises IllegalTransition; HostResourceExhausted where the disk is full, and it runs on.
        """
        self._call(self._sandbox.hibernate)

    @classmethod
    def wake(cls, id_or_name: str) -> Self:
        """Wake a hibernated sandbox; one that is awake is connected to. See `connect`."""
        return cls.connect(id_or_name)

    def snapshot(self, name: str | None = None) -> Snapshot:
        """Keep this moment of it: memory, processes and disk. It runs on, streams and all.

        name: unique among snapshots. Raises NameTaken; HostResourceExhausted where the disk is
        full, with nothing kept.
        """
        return self._call(lambda: self._sandbox.snapshot(name))

    def rollback(self, snapshot: str) -> None:
        """Put it back to where it, or another of its sizes, stood at a snapshot.

        What it is now is lost, and its streams end; it keeps its id, name and timeout. Raises
        InvalidRequest for an unknown snapshot, SnapshotInvalid; then it runs on.
        """
        self._call(lambda: self._sandbox.rollback(snapshot))

    @staticmethod
    def snapshots() -> _List[Snapshot]:
        """This user's snapshots, the oldest first."""
        return background.call(core.Sandbox.snapshots)

    @staticmethod
    def remove_snapshot(id_or_name: str) -> None:
        """Remove a snapshot; sandboxes that came from it live on. Raises InvalidRequest."""
        background.call(lambda: core.Sandbox.remove_snapshot(id_or_name))

    def fork(self, n: int = 1) -> _List[Sandbox]:
        """Make `n` sandboxes that go on where it stands: its memory, processes and files.

        It stops for some milliseconds and its streams do not notice. In a child no stream is
        open; its processes live on. Each is a sandbox of its own, with a timeout like that of
        its parent anew. All are made or none.
        """

        async def forked() -> _List[core.Sandbox]:
            return [_hold(child) for child in await self._sandbox.fork(n)]

        return [Sandbox(child) for child in self._call(forked, undo=_kill_all)]

    def kill(self) -> None:
        """End it now and give back all it held. Harmless when it has ended already.

        A holder that does not answer is done without. Raises Unavailable where it cannot be ended.
        """

        async def killed() -> None:
            await self._sandbox.kill()
            _held.discard(self._sandbox)

        self._call(killed)

    def close(self) -> None:
        """Let go of this handle. A sandbox that another process holds goes on."""
        self._call(self._sandbox.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kill it, unless it is detached."""
        self._call(lambda: _end(self._sandbox))

    # Looking at it.

    def expose(self, port: int, host_port: int = 0) -> str:
        """Open a port of this host's loopback that reaches the guest's; gives `host:port`.

        host_port: 0 lets the host choose. It lasts as long as the sandbox. Raises
        HostResourceExhausted when `host_port` is taken.
        """
        return self._call(lambda: self._sandbox.expose(port, host_port))

    def unexpose(self, port: int) -> None:
        """Close what `expose` opened."""
        self._call(lambda: self._sandbox.unexpose(port))

    def metrics(self) -> Metrics:
        """What it uses, seen from inside and from the host."""
        return self._call(self._sandbox.metrics)

    def logs(self) -> Logs:
        """The end of its console's and its machine's log, at most 128 KiB each."""
        return self._call(self._sandbox.logs)

    def events(self) -> _List[Event]:
        """What happened to it, oldest first."""
        return self._call(self._sandbox.events)

    def ping(self) -> float:
        """Seconds for a round trip to the guest."""
        return self._call(self._sandbox.ping)


def _hold(sandbox: core.Sandbox) -> core.Sandbox:
    """Remember what this process holds: it is ended with it."""
    if isinstance(sandbox._session, LocalSession):
        _held.difference_update([each for each in _held if each.state.ended])
        _held.add(sandbox)
    return sandbox


async def _let_be(sandbox: core.Sandbox) -> None:
    """Nobody uses what was connected to: one that was woken for it sleeps again."""
    if sandbox in _held:
        await sandbox.hibernate()
        _held.discard(sandbox)
    await sandbox.close()


async def _kill_all(sandboxes: list[core.Sandbox]) -> None:
    for sandbox in sandboxes:
        await sandbox.kill()
        _held.discard(sandbox)


async def _end(sandbox: core.Sandbox) -> None:
    await sandbox.__aexit__(None, None, None)
    _held.discard(sandbox)


async def _end_all() -> None:
    for sandbox in list(_held):
        if sandbox.state is SandboxState.HIBERNATED:
            continue  # It waits for whoever wakes it.
        with contextlib.suppress(NovaError):
            await _end(sandbox)


background.at_exit(_end_all)
# What a forked child finds in it is the parent's.
os.register_at_fork(after_in_child=_held.clear)
