"""A context: a process that runs cells one after another and keeps what they define."""

from __future__ import annotations
import __future__

import _ast
import builtins
import contextlib
import errno
import fcntl
import linecache
import os
import resource
import select
import signal
import socket
import struct
import sys
import types
from typing import TYPE_CHECKING, Any, Iterator, NoReturn

from novasandbox.guest.interpreter import display, failure, output, wire
from novasandbox.guest.interpreter.events import Events

if TYPE_CHECKING:
    import mmap

    from novasandbox.guest.interpreter.unique import Uniqueness

_TOP_LEVEL_AWAIT = 0x2000
_ONLY_AST = 0x400
_COROUTINE = 0x80
_FUTURES = 0
for _name in __future__.all_feature_names:
    if _name != "nested_scopes":  # Its flag means something else in a code object.
        _FUTURES |= getattr(__future__, _name).compiler_flag
# Cells whose source is kept for tracebacks and `inspect`.
_MOST_SOURCES = 1_000
_CREDENTIALS = struct.Struct("3i")
_NOSIGNAL = 0x4000
_BEGUN = b"\1\0"
# Connections beyond the files that the user's code may open.
_SPARE_FILES = 16
# Longer code is none that is looked at twice.
_SHORT = 200


class Context:
    """Serves the cells of one context. Made in the process that is to be it.

    listening: where calls connect. state: memory shared with the server, see `wire`. life: see
    `Events`. notice: told to the first call instead of running it, unless the server has told
    it: how the process before this one ended.
    """

    def __init__(
        self,
        listening: socket.socket,
        state: mmap.mmap,
        life: int,
        uniqueness: Uniqueness,
        *,
        takes_env: bool,
        takes_cwd: bool,
        notice: bytes = b"",
    ) -> None:
        self._listening = listening
        self._connections: dict[int, socket.socket] = {}
        self._poll = select.poll()
        self._poll.register(listening, select.POLLIN)
        self._state = state
        self._uniqueness = uniqueness
        self._takes = {"takes_env": takes_env, "takes_cwd": takes_cwd}
        self._notice = notice
        self._count = 0
        self._flags = _TOP_LEVEL_AWAIT
        self._loop: Any = None
        self._c_library: Any = None
        self._budget = display.Budget()
        self._events = Events(life, state)
        self._streams = output.open_streams(self._events)
        self._main = types.ModuleType("__main__")
        self._main.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = self._main
        sys.argv = [""]
        sys.path[0] = ""
        signal.signal(signal.SIGINT, self._interrupt)
        os.register_at_fork(before=self._flush, after_in_child=self._forked)
        os.system = output.system
        builtins.display = self.display  # type: ignore[attr-defined]

    def serve(self) -> NoReturn:
        """Run cells until the server ends this process."""
        self._state[wire.STATE_SERVES] = 1
        while True:
            try:
                ready = self._poll.poll()
            except BaseException as error:  # noqa: BLE001  (a handler of the user's: a timer's, say)
                with contextlib.suppress(Exception):
                    sys.excepthook(type(error), error, error.__traceback__)
                continue
            for descriptor, _ in ready:
                connection = self._connections.get(descriptor)
                if connection is None:
                    self._accept()
                elif not self._answer(connection):
                    self._poll.unregister(descriptor)
                    del self._connections[descriptor]
                    connection.close()

    def _accept(self) -> None:
        try:
            connection = self._listening.accept()[0]
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            # The user's code has opened as many files as it may, and is to hear of it itself.
            with _more_files():
                connection = self._listening.accept()[0]
        if not _is_trusted(connection):
            connection.close()
            return
        fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
        self._connections[connection.fileno()] = connection
        self._poll.register(connection, select.POLLIN)

    def _answer(self, connection: socket.socket) -> bool:
        """Run the cell that a connection asks for; False where that is at its end."""
        try:
            request = _receive(connection)
        except OSError:  # It was closed before it had read all of an earlier cell's output.
            return False
        if request is None:
            return False
        mark, code = request
        if self._state[wire.STATE_NOTICE]:
            self._state[wire.STATE_NOTICE] = 0
            event = wire.EVENT.pack(wire.LOST, len(self._notice)) + self._notice
            with contextlib.suppress(OSError):
                connection.send(event, _NOSIGNAL)
            return False
        self._state[: wire.STATE_NOTICE] = mark + _BEGUN
        if self._uniqueness.is_new():
            self._uniqueness.renew(**self._takes)
        self._events.open(connection)
        if mark == wire.REHEARSAL:
            self._rehearse(code)
        else:
            self._run(code)
        self._state[wire.STATE_RUNNING] = 0
        done = wire.END.pack(self._count, self._budget.exceeded)
        self._events.close(wire.DONE, done)
        return True

    def _rehearse(self, code: str) -> None:
        """Go all the way of a cell, so that what it touches is this process's own before one."""
        before = self._main, self._count, self._flags
        self._main = types.ModuleType("__main__")
        self._main.__dict__["__builtins__"] = builtins
        try:
            self._run(code)
        finally:
            self._main, self._count, self._flags = before

    def _run(self, code: str) -> None:
        self._count += 1
        if self._budget.is_touched:
            self._budget = display.Budget()
        events = self._events
        error: BaseException | None = None
        try:
            events.interruptible = True
            events.raise_if_stopped()
            value = self._evaluate(code, f"<cell {self._count}>")
            if value is not None:
                self._show(wire.RESULT, display.bundle_of(value))
            else:
                self._flush()
            if "matplotlib.pyplot" in sys.modules:
                for bundle in display.figures():
                    self._show(wire.DISPLAY, bundle)
            if "ctypes" in sys.modules:
                self._flush_c()
            events.interruptible = False
        except BaseException as caught:  # noqa: BLE001  (whatever the user's code raises is data)
            events.interruptible = False
            error = caught
        if events.forked:
            self._end_child(error)
        if error is not None:
            self._flush()
            events.send(wire.ERROR, failure.describe(error), hold=True)

    def _evaluate(self, code: str, name: str) -> Any:
        """The value of the last expression, None where there is none."""
        _remember(code, name, self._count)
        flags = self._flags
        if len(code) < _SHORT and "\n" not in code and "=" not in code and not code[0:1].isspace():
            # An expression most likely, and then this takes a third of the time.
            try:
                program = compile(code, name, "eval", flags, True)
            except (SyntaxError, ValueError):
                pass
            else:
                return self._execute(program)
        tree: Any = compile(code, name, "exec", flags | _ONLY_AST, True)
        programs = []
        last: Any = None
        if tree.body and type(tree.body[-1]).__name__ == "Expr":
            last = _expression(tree.body.pop())
        if tree.body:
            programs.append(compile(tree, name, "exec", flags, True))
            self._flags |= programs[0].co_flags & _FUTURES
        if last is not None:
            programs.append(compile(last, name, "eval", self._flags, True))
        value = self._execute(*programs)
        return None if last is None else value

    def _execute(self, *programs: types.CodeType) -> Any:
        """Run the parts of a cell; in the loop, all of it, where a part awaits."""
        namespace = self._main.__dict__
        if any(program.co_flags & _COROUTINE for program in programs):
            return self._await(_in_loop(programs, namespace))
        value = None
        for program in programs:
            value = eval(program, namespace)  # noqa: S307  (this is what it is for)
        return value

    def _await(self, coroutine: Any) -> Any:
        """Run a cell that awaits; the loop, and the tasks in it, are there for later cells too."""
        import asyncio

        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        loop = self._loop
        asyncio.set_event_loop(loop)
        task = loop.create_task(coroutine)
        try:
            return loop.run_until_complete(task)
        except (KeyboardInterrupt, SystemExit):
            if not task.done():
                task.cancel()
                loop.run_until_complete(asyncio.wait((task,)))
            if not task.cancelled():
                task.exception()
            raise

    def display(self, *values: Any, raw: bool = False) -> None:
        """Show values as results of the cell. raw: they are MIME bundles already."""
        for value in values:
            self._show(wire.DISPLAY, dict(value) if raw else display.bundle_of(value))

    def _show(self, kind: int, bundle: dict[str, Any]) -> None:
        data = self._budget.encode(bundle)
        if data:
            # A result that waits for the cell's end leaves with it; what was printed before it
            # has to be before it.
            self._flush()
            self._events.send(kind, data, hold=True)

    def _interrupt(self, number: int, frame: types.FrameType | None) -> None:
        """SIGINT, which the user's code may send itself; between cells it is nothing."""
        del number, frame
        if self._events.interruptible:
            raise KeyboardInterrupt

    def _flush(self) -> None:
        for stream in self._streams:
            try:
                stream.flush()
            except (OSError, ValueError):  # The user has detached what is below.
                self._streams = output.open_streams(self._events)
                return

    def _flush_c(self) -> None:
        """Write what C's own printf holds; only ctypes can say so."""
        if self._c_library is None:
            self._c_library = sys.modules["ctypes"].CDLL(None)
        self._c_library.fflush(None)

    def _forked(self) -> None:
        """In a child of the user's code: nothing that is the parent's, and Python's own signals."""
        self._events.leave_to_child()
        self._listening.close()
        for connection in self._connections.values():
            connection.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _end_child(self, error: BaseException | None) -> NoReturn:
        """The user's code has forked, and the child came to the cell's end: it is its own too."""
        code = 0
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            code = 1
            sys.excepthook(type(error), error, error.__traceback__)
        self._flush()
        os._exit(code & 0xFF)


async def _in_loop(programs: tuple[types.CodeType, ...], namespace: dict[str, Any]) -> Any:
    value = None
    for program in programs:
        value = eval(program, namespace)  # noqa: S307
        if program.co_flags & _COROUTINE:
            value = await value
    return value


@contextlib.contextmanager
def _more_files() -> Iterator[None]:
    """In this block some files more may be opened than the user's code may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = soft + _SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _expression(statement: Any) -> Any:
    # Not `ast`, for the user's folder may have one of its own.
    return _ast.Expression(statement.value)


def _remember(code: str, name: str, count: int) -> None:
    """Keep the source of a cell for tracebacks."""
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    linecache.cache.pop(f"<cell {count - _MOST_SOURCES}>", None)


def _is_trusted(connection: socket.socket) -> bool:
    """Whether the agent or this user connects: names of abstract sockets are anybody's."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(credentials)[1] in (0, os.getuid())


def _receive(connection: socket.socket) -> tuple[bytes, str] | None:
    """The call's mark and code; None where it was given up, or is none."""
    data = connection.recv(65_536)
    if len(data) < wire.REQUEST.size:
        return None
    size, mark = wire.REQUEST.unpack_from(data)
    missing = wire.REQUEST.size + size - len(data)
    if size > wire.MOST_CODE:
        return None
    parts: list[bytes] = [data]
    while missing > 0:
        piece = connection.recv(min(missing, 1 << 20))
        if not piece:
            return None
        parts.append(piece)
        missing -= len(piece)
    return mark, b"".join(parts)[wire.REQUEST.size :].decode("utf-8", "surrogatepass")
