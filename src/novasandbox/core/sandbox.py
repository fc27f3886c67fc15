"""`Sandbox`: one machine as its user sees it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Generator, Mapping
from types import TracebackType
from typing import Any, Self

from novasandbox.core import reaching, registry, snapshots
from novasandbox.core.events import Event, read_events
from novasandbox.core.hypervisor import (
    DEFAULT_TIMEOUT,
    OnTimeout,
    SandboxConfig,
    SandboxState,
)
from novasandbox.core.idle import IDLE
from novasandbox.core.info import Logs, Metrics, SandboxInfo, info_of
from novasandbox.core.registry import Record
from novasandbox.core.session import Session
from novasandbox.core.snapshots import Snapshot
from novasandbox.errors import (
    InvalidConfig,
    SandboxFailed,
    SandboxNotFound,
)
from novasandbox.guest.client import Guest
from novasandbox.guest.contexts import Context, Contexts
from novasandbox.guest.files import Files
from novasandbox.guest.launch import DEFAULT_OUTPUT_LIMIT, Command, Launch, OnLimit, PtySize, argv
from novasandbox.guest.process import ExecResult, Process, ProcessInfo
from novasandbox.guest.processes import OWN_NAME, Processes
from novasandbox.guest.python import Interpreter
from novasandbox.guest.results import CodeResult, OnOutput
from novasandbox.guest.transfer import Refused, download, upload

_List = list  # `Sandbox.list` hides the built-in inside its class.


class _Creating(Awaitable["Sandbox"]):
    """What `Sandbox.create` gives: await it, or enter it with `async with`."""

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config
        self._sandbox: Sandbox | None = None

    def __await__(self) -> Generator[Any, None, Sandbox]:
        return _create(self._config).__await__()

    async def __aenter__(self) -> Sandbox:
        self._sandbox = await _create(self._config)
        return self._sandbox

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._sandbox is not None
        await self._sandbox.__aexit__(kind, error, traceback)


async def _create(config: SandboxConfig) -> Sandbox:
    return Sandbox(*await reaching.create(config))


class Sandbox:
    """A microVM of its own, running untrusted code.

    Make one with `create`, find one with `connect`. A sandbox made with `detach=False` ends
    with the `async with` block, with `kill`, with its time-to-live, and with this process.
    """

    def __init__(self, session: Session, record: Record) -> None:
        """Not for users: see `create` and `connect`."""
        self._session = session
        self._record = record
        self._processes = Processes(session.channel, record.id)
        self._guest = Guest(session.channel, record.id)
        self.files = Files(session.channel, record.id)
        interpreter = Interpreter(session.channel, self._processes, self.files, record.id)
        self.contexts = Contexts(session.channel, interpreter, record.id)

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<Sandbox {self.id}{name}>"

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
    ) -> _Creating:
        """A running sandbox; await it, or use it in `async with`.

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
        nothing half-made is left.
        """
        return _Creating(
            SandboxConfig(
                template=template,
                image=image,
                snapshot=snapshot,
                vcpus=vcpus,
                memory_mib=memory_mib,
                disk_mib=disk_mib,
                user=user,
                cwd=cwd,
                env=dict(env or {}),
                metadata=dict(metadata or {}),
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
        )

    @classmethod
    async def connect(cls, id_or_name: str) -> Self:
        """The same sandbox from any process of this user; its lifetime is not changed.

        One that is hibernated is woken; unless it is detached, this process then holds it.

        id_or_name: an id, a unique start of one, or a name. One that is still being made is
        waited for. Raises SandboxNotFound, GuestUnreachable (the process that holds it does not
        answer), or how it ended (SandboxExpired, SandboxFailed).
        """
        return cls(*await reaching.reach(id_or_name))

    @staticmethod
    async def list(
        *,
        metadata: Mapping[str, str] | None = None,
        state: SandboxState | None = None,
    ) -> list[SandboxInfo]:
        """This user's living sandboxes, oldest first.

        metadata: only those that have all of these labels. state: only those in it.
        """
        await asyncio.to_thread(registry.collect_leftovers)
        found = [info_of(record) for record in await asyncio.to_thread(registry.records)]
        wanted = dict(metadata or {}).items()
        return [
            info
            for info in found
            if wanted <= dict(info.metadata).items() and state in (None, info.state)
        ]

    # What it is.

    @property
    def id(self) -> str:
        """Twelve hex digits, its own for ever."""
        return self._record.id

    @property
    def name(self) -> str | None:
        """The name it was given."""
        return self._record.name

    @property
    def state(self) -> SandboxState:
        """Where it is in its life, as far as this process knows."""
        try:
            return self._session.record().state
        except SandboxFailed:
            return SandboxState.FAILED
        except SandboxNotFound:
            return SandboxState.STOPPED

    @property
    def config(self) -> SandboxConfig:
        """What it was made with; the values of `env` are not shown."""
        return self._record.settings

    async def info(self) -> SandboxInfo:
        """It at this moment. Raises how it ended, when it has."""
        return info_of(self._session.record())

    # Running things in it.

    async def exec(
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
        instead. A cancelled call ends the command.

        Raises CommandNotStarted, CommandFailed, OperationTimeout (with the output so far),
        OutputLimitExceeded; the SandboxFailed kinds when the sandbox is gone.
        """
        launch = Launch(
            argv(command),
            cwd=cwd,
            env=env,
            user=user,
            timeout=timeout,
            stdin=stdin is not None,
            output_limit=output_limit,
            on_limit=on_limit,
        )
        data = stdin.encode() if isinstance(stdin, str) else stdin
        return await self._processes.run(launch, data, check)

    async def start(
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
        if name == OWN_NAME:
            raise InvalidConfig(f"the name {name!r} is the library's own")
        launch = Launch(
            argv(command),
            cwd=cwd,
            env=env,
            user=user,
            timeout=timeout,
            stdin=True,
            pty=_pty(pty),
            background=background,
            name=name,
            output_limit=output_limit,
            on_limit=on_limit,
        )
        return await self._processes.start(launch)

    async def processes(self) -> _List[ProcessInfo]:
        """What `start` began and nobody has waited for, ended ones included."""
        return await self._processes.list()

    async def attach(self, pid: int) -> Process:
        """A handle on what `start` began, with the output it still holds.

        Raises ProcessNotFound.
        """
        return await self._processes.attach(pid)

    async def run_code(
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
        on_output: told each piece of output as it arrives, `stdout` or `stderr` and the text.
        A cancelled call interrupts the cell.

        What the code raises is in the result and is not raised here, SystemExit included. Of
        stdout and stderr the last 16 MiB each are kept. Whatever `display(value)` is given, the
        value of the last expression, and matplotlib figures left open are in `results`.

        Raises OperationTimeout (with the output so far), ContextLost (the process ended, or had
        ended before: its state is gone), ContextNotFound, CommandNotStarted (no Python in this
        template); the SandboxFailed kinds when the sandbox is gone.
        """
        return await self.contexts.run(code, context=context, timeout=timeout, on_output=on_output)

    # Moving trees.

    async def upload(
        self,
        local: str | os.PathLike[str],
        remote: str,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> _List[Refused]:
        """Copy a file or tree into the sandbox; modes and links are kept.

        progress: told the size of each piece, in bytes, when it has been copied.

        Returns what could not be copied, and why: sockets, devices, unreadable files.
        """
        return await upload(self.files, local, remote, progress)

    async def download(
        self,
        remote: str,
        local: str | os.PathLike[str],
        *,
        progress: Callable[[int], None] | None = None,
        max_bytes: int | None = None,
    ) -> _List[Refused]:
        """Copy a file or tree out of the sandbox; modes and links are kept.

        progress: told the size of each piece, in bytes, when it has been copied. max_bytes:
        raise OperationFailed when all files together have more; None: no limit.

        The guest is not trusted: nothing outside `local` is touched, whatever names and links
        it makes. Returns what was refused, and why.
        """
        return await download(self.files, remote, local, progress, max_bytes)

    # Its life.

    async def set_timeout(self, seconds: float | None) -> None:
        """Let it live `seconds` from now; None: no end."""
        await self._session.control("set_timeout", seconds=seconds)

    async def pause(self) -> None:
        """Stop its vCPUs; memory is kept. Raises IllegalTransition unless it runs."""
        await self._session.control("pause")

    async def resume(self) -> None:
        """Let its vCPUs run again, with the clock set right. Raises IllegalTransition."""
        await self._session.control("resume")

    async def hibernate(self) -> None:
        """Put it to sleep on disk: memory, processes and files, but no process of the host.

        The next call through this handle wakes it, as does `Sandbox.connect` from any process,
        also after a reboot of the host. What runs lives on then, but streams end; sleep takes no
        time from its life.

        Raises IllegalTransition; HostResourceExhausted where the disk is full, and it runs on.
        """
        await self._session.control("hibernate")

    @classmethod
    async def wake(cls, id_or_name: str) -> Self:
        """Wake a hibernated sandbox; one that is awake is connected to. See `connect`."""
        return await cls.connect(id_or_name)

    async def snapshot(self, name: str | None = None) -> Snapshot:
        """Keep this moment of it: memory, processes and disk. It runs on, streams and all.

        name: unique among snapshots. Raises NameTaken; HostResourceExhausted where the disk is
        full, with nothing kept.
        """
        return Snapshot(**await self._session.control("snapshot", name=name))

    async def rollback(self, snapshot: str) -> None:
        """Put it back to where it, or another of its sizes, stood at a snapshot.

        What it is now is lost, and its streams end; it keeps its id, name and timeout. Raises
        InvalidRequest for an unknown snapshot, SnapshotInvalid; then it runs on.
        """
        await self._session.control("rollback", snapshot=snapshot)

    @staticmethod
    async def snapshots() -> _List[Snapshot]:
        """This user's snapshots, the oldest first."""
        kept = await asyncio.to_thread(snapshots.all_kept)
        return [each.public for each in kept]

    @staticmethod
    async def remove_snapshot(id_or_name: str) -> None:
        """Remove a snapshot; sandboxes that came from it live on. Raises InvalidRequest."""
        await asyncio.to_thread(registry.remove_snapshot, id_or_name)

    async def fork(self, n: int = 1) -> _List[Sandbox]:
        """Make `n` sandboxes that go on where it stands: its memory, processes and files.

        It stops for some milliseconds and its streams do not notice. In a child no stream is
        open; its processes live on. Each is a sandbox of its own, with a timeout like that of
        its parent anew. All are made or none.
        """
        if n < 1:
            raise InvalidConfig(f"n={n}", why="at least one child is made")
        return [type(self)(*child) for child in await self._session.fork(n)]

    async def kill(self) -> None:
        """End it now and give back all it held. Harmless when it has ended already.

        A holder that does not answer is done without. Raises Unavailable where it cannot be ended.
        """
        await reaching.finish(self._session, self.id)

    async def close(self) -> None:
        """Let go of this handle. A sandbox that another process holds goes on."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kill it, unless it is detached, or was put to sleep; by being idle does not count."""
        stays = self._record.config.get("detach") or self._is_to_sleep_on()
        if self._session.ends_with_handle and not stays:
            await self.kill()
        else:
            await self.close()

    def _is_to_sleep_on(self) -> bool:
        asleep = self.state is SandboxState.HIBERNATED
        return asleep and self._session.record().rests != IDLE

    # Looking at it.

    async def expose(self, port: int, host_port: int = 0) -> str:
        """Open a port of this host's loopback that reaches the guest's; gives `host:port`.

        host_port: 0 lets the host choose. It lasts as long as the sandbox. Raises
        HostResourceExhausted when `host_port` is taken.
        """
        return str(await self._session.control("expose", port=port, host_port=host_port))

    async def unexpose(self, port: int) -> None:
        """Close what `expose` opened."""
        await self._session.control("unexpose", port=port)

    async def metrics(self) -> Metrics:
        """What it uses, seen from inside and from the host."""
        guest = await self._guest.metrics()
        return Metrics(guest=guest, machine=await self._session.control("metrics"))

    async def logs(self) -> Logs:
        """The end of its console's and its machine's log, at most 128 KiB each."""
        directory = self._record.directory
        texts = []
        for name in ("console.log", "vmm.log"):
            path = directory / name
            data = path.read_bytes()[-131_072:] if path.exists() else b""
            texts.append(data.decode("utf-8", "replace"))
        return Logs(*texts)

    async def events(self) -> _List[Event]:
        """What happened to it, oldest first."""
        return read_events(self._record.directory / "events.jsonl")

    async def ping(self) -> float:
        """Seconds for a round trip to the guest."""
        return await self._guest.ping()


def _pty(pty: PtySize | bool | tuple[int, int] | None) -> PtySize | None:
    if pty is None or pty is False:
        return None
    if pty is True:
        return PtySize()
    return pty if isinstance(pty, PtySize) else PtySize(*pty)
