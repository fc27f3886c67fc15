"""The sync names are the async ones: same calls, same arguments, in any thread."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from novasandbox import sync
from novasandbox.core import pool as core_pool
from novasandbox.core import sandbox as core_sandbox
from novasandbox.core import template_manager as core_templates
from novasandbox.core.background import BackgroundLoop, background, in_new_thread
from novasandbox.errors import FileError, InvalidConfig, InvalidRequest, SandboxNotFound
from novasandbox.guest import contexts as guest_contexts
from novasandbox.guest import files as guest_files
from novasandbox.guest import process as guest_process
from novasandbox.guest.launch import Launch
from novasandbox.guest.processes import Processes
from novasandbox.guest.protocol import Frame, Op, Tag
from support.peer import Connection, Peer, data, end, record, reply, state

TWINS = [
    (core_sandbox.Sandbox, sync.Sandbox),
    (core_pool.Pool, sync.Pool),
    (core_templates.TemplateManager, sync.TemplateManager),
    (guest_contexts.Contexts, sync.Contexts),
    (guest_files.Files, sync.Files),
    (guest_files.GuestFile, sync.GuestFile),
    (guest_files.Watch, sync.Watch),
    (guest_process.Process, sync.Process),
    (guest_process.Stdin, sync.Stdin),
]
# What the parts of the library use among each other.
NOT_FOR_USERS = {"assigned", "check", "collect", "collected", "iterates", "rehearse"}
OF_BLOCKS = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
}


def public(cls: type) -> dict[str, object]:
    """What a class gives to its users, blocks and iteration by their sync names."""
    found = {}
    for name in vars(cls):
        value = inspect.getattr_static(cls, name)
        name = OF_BLOCKS.get(name, name)
        if name in OF_BLOCKS.values() or not name.startswith("_"):
            found[name] = value
    return {name: value for name, value in found.items() if name not in NOT_FOR_USERS}


def shape(value: object) -> object:
    """What a caller sees of a method: names, kinds and defaults of its parameters."""
    if isinstance(value, property):
        return "property"
    function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    assert callable(function)
    parameters = inspect.signature(function).parameters.values()
    return type(value).__name__, [(each.name, each.kind, each.default) for each in parameters]


@pytest.mark.parametrize(("theirs", "ours"), TWINS, ids=lambda cls: cls.__name__)
def test_a_sync_class_has_the_calls_of_its_async_twin(theirs: type, ours: type) -> None:
    assert {name: shape(value) for name, value in public(ours).items()} == {
        name: shape(value) for name, value in public(theirs).items()
    }


@pytest.mark.parametrize(("theirs", "ours"), TWINS, ids=lambda cls: cls.__name__)
def test_no_sync_call_is_a_coroutine_and_each_is_typed(theirs: type, ours: type) -> None:
    for name, value in public(ours).items():
        function: Any = getattr(value, "fget", None) or getattr(value, "__func__", value)
        assert not inspect.iscoroutinefunction(function), name
        hints = inspect.get_annotations(function)
        assert set(hints) >= set(inspect.signature(function).parameters) - {"self", "cls"}
        assert "return" in hints, name


def test_the_manager_of_templates_is_made_with_the_same_arguments() -> None:
    theirs, ours = core_templates.TemplateManager, sync.TemplateManager
    assert shape(ours.__init__) == shape(theirs.__init__)


def test_every_public_sync_name_can_be_imported() -> None:
    for name in sync.__all__:
        assert getattr(sync, name).__name__ == name
    assert dir(sync) == sorted(sync.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = sync.Nothing


# The loop in the background.


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    """A loop of the test's own."""
    own = BackgroundLoop("test-loop", lasting=False)
    yield own
    own.stop()


def test_a_call_gives_the_result_or_raises_the_error(loop: BackgroundLoop) -> None:
    async def work() -> str:
        return threading.current_thread().name

    async def fail() -> None:
        raise FileError("cannot read", errno=2, path="/f")

    assert loop.call(work) == "test-loop"
    with pytest.raises(FileError, match="cannot read"):
        loop.call(fail)


async def test_a_call_works_inside_a_running_loop(loop: BackgroundLoop) -> None:
    async def work() -> int:
        return 7

    assert loop.call(work) == 7
    assert in_new_thread(work) == 7


def test_calls_of_several_threads_run_at_once(loop: BackgroundLoop) -> None:
    barrier: list[asyncio.Event] = []
    arrived = 0

    async def meet() -> int:
        nonlocal arrived
        if not barrier:
            barrier.append(asyncio.Event())
        arrived += 1
        mine = arrived
        if arrived == 8:
            barrier[0].set()
        await barrier[0].wait()
        return mine

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(loop.call(meet))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(found) == list(range(1, 9))


def test_a_call_from_the_loop_itself_is_refused_and_does_not_hang(loop: BackgroundLoop) -> None:
    async def inner() -> None: ...

    async def outer() -> None:
        loop.call(inner)

    with pytest.raises(InvalidRequest, match="thread that does the work"):
        loop.call(outer)


def test_what_still_runs_is_cancelled_when_the_loop_stops(loop: BackgroundLoop) -> None:
    given_back = threading.Event()

    async def start() -> None:
        async def hold() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                given_back.set()

        kept.append(asyncio.create_task(hold()))
        await asyncio.sleep(0)

    kept: list[asyncio.Task[None]] = []
    loop.call(start)
    loop.stop()
    loop.stop()
    assert given_back.is_set()


def script(body: str, *, interrupt: bool = False, home: Path | None = None) -> tuple[str, int]:
    """What a program prints, and its exit code; it is sent Ctrl-C when it says `now`."""
    with subprocess.Popen(
        [sys.executable, "-c", body],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **({"NOVA_HOME": str(home)} if home else {})},
        # Of whoever ran this in the background it would inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as program:
        assert program.stdout is not None
        out = ""
        for line in program.stdout:
            out += line
            if interrupt and line == "now\n":
                program.send_signal(signal.SIGINT)
        return out, program.wait(60)


def test_ctrl_c_cancels_the_call_and_waits_for_what_it_gives_back() -> None:
    out, _ = script(
        """
import asyncio
from novasandbox.core.background import background
async def work():
    try:
        print("now", flush=True)
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.05)
        print("given back", flush=True)
try:
    background.call(work)
except KeyboardInterrupt:
    print("interrupted", flush=True)
""",
        interrupt=True,
    )
    assert out == "now\ngiven back\ninterrupted\n"


def test_ctrl_c_as_a_thing_is_made_takes_it_back() -> None:
    out, _ = script(
        """
import asyncio, signal, os
from novasandbox.core.background import background
async def work():
    print("now", flush=True)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "made all the same"
async def undo(made):
    print("undone:", made, flush=True)
try:
    background.call(work, undo=undo)
except KeyboardInterrupt:
    print("interrupted", flush=True)
""",
        interrupt=True,
    )
    assert out == "now\nundone: made all the same\ninterrupted\n"


def test_ctrl_c_reaches_a_call_inside_a_running_loop() -> None:
    out, _ = script(
        """
import asyncio
from novasandbox.core.background import in_new_thread
async def work():
    try:
        print("now", flush=True)
        await asyncio.Event().wait()
    finally:
        print("given back", flush=True)
async def main():
    in_new_thread(work)
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
""",
        interrupt=True,
    )
    assert out == "now\ngiven back\ninterrupted\n"


@pytest.mark.parametrize("end_of_program", ["", "raise SystemExit(3)", "1/0"])
def test_the_end_of_the_program_does_what_is_left_while_thread_pools_still_work(
    end_of_program: str,
) -> None:
    out, _ = script(
        f"""
import asyncio
from novasandbox.core.background import background
async def last():
    print(await asyncio.to_thread(lambda: "closed"), flush=True)
background.at_exit(last)
async def work(): pass
background.call(work)
{end_of_program}
"""
    )
    assert "closed\n" in out


def test_a_forked_child_begins_anew_and_ends_nothing_of_its_parents() -> None:
    out, code = script(
        """
import os, sys
from novasandbox.core.background import background
from novasandbox.errors import InvalidRequest
from novasandbox.sync.handle import Handle
async def work(): return os.getpid()
assert background.call(work) == os.getpid()
handle = Handle()
child = os.fork()
if child == 0:
    assert background.call(work) == os.getpid()
    try:
        handle._call(work)
    except InvalidRequest as error:
        print(error.what, flush=True)
    sys.exit(5)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), background.call(work) == os.getpid())
"""
    )
    assert out == "this object was made before the process was forked\n5 True\n"
    assert code == 0


def test_a_program_that_only_imports_starts_no_thread() -> None:
    out, _ = script(
        "import novasandbox.sync, threading; from novasandbox.sync import Sandbox;"
        "print(threading.active_count())"
    )
    assert out == "1\n"


# The handles.


class Played:
    """A guest whose end is played in the background, for handles of the sync kind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._peer: Peer | None = None
        self.connection: Connection | None = None

    def open(self, play: Callable[[Connection], Any]) -> Any:
        """A channel to a guest that does what `play` says."""

        async def opened() -> Any:
            self._peer = await Peer(self._folder / "s").__aenter__()
            channel, connection = await self._peer.connect()
            self._playing = asyncio.create_task(play(connection))
            return channel

        return background.call(opened)

    def close(self) -> None:
        """End it, and see what went wrong in it."""

        async def closed() -> None:
            if self._peer is not None:
                self._playing.cancel()
                await asyncio.gather(self._playing, return_exceptions=True)
                await self._peer.__aexit__(None, None, None)

        background.call(closed)


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Played]:
    """A guest to be played."""
    guest = Played(tmp_path)
    yield guest
    guest.close()


def test_files_are_read_and_written_without_a_loop(played: Played) -> None:
    written: list[bytes] = []

    async def play(connection: Connection) -> None:
        while True:
            heard = await connection.expect(Frame.REQUEST)
            number = heard.stream
            if heard.op == Op.READ:
                connection.send(state(number), data(number, 0, b"x" * 70_000)[: 65_536 + 12])
                return
            if heard.op == Op.WRITE:
                connection.send(state(number, (Tag.RECEIVED, 0)))
                written.append(await connection.input(5))
                await connection.expect(Frame.END)
                connection.send(reply(number))
            if heard.op == Op.STAT:
                connection.send(reply(number, 2))
            if heard.op == Op.LIST:
                body = record((Tag.NAME, b"n"), (Tag.KIND, 1))
                connection.send(state(number), data(number, 0, body), end(number, len(body)))
                connection.send(reply(number))

    files = sync.Files(guest_files.Files(played.open(play), "box"))
    files.write("/f", "12345")
    with files.open("/f", "wb") as file:
        file.write(b"67890")
    assert written == [b"12345", b"67890"]
    assert not files.exists("/f")
    with pytest.raises(FileError):
        files.as_user("root").stat("/f")
    assert [each.name for each in files.list("/")] == ["n"]


def test_a_process_is_iterated_over_and_waited_for_without_a_loop(played: Played) -> None:
    async def play(connection: Connection) -> None:
        number = (await connection.request(Op.EXEC)).stream
        connection.send(state(number, (Tag.PID, 7), (Tag.RECEIVED, 0)))
        body = await connection.input(3)
        await connection.expect(Frame.END)
        connection.send(data(number, 0, body), data(number, 0, b"e", 2))
        connection.send(end(number, 3), end(number, 1, 2), reply(number, 0, (Tag.EXIT, 4)))

    channel = played.open(play)
    launch = Launch(("cat",), stdin=True)
    process = sync.Process(background.call(lambda: Processes(channel, "box").start(launch)))
    assert (process.pid, process.command) == (7, ("cat",))
    process.stdin.write("abc")
    process.stdin.close()
    assert [(each.stream, each.text) for each in process] == [("stdout", "abc"), ("stderr", "e")]
    assert process.wait().exit_code == 4


def test_a_watch_is_iterated_over_without_a_loop(played: Played) -> None:
    async def play(connection: Connection) -> None:
        number = (await connection.request(Op.WATCH)).stream
        body = record((Tag.KIND, 1), (Tag.NAME, b"new"))
        connection.send(state(number), data(number, 0, body))

    files = sync.Files(guest_files.Files(played.open(play), "box"))
    for event in files.watch("/d"):
        assert isinstance(event, guest_files.FileEvent)
        assert event.path == "new"
        break


def test_mistakes_are_raised_at_once(own_home: Path) -> None:
    with pytest.raises(InvalidConfig):
        sync.Sandbox.create(vcpus=0)
    with pytest.raises(SandboxNotFound):
        sync.Sandbox.connect("nobody")
    with pytest.raises(SandboxNotFound):
        sync.Sandbox.wake("nobody")
    with pytest.raises(InvalidConfig):
        sync.Sandbox.create("template", snapshot="base")
    with pytest.raises(InvalidRequest, match="no snapshot"):
        sync.Sandbox.create(snapshot="base")
    with pytest.raises(InvalidRequest, match="no snapshot"):
        sync.Sandbox.remove_snapshot("base")
    assert sync.Sandbox.snapshots() == []
    assert sync.Sandbox.list() == []
