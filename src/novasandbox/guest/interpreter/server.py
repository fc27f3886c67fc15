"""The server: starts a process for each context, notes how each ended, and replaces it.

It is one thread that waits in `poll`, and forks. A context's listening socket is the server's,
so that calls wait while a process is replaced; what waited for the old one is told so.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import mmap
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import OrderedDict
from typing import Any, Callable, Dict, NoReturn

from novasandbox.guest.interpreter import processes, wire
from novasandbox.guest.interpreter.context import Context
from novasandbox.guest.interpreter.unique import Uniqueness, reseed

_BACKLOG = 128
_MOST_CLIENTS = 64
# How many ends of a context's processes are remembered for the callers that ask.
_MOST_ENDS = 16
_LOOK_EVERY = 0.02
# Seconds until a process whose connection was closed must be seen to have ended.
_END_DEADLINE = 3.0

Answer = Dict[str, Any]


class Refusal(Exception):
    """A request that cannot be done: a word for the host, and the reason."""

    def __init__(self, word: str, why: str = "") -> None:
        super().__init__(word)
        self.answer: Answer = {"refused": word, "why": why}


class Record:
    """A context as the server knows it.

    state: see `wire`. pid: 0 while it has no process: its next caller has one started. notice:
    what that one is to tell. ends: how processes ended, by the mark of the call that ran.
    last_end: how the last of them did.
    """

    def __init__(
        self, identity: str, cwd: str | None, folder: int | None, env: dict[str, str]
    ) -> None:
        self.id = identity
        self.cwd = cwd
        self.folder = folder
        self.env = env
        self.created = time.time()
        self.listening = _listen(wire.CONTEXT + identity.encode())
        self.state = mmap.mmap(-1, mmap.PAGESIZE)
        self.pid = 0
        self.life = -1
        self.ending: Answer | None = None
        self.notice = b""
        self.ends: OrderedDict[str, Answer] = OrderedDict()
        self.last_end: Answer = {"reason": "cut"}

    @property
    def mark(self) -> str:
        """The mark of the call that runs or ran last, as the host writes it."""
        return self.state[:8].hex()

    @property
    def is_heard(self) -> bool:
        """Whether a call runs whose caller is there to learn how it ends."""
        return bool(self.state[wire.STATE_RUNNING] and not self.state[wire.STATE_ORPHAN])

    def close(self) -> None:
        """Give back what it holds."""
        self.listening.close()
        self.state.close()
        if self.folder is not None:
            os.close(self.folder)


class Client:
    """A connection to the server. waits: gives the answer once it is known."""

    def __init__(self, connection: socket.socket, uid: int) -> None:
        self.connection = connection
        self.uid = uid
        self.data = b""
        self.waits: Callable[[], Answer | None] | None = None


class Server:
    """Serves the host. Made with the socket that it listens on."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._records: dict[str, Record] = {}
        self._clients: dict[int, Client] = {}
        self._uniqueness = Uniqueness()
        self._oom_kills = processes.oom_kills()
        self._ended, ended = os.pipe()
        for descriptor in (self._ended, ended):
            os.set_blocking(descriptor, False)
        self._signalled = ended
        signal.signal(signal.SIGCHLD, _notice)
        signal.set_wakeup_fd(ended, warn_on_full_buffer=False)
        self._add(Record(wire.DEFAULT, None, None, {}))

    def serve(self) -> NoReturn:
        """Answer requests and replace processes, for ever."""
        while True:
            poll = select.poll()
            poll.register(self._listening, select.POLLIN)
            poll.register(self._ended, select.POLLIN)
            for record in self._records.values():
                if not record.pid:
                    poll.register(record.listening, select.POLLIN)
            for number, client in self._clients.items():
                poll.register(number, 0 if client.waits else select.POLLIN)
            waiting = any(client.waits for client in self._clients.values())
            for number, _ in poll.poll(_LOOK_EVERY * 1000 if waiting else None):
                self._ready(number)
            for client in [each for each in self._clients.values() if each.waits]:
                self._try(client)

    def _ready(self, number: int) -> None:
        if number == self._ended:
            with contextlib.suppress(BlockingIOError):
                os.read(self._ended, 4096)
            self._reap()
        elif number == self._listening.fileno():
            connection = self._listening.accept()[0]
            connection.setblocking(False)
            uid = _uid_of(connection)
            # Only the agent, which is root; what is the user's own would only fool itself.
            if uid not in (0, os.getuid()):
                connection.close()
                return
            if len(self._clients) >= _MOST_CLIENTS:
                self._drop(self._least_needed())
            self._clients[connection.fileno()] = Client(connection, uid)
        elif number in self._clients:
            self._hear(self._clients[number])
        else:
            for record in self._records.values():
                if record.listening.fileno() == number and not record.pid:
                    self._replace(record, record.notice)

    def _least_needed(self) -> Client:
        """The oldest, of those that are not the agent's where there is one."""
        clients = list(self._clients.values())
        return next((client for client in clients if client.uid), clients[0])

    def _hear(self, client: Client) -> None:
        try:
            piece = b"" if client.waits else client.connection.recv(65_536)
        except OSError:
            piece = b""
        if not piece:
            self._drop(client)
            return
        client.data += piece
        if len(client.data) < wire.MESSAGE.size:
            return
        size = wire.MESSAGE.unpack_from(client.data)[0]
        if size > wire.MOST_MESSAGE:
            self._drop(client)
        elif len(client.data) >= wire.MESSAGE.size + size:
            self._do(client, client.data[wire.MESSAGE.size :])

    def _drop(self, client: Client) -> None:
        del self._clients[client.connection.fileno()]
        client.connection.close()

    def _say(self, client: Client, answer: Answer) -> None:
        data = json.dumps(answer).encode()
        try:
            client.connection.setblocking(True)
            client.connection.sendall(wire.MESSAGE.pack(len(data)) + data)
        except OSError:
            pass
        self._drop(client)

    def _do(self, client: Client, message: bytes) -> None:
        def begin() -> Answer | None:
            self._reap()
            request = json.loads(message.decode())
            answer = getattr(self, "do_" + request.pop("op"))(**request)
            if callable(answer):
                client.waits = answer
                return client.waits()
            return answer  # type: ignore[no-any-return]

        client.waits = begin
        self._try(client)

    def _try(self, client: Client) -> None:
        assert client.waits is not None
        try:
            answer = client.waits()
        except Refusal as refusal:
            answer = refusal.answer
        except Exception as error:  # noqa: BLE001  (the user's code may ask too, and ask nonsense)
            answer = Refusal("failed", str(error)).answer
        if answer is not None:
            self._say(client, answer)

    # What the host may ask for.

    def do_ping(self) -> Answer:
        """Nothing but an answer."""
        return {}

    def do_create(self, cwd: str | None, env: dict[str, str]) -> Answer:
        """Make a context."""
        if len(self._records) >= wire.MOST_CONTEXTS:
            raise Refusal("full", f"there are {len(self._records)}")
        folder = None
        if cwd is not None:
            try:
                folder = os.open(cwd, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise Refusal("cwd", str(error.strerror)) from error
        record = Record(os.urandom(6).hex(), cwd, folder, env)
        self._add(record)
        return _shown(record)

    def do_list(self) -> Answer:
        """All contexts, oldest first."""
        return {"contexts": [_shown(record) for record in self._records.values()]}

    def do_restart(self, context: str) -> Answer:
        """Replace a context's process."""
        record = self._record(context)
        record.ending = {"reason": "restarted"}
        self._end(record)
        return {}

    def do_remove(self, context: str) -> Answer:
        """End a context for good."""
        record = self._record(context)
        if context == wire.DEFAULT:
            raise Refusal("default")
        del self._records[context]
        record.ending = {"reason": "removed"}
        self._end(record)
        _tell(self._waiting(record), {"reason": "removed"})
        record.close()
        return {}

    def do_stop(
        self, context: str, mark: str, grace: float, told: bool
    ) -> Callable[[], Answer | None]:
        """Wait until a call that was interrupted is over; its context ends with it after `grace`.

        told: who asks learns of that; else the context's next call does.
        """
        deadline = time.monotonic() + grace

        def outcome() -> Answer | None:
            record = self._records.get(context)
            runs = record is not None and record.state[wire.STATE_RUNNING]
            if record is None or not runs or record.mark != mark:
                return {"ended": False}
            if time.monotonic() < deadline:
                return None
            record.ending = {"reason": "stopped"}
            self._end(record, told=told)
            return {"ended": True}

        return outcome

    def do_fate(self, context: str, mark: str) -> Callable[[], Answer | None]:
        """How the process ended to which a connection was cut. ran: whether the call had begun."""
        deadline = time.monotonic() + _END_DEADLINE

        def outcome() -> Answer | None:
            record = self._record(context)
            if mark in record.ends:
                record.state[wire.STATE_NOTICE] = 0
                return dict(record.ends[mark], ran=True)
            if record.mark != mark:
                record.state[wire.STATE_NOTICE] = 0
                return dict(record.last_end, ran=False)
            if time.monotonic() < deadline:
                return None
            # The user's code has closed it.
            record.ending = {"reason": "cut"}
            self._end(record)
            return {"reason": "cut", "ran": True}

        return outcome

    # Processes.

    def _record(self, identity: str) -> Record:
        if identity not in self._records:
            raise Refusal("unknown")
        return self._records[identity]

    def _add(self, record: Record) -> None:
        self._records[record.id] = record
        try:
            self._start(record, b"")
        except OSError:
            del self._records[record.id]
            record.close()
            raise

    def _start(self, record: Record, notice: bytes) -> None:
        """Give a context a process. Raises OSError where there is no room for one."""
        if self._uniqueness.is_new():
            self._uniqueness.renew(takes_env=True, takes_cwd=True)
        record.state[: wire.STATE_NOTICE] = bytes(wire.STATE_NOTICE)
        record.state[wire.STATE_NOTICE] = 1 if notice else 0
        record.state[wire.STATE_SERVES] = 0
        life, record.life = os.pipe()
        try:
            record.pid = os.fork()
        except OSError:
            os.close(life)
            os.close(record.life)
            record.pid, record.life = 0, -1
            raise
        if record.pid == 0:
            try:
                self._become(record, life, notice)
            except BaseException:  # noqa: BLE001  (nothing of this process may go on as the server)
                traceback.print_exc()
            finally:
                os._exit(wire.UNSTARTED)
        os.close(life)

    def _become(self, record: Record, life: int, notice: bytes) -> NoReturn:
        """In the new process: keep the context's own things, and serve it."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for other in self._records.values():
            if other.life >= 0:
                os.close(other.life)
            if other is not record:
                other.listening.close()
        for client in self._clients.values():
            client.connection.close()
        self._listening.close()
        os.close(self._ended)
        os.close(self._signalled)
        processes.make_expendable()
        reseed()
        if record.folder is not None:
            os.fchdir(record.folder)
            with contextlib.suppress(FileNotFoundError):  # It was removed meanwhile.
                os.environ["PWD"] = os.getcwd()
        os.environ.update(record.env)
        Context(
            record.listening,
            record.state,
            life,
            self._uniqueness,
            takes_env=not record.env,
            takes_cwd=record.folder is None,
            notice=notice,
        ).serve()

    def _end(self, record: Record, *, told: bool = True) -> None:
        """End a context's process and all that descends from it, and replace it where it lives."""
        if record.pid:
            processes.kill(record.pid)
            _, status = os.waitpid(record.pid, 0)
            self._over(record, status, told=told)
        elif record.id in self._records:
            self._replace(record, b"")

    def _reap(self) -> None:
        for record in list(self._records.values()):
            if not record.pid:
                continue
            pid, status = os.waitpid(record.pid, os.WNOHANG)
            if pid:
                self._over(record, status, told=record.is_heard)

    def _over(self, record: Record, status: int, *, told: bool) -> None:
        """A process has ended. told: somebody learns of it, and the next call need not be told."""
        how = record.ending or self._how(status, record)
        record.pid, record.ending, record.last_end = 0, None, how
        os.close(record.life)
        record.life = -1
        record.ends[record.mark] = how
        while len(record.ends) > _MOST_ENDS:
            record.ends.popitem(last=False)
        if self._records.get(record.id) is not record:
            return
        waiting = self._waiting(record)
        _tell(waiting, how)
        record.notice = b"" if waiting or told else json.dumps(how).encode()
        # What has not come so far as to serve would not now either, and now, and now.
        if record.state[wire.STATE_SERVES]:
            self._replace(record, record.notice)

    def _replace(self, record: Record, notice: bytes) -> None:
        try:
            self._start(record, notice)
        except OSError:
            # No memory or no process id.
            _tell(self._waiting(record), {"reason": "full"})

    def _how(self, status: int, record: Record) -> Answer:
        kills, self._oom_kills = self._oom_kills, processes.oom_kills()
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            oom = number == signal.SIGKILL and self._oom_kills != kills
            return {"reason": "signal", "number": number, "oom": oom}
        code = os.WEXITSTATUS(status)
        if code == wire.UNSTARTED and not record.state[wire.STATE_SERVES]:
            return {"reason": "unstarted"}
        return {"reason": "cut" if code == wire.CUT else "exit", "number": code, "oom": False}

    def _waiting(self, record: Record) -> list[socket.socket]:
        """The connections of calls that wait for a process which is gone."""
        # Not by making it non-blocking, which it would be for the next process too.
        poll = select.poll()
        poll.register(record.listening, select.POLLIN)
        found = []
        while poll.poll(0):
            found.append(record.listening.accept()[0])
        return found


def _tell(waiting: list[socket.socket], how: Answer) -> None:
    """Tell calls how the process ended that they waited for.

    All that wait are taken before the first is told, who may call again at once.
    """
    payload = json.dumps(how).encode()
    event = wire.EVENT.pack(wire.LOST, len(payload)) + payload
    for connection in waiting:
        with contextlib.suppress(OSError):
            connection.sendall(event)
        connection.close()


def _notice(number: int, frame: object) -> None:
    """SIGCHLD has a handler so that it wakes `poll`, and nothing to do."""
    del number, frame


def _shown(record: Record) -> Answer:
    return {"id": record.id, "cwd": record.cwd, "created": record.created}


def _listen(name: bytes) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(name)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _uid_of(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder)


def main(modules: list[str]) -> NoReturn:
    """Serve until killed. modules: imported first, so that contexts have them at once.

    Exits with TAKEN where another server runs. Says `ready` when it serves.
    """
    try:
        listening = _listen(wire.SERVER)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sys.exit(wire.TAKEN)
        raise
    os.environ.setdefault("MPLBACKEND", "agg")
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as failure:  # noqa: BLE001  (a cell that needs it will say why)
            sys.stderr.write(f"{name}: {failure!r}\n")
    # The user's code shall not find us among its modules, nor a namesake of its own hidden.
    for name in [each for each in sys.modules if each.split(".")[0] == "novasandbox"]:
        del sys.modules[name]
    # What is there now is shared by all contexts; collecting would touch, and so copy, all of it.
    gc.collect()
    gc.freeze()
    server = Server(listening)
    os.write(1, b"ready\n")
    server.serve()
