"""`novasandbox.sync` on a real machine: no loop needed, and nothing outlives the program."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from novasandbox.core import registry
from novasandbox.core.hypervisor import SandboxState
from novasandbox.errors import CommandFailed, SandboxNotFound
from novasandbox.guest.files import FileEvent
from novasandbox.sync import Sandbox
from waiting import is_gone

pytestmark = pytest.mark.vm

UNFINISHED = """
from novasandbox.sync import Sandbox
box = Sandbox.create(timeout=None, name="unfinished")
print(box.info().pid, flush=True)
process = box.start("sleep 1000")
{}
"""


@pytest.fixture(scope="module")
def box(qemu: str) -> Iterator[Sandbox]:
    """A sandbox of the sync kind, for tests that leave it as usable as it was."""
    with Sandbox.create(timeout=None, metadata={"kind": "sync"}) as made:
        yield made


def test_commands_run_and_fail_as_everywhere(box: Sandbox) -> None:
    assert box.exec("echo $((6*7)); cat", stdin="in").stdout == "42\nin"
    with pytest.raises(CommandFailed) as caught:
        box.exec("exit 3", check=True)
    assert caught.value.result.exit_code == 3
    assert box.state is SandboxState.RUNNING
    assert box.ping() < 10
    assert [info.id for info in Sandbox.list(metadata={"kind": "sync"})] == [box.id]


def test_files_and_trees_go_in_and_out(box: Sandbox, tmp_path: Path) -> None:
    body = os.urandom(3_000_000)
    with box.files.open("/tmp/big", "wb") as file:
        file.write(body)
    with box.files.open("/tmp/big") as file:
        assert b"".join(file) == body
    (tmp_path / "tree" / "d").mkdir(parents=True)
    (tmp_path / "tree" / "d" / "f").write_text("text")
    assert box.upload(tmp_path / "tree", "/tmp/tree") == []
    assert box.download("/tmp/tree", tmp_path / "back") == []
    assert (tmp_path / "back" / "d" / "f").read_text() == "text"


def test_a_process_talks_while_it_runs(box: Sandbox) -> None:
    process = box.start("read line; echo got $line; echo err >&2; exit 4")
    process.stdin.write("hello\n")
    assert sorted((each.stream, each.text) for each in process) == [
        ("stderr", "err\n"),
        ("stdout", "got hello\n"),
    ]
    assert process.wait().exit_code == 4


def test_a_watch_sees_what_happens_in_its_block(box: Sandbox) -> None:
    box.files.mkdir("/tmp/watched")
    with box.files.watching("/tmp/watched") as watch:
        box.files.write("/tmp/watched/new", "x")
        for event in watch:  # It would never end if the file were not seen.
            if isinstance(event, FileEvent) and event.path == "new":
                break


def test_several_threads_use_one_sandbox(box: Sandbox) -> None:
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = box.exec(["echo", str(number)]).stdout

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {n: f"{n}\n" for n in range(8)}


def test_it_works_inside_a_running_loop(box: Sandbox) -> None:
    async def main() -> str:
        return box.exec("echo inside").stdout

    with asyncio.Runner() as runner:
        assert runner.run(main()) == "inside\n"


def test_ctrl_c_ends_the_command_and_not_the_sandbox(box: Sandbox) -> None:
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        box.exec(["sleep", "54321"])
    timer.join()
    assert box.exec("for p in /proc/[0-9]*; do cat $p/cmdline; done").stdout.count("54321") == 0


@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)", "box.exec('sleep 1000')"])
def test_the_end_of_the_program_ends_its_sandboxes(nova_home: Path, ending: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", UNFINISHED.format(ending)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        if "exec" in ending:
            program.send_signal(signal.SIGINT)
        program.wait(60)
    assert is_gone(pid)
    assert "unfinished" not in [record.name for record in registry.records()]
    with pytest.raises(SandboxNotFound, match="ended"):
        registry.find("unfinished")


def test_ctrl_c_while_a_sandbox_is_made_leaves_nothing(nova_home: Path) -> None:
    before = {record.id for record in registry.records()}
    script = "from novasandbox.sync import Sandbox\nSandbox.create(name='half')"
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL) as program:
        while "half" not in [record.name for record in registry.records()]:
            assert program.poll() is None
        program.send_signal(signal.SIGINT)
        program.wait(60)
    assert {record.id for record in registry.records()} == before
