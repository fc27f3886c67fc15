"""The keeper: one small process per user that holds the detached sandboxes, and pools.

Started when first needed, gone when it has held nothing for a while. It makes sandboxes
for others, takes over those whose holder died, and enforces their time-to-live.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from novasandbox.core import creation, registry, sockets
from novasandbox.core.gate import CONTROL, failure_text
from novasandbox.core.holder import Holder
from novasandbox.core.home import home, run_dir
from novasandbox.core.hypervisor import SandboxConfig, SandboxState
from novasandbox.core.registry import Record
from novasandbox.errors import InvalidRequest, NovaError, OutcomeUnknown, Unavailable
from novasandbox.guest.frames import (
    Fields,
    FrameError,
    Message,
    Parser,
    encode,
    encode_fields,
)
from novasandbox.guest.protocol import ATTACH_MAGIC, DEFAULT_WINDOW, VERSION, Frame, Tag

if TYPE_CHECKING:
    from novasandbox.core.standing import Standing

log = logging.getLogger(__name__)

_IDLE = 60.0
_START_DEADLINE = 15.0
_FAREWELL = 5.0
# What a keeper needs of its maker's environment; all else stays out, secrets among it.
_ENVIRONMENT = (
    "HOME",
    "LANG",
    "NOVA_ADMISSION_WAIT",
    "NOVA_HOME",
    "NOVA_KERNEL",
    "NOVA_LOG",
    "NOVA_MAX_MEMORY_MIB",
    "NOVA_MAX_SANDBOXES",
    "NOVA_MIRROR",
    "NOVA_PROVIDER",
    "NOVA_QEMU",
    "NOVA_UID_RANGE",
    "PATH",
    "PYTHONPATH",
    "TMPDIR",
    "USER",
    "VIRTUAL_ENV",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
)


_GIVEN_UP = (0).to_bytes(4, "little") + encode_fields(
    [(Tag.FAILURE, failure_text(Unavailable("the call was given up")))]
)

# Keepers that this process has started: they outlive it, but one that ends before is buried.
_started: list[subprocess.Popen[bytes]] = []


def _socket_path() -> Path:
    return run_dir() / ".keeper.sock"


class Keeper:
    """Holds sandboxes until each has ended."""

    def __init__(self) -> None:
        self._holders: dict[str, Holder] = {}
        self._making = 0
        self.callers = 0
        self._idle: asyncio.TimerHandle | None = None
        self._stop = asyncio.Event()
        self._adopting = asyncio.Lock()
        self._adoptions: set[asyncio.Task[None]] = set()
        self._endings: set[asyncio.Task[None]] = set()
        self._pools: Standing | None = None

    async def run(self, ready: int | None) -> None:
        """Serve until nothing has been held awake for a minute, or SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        server = await loop.create_unix_server(
            lambda: _Caller(self), sock=sockets.listen(_socket_path())
        )
        if ready is not None:
            # Who started us may be gone already.
            with contextlib.suppress(BrokenPipeError):
                os.write(ready, b"1")
            os.close(ready)
        await self.adopt_orphans()
        self._rest()
        await self._stop.wait()
        server.close()
        if self._adoptions:
            await asyncio.wait(set(self._adoptions), timeout=_FAREWELL)
        _socket_path().unlink(missing_ok=True)
        if self._pools is not None:
            await self._pools.close()
        if self._endings:
            await asyncio.wait(set(self._endings))
        for holder in list(self._holders.values()):
            await holder.let_go()

    async def create(self, settings: Mapping[str, Any]) -> str:
        """Make a sandbox; gives its id."""
        self._making += 1
        try:
            holder = await creation.create(SandboxConfig(**{**settings, "detach": True}))
        finally:
            self._making -= 1
            self._rest()
        self._hold(holder)
        return holder.id

    def adoption(self) -> asyncio.Task[None]:
        """Take over what nobody holds, whatever becomes of the one who asks for it."""
        task = asyncio.create_task(self.adopt_orphans())
        self._adoptions.add(task)
        task.add_done_callback(self._adoptions.discard)
        return task

    async def adopt_orphans(self) -> None:
        """Take over every detached sandbox that nobody holds."""
        async with self._adopting:
            await asyncio.to_thread(registry.collect_leftovers)
            records = await asyncio.to_thread(registry.records)
            # At once, since a guest that does not answer takes its time to be given up.
            await asyncio.gather(*(self._adopt(each) for each in records if self._is_orphan(each)))

    def _is_orphan(self, record: Record) -> bool:
        if record.state is SandboxState.HIBERNATED:
            return False
        held = record.owner is not None and record.owner.alive
        return bool(record.config.get("detach")) and not held and record.id not in self._holders

    async def _adopt(self, record: Record) -> None:
        try:
            self._hold(await creation.adopt(record))
        except (NovaError, OSError) as error:
            log.warning("could not take over %s: %s", record.id, error)

    def _hold(self, holder: Holder) -> None:
        self._holders[holder.id] = holder
        holder.on_end = self._forget
        holder.on_child = self._hold
        holder.on_turn = self._hold
        if holder.ended.is_set():
            self._forget(holder)
        self._rest()

    def _forget(self, holder: Holder) -> None:
        if self._holders.get(holder.id) is holder:
            del self._holders[holder.id]
        self._rest()

    async def wake(self, identity: str) -> None:
        """Wake a sandbox and hold it, unless somebody else has done so, or holds it asleep."""
        from novasandbox.core.session import woken_by_its_holder

        if identity in self._holders:
            await self._holders[identity].slumber.end()
            return
        self._making += 1
        try:
            record = await asyncio.to_thread(registry.get, identity)
            session = await woken_by_its_holder(record)
            if session is not None:
                await session.close()
                return
            holder = await creation.wake(identity)
        finally:
            self._making -= 1
            self._rest()
        if holder is not None:
            self._hold(holder)

    async def kill(self, identity: str) -> None:
        """End a sandbox of ours that nobody came to know of."""
        holder = self._holders.get(identity)
        if holder is not None:
            await holder.kill()

    def pools(self) -> Standing:
        """The pools that are kept here."""
        if self._pools is None:
            from novasandbox.core.standing import Standing  # It stands on this module.

            self._pools = Standing()
        return self._pools

    async def take(self, settings: Mapping[str, Any]) -> str | None:
        """Take a sandbox from a pool; gives its id, None where none is ready."""
        holder = await self.pools().take(SandboxConfig(**settings))
        if holder is None:
            return None
        self._hold(holder)
        return holder.id

    def give_back(self, identity: str) -> None:
        """Whoever had taken a sandbox for as long as he is there has gone: end it."""
        task = asyncio.create_task(self.kill(identity))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    def called(self, change: int) -> None:
        """A caller has come (1) or gone (-1): while any is there, the keeper stays."""
        self.callers += change
        self._rest()

    def _rest(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        held = any(h.state is not SandboxState.HIBERNATED for h in self._holders.values())
        if not (held or self._making or self.callers or self._pools):
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(_IDLE, self._leave)

    def _leave(self) -> None:
        # What sleeps may be woken by somebody who is connected to it.
        if any(holder.is_used for holder in self._holders.values()):
            self._rest()
        else:
            self._stop.set()


class _Caller(asyncio.Protocol):
    """A process that asks the keeper for something."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._parser = Parser()
        self._transport: asyncio.Transport | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._lent: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._keeper.called(1)
        fields = [(Tag.VERSION, VERSION), (Tag.MIN_VERSION, VERSION)]
        self._write(encode(Frame.HELLO, payload=encode_fields(fields)))

    def _write(self, frame: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._parser.feed(data):
                self._take(message)
        except FrameError as error:
            self._write(encode(Frame.GOAWAY, payload=failure_text(error)))
            if self._transport is not None:
                self._transport.close()

    def _take(self, message: Message) -> None:
        if message.type is Frame.ATTACH:
            fields = [(Tag.NEXT_STREAM, 1), (Tag.WINDOW, DEFAULT_WINDOW)]
            body = ATTACH_MAGIC + message.payload[:16] + encode_fields(fields)
            self._write(encode(Frame.ATTACHED, payload=body))
        elif message.type is Frame.REQUEST and message.payload[:2] == CONTROL.to_bytes(2, "little"):
            fields_ = Fields.decode(message.payload[2:])
            self._tasks[message.stream] = asyncio.create_task(self._do(message.stream, fields_))
        elif message.type in (Frame.RELEASE, Frame.CANCEL):
            task = self._tasks.pop(message.stream, None)
            if task is not None:
                task.cancel()

    async def _do(self, stream: int, fields: Fields) -> None:
        try:
            call = json.loads(fields.get(Tag.MESSAGE))
            answer = {"result": await self._perform(call["name"], call["arguments"])}
        except NovaError as error:
            answer = {"error": error.details()}
        except (KeyError, TypeError, ValueError) as error:
            answer = {"error": InvalidRequest("a malformed call", why=repr(error)).details()}
        except asyncio.CancelledError:
            self._write(encode(Frame.REPLY, stream, _GIVEN_UP))
            raise
        except Exception as error:
            log.exception("a call failed")
            answer = {"error": json.loads(failure_text(error))}
        body = (0).to_bytes(4, "little") + encode_fields([(Tag.MESSAGE, json.dumps(answer))])
        self._write(encode(Frame.REPLY, stream, body))

    async def _perform(self, name: str, arguments: dict[str, Any]) -> Any:
        match name:
            case "create":
                return await self._keeper.create(arguments["settings"])
            case "wake":
                return await self._keeper.wake(str(arguments["id"]))
            case "kill":
                return await self._keeper.kill(str(arguments["id"]))
            case "take":
                identity = await self._keeper.take(arguments["settings"])
                if identity is not None and not arguments["settings"]["detach"]:
                    self._lent.append(identity)
                return identity
            case "pool_start":
                return await self._keeper.pools().start(**arguments)
            case "pool_stop":
                return await self._keeper.pools().stop(str(arguments["name"]))
            case "pool_list":
                return self._keeper.pools().list()
            case "adopt":
                return await asyncio.shield(self._keeper.adoption())
        raise InvalidRequest(f"the keeper knows no verb {name!r}")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (the base class names it)
        # A maker that went away takes its half-made sandbox with it.
        for task in self._tasks.values():
            task.cancel()
        for identity in self._lent:
            self._keeper.give_back(identity)
        self._keeper.called(-1)


async def ensure_keeper(*, adopt: str | None = None) -> None:
    """Start the keeper unless one runs; with `adopt`, have it take over that sandbox."""
    from novasandbox.core.session import RemoteChannel, call

    channel = RemoteChannel(_dial_keeper, holder=os.urandom(16))
    await channel.open(_START_DEADLINE)
    try:
        while adopt is not None:
            # One that dies while it is asked is followed by another; asking twice does no harm.
            with contextlib.suppress(OutcomeUnknown):
                await call(channel, "adopt")
                return
    finally:
        await channel.close()


async def take_back(identity: str) -> None:
    """Have the keeper end a sandbox that it made for us, and that nobody will use."""
    await ask("kill", id=identity)


async def wake_detached(identity: str) -> None:
    """Have the keeper wake a sandbox and hold it."""
    await ask("wake", id=identity)


async def create_detached(settings: Mapping[str, Any]) -> str:
    """Have the keeper make a sandbox; gives its id. Cancelling takes it back."""
    return str(await ask("create", undo=_end, settings=dict(settings)))


async def _end(identity: Any) -> None:
    await asyncio.to_thread(registry.end_unheld, str(identity))


async def ask(
    verb: str, *, undo: Callable[[Any], Awaitable[None]] | None = None, **arguments: Any
) -> Any:
    """Have the keeper do something, started where none runs. Raises what it raises.

    undo: takes back what was done, where the caller is cancelled before he learns of it.
    """
    from novasandbox.core.session import RemoteChannel, call

    channel = RemoteChannel(_dial_keeper, holder=os.urandom(16))
    await channel.open(_START_DEADLINE)
    try:
        return await call(channel, verb, undo=undo, **arguments)
    finally:
        await channel.close()


async def dial_running(protocol: asyncio.Protocol) -> asyncio.Transport:
    """Connect to the keeper that runs. Raises OSError where none does."""
    return await sockets.dial(_socket_path(), protocol)


async def _dial_keeper(protocol: asyncio.Protocol) -> asyncio.Transport:
    # Several may start one at once, or meet one that is about to leave: whoever finds
    # nobody starts it again, until the caller's deadline.
    while True:
        try:
            return await dial_running(protocol)
        except (ConnectionRefusedError, FileNotFoundError):
            await asyncio.to_thread(_start)
        await asyncio.sleep(0.02)


def _start() -> None:
    """Start a keeper and wait until it listens; one of several starters wins."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment["NOVA_HOME"] = str(home())
    for earlier in _started[:]:
        if earlier.poll() is not None:
            _started.remove(earlier)
    read_end, write_end = os.pipe()
    with (run_dir() / ".keeper.log").open("ab") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "novasandbox.core.keeper", str(write_end)],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            pass_fds=(write_end,),
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    _started.append(process)
    os.close(write_end)
    with open(read_end, "rb", buffering=0) as pipe:
        # One that was killed meanwhile says nothing against the next.
        if not pipe.read(1) and process.wait() > 0:
            log_path = run_dir() / ".keeper.log"
            lines = log_path.read_text(errors="replace")[-2000:].strip().splitlines()
            raise Unavailable(
                "the keeper of detached sandboxes did not start",
                why=lines[-1] if lines else None,
                fix=f"Its log: {log_path}",
            )


def main(arguments: list[str]) -> None:
    """Run as the keeper, unless another one is there already."""
    ready = int(arguments[0]) if arguments else None
    lock = os.open(run_dir() / ".keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s",
        level=os.environ.get("NOVA_LOG", "WARNING").upper(),
    )
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Keeper().run(ready))


if __name__ == "__main__":
    main(sys.argv[1:])
