"""How a sandbox ends, wanted or not: always an error that says why, and nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

import elsewhere
from novasandbox import Sandbox, SandboxState
from novasandbox.core import registry, watching
from novasandbox.errors import (
    GuestPanicked,
    GuestUnreachable,
    NameTaken,
    ProtocolViolation,
    SandboxFailed,
    SandboxNotFound,
    VmmCrashed,
)
from waiting import is_gone, until

pytestmark = pytest.mark.vm

# Five times what is promised, since this may run under emulation on a busy machine.
SOON = 5.0


async def _ended(sandbox: Sandbox, nova_home: Path, pids: list[int]) -> None:
    """Everything that a sandbox had is given back."""
    await until(lambda: all(map(is_gone, pids)), within=SOON)
    await until(lambda: sandbox.id not in elsewhere.living(nova_home), within=SOON)
    assert sandbox.id not in [info.id for info in await Sandbox.list()]
    assert not any(str(nova_home) in each.mountpoint for each in psutil.disk_partitions(all=True))


async def test_a_killed_vmm_is_an_error_at_once_and_never_an_exit_code(
    own_sandbox: Sandbox, nova_home: Path
) -> None:
    pids = elsewhere.pids(registry.get(own_sandbox.id))
    process = await own_sandbox.start("echo up; exec sleep 991")
    reading = asyncio.create_task(_all_output(process.__aiter__()))
    running = asyncio.create_task(own_sandbox.exec("sleep 990"))
    watch = own_sandbox.files.watching("/tmp")
    async with watch:
        os.kill(pids[0], signal.SIGKILL)
        async with asyncio.timeout(SOON):
            with pytest.raises(VmmCrashed, match="SIGKILL"):
                await running
            with pytest.raises(VmmCrashed):
                await reading
            with pytest.raises(VmmCrashed):
                await process.wait()
    with pytest.raises(VmmCrashed):
        await own_sandbox.exec("echo a fresh machine?")
    with pytest.raises(VmmCrashed):
        await own_sandbox.pause()
    assert own_sandbox.state is SandboxState.FAILED
    with pytest.raises(SandboxFailed):
        await Sandbox.connect(own_sandbox.id)
    await _ended(own_sandbox, nova_home, pids)


async def _all_output(outputs: object) -> str:
    return "".join([output.text async for output in outputs])  # type: ignore[attr-defined]


async def test_a_guest_that_panics_says_so(own_sandbox: Sandbox, nova_home: Path) -> None:
    pids = elsewhere.pids(registry.get(own_sandbox.id))
    async with asyncio.timeout(30):
        with pytest.raises(GuestPanicked, match="sysrq"):
            await own_sandbox.exec("echo c > /proc/sysrq-trigger; sleep 60", user="root")
    with pytest.raises(SandboxFailed, match="sysrq"):
        await Sandbox.connect(own_sandbox.id)
    await _ended(own_sandbox, nova_home, pids)


async def test_a_guest_that_switches_itself_off_is_gone(
    own_sandbox: Sandbox, nova_home: Path
) -> None:
    pids = elsewhere.pids(registry.get(own_sandbox.id))
    async with asyncio.timeout(30):
        with pytest.raises(VmmCrashed):
            await own_sandbox.exec("echo o > /proc/sysrq-trigger; sleep 60", user="root")
    await _ended(own_sandbox, nova_home, pids)


async def test_a_machine_that_stands_still_is_given_up(
    qemu: str, nova_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_PULSE", 0.5)
    monkeypatch.setattr(watching, "_SILENCE", 3.0)
    async with Sandbox.create(timeout=None) as sandbox:
        pids = elsewhere.pids(registry.get(sandbox.id))
        running = asyncio.create_task(sandbox.exec("sleep 992"))
        os.kill(pids[0], signal.SIGSTOP)
        async with asyncio.timeout(30):
            with pytest.raises(GuestUnreachable, match="within 3 s"):
                await running
        await _ended(sandbox, nova_home, pids)


async def test_the_agent_cannot_be_killed_from_inside(sandbox: Sandbox) -> None:
    kill = "for s in 1 2 3 6 9 11 15 19; do kill -$s 1; done; echo tried"
    assert (await sandbox.exec(kill, user="root")).stdout == "tried\n"
    assert (await sandbox.exec("echo on")).stdout == "on\n"
    # Everything but the agent and the shell itself.
    await sandbox.exec("kill -9 -1", user="root", timeout=30)
    assert (await sandbox.exec("echo on")).stdout == "on\n"


async def test_a_guest_that_breaks_the_protocol_is_given_up(
    own_sandbox: Sandbox, nova_home: Path
) -> None:
    pids = elsewhere.pids(registry.get(own_sandbox.id))
    running = asyncio.create_task(own_sandbox.exec("sleep 993"))
    await own_sandbox.ping()
    link = own_sandbox._session.channel._link
    assert link is not None
    # As if the guest's kernel had sent it: a frame of a type and a length that cannot be.
    link.data_received(b"\xee\xff\xff\xff" * 4)
    with pytest.raises(ProtocolViolation):
        await running
    with pytest.raises(ProtocolViolation):
        await own_sandbox.exec("true")
    await _ended(own_sandbox, nova_home, pids)


async def test_of_two_makers_of_one_name_one_wins(qemu: str, nova_home: Path) -> None:
    async def make() -> Sandbox:
        return await Sandbox.create(name="twin")

    answers = await asyncio.gather(make(), make(), return_exceptions=True)
    made = [each for each in answers if isinstance(each, Sandbox)]
    refused = [each for each in answers if isinstance(each, NameTaken)]
    try:
        assert (len(made), len(refused)) == (1, 1)
        # A hostname is the guest's own: it says which machine answers.
        assert (await made[0].exec("hostname")).stdout == "twin\n"
    finally:
        for each in made:
            await each.kill()


# As a program that makes a sandbox and is killed at one moment or another.
MAKE = """
    sandbox = await Sandbox.create(timeout=None)
    print("made", sandbox.id, flush=True)
    await asyncio.sleep(600)
"""


async def _new_record(before: set[str], nova_home: Path) -> registry.Record:
    """The record of the sandbox that another process has begun to make."""
    found: list[str] = []

    def appeared() -> bool:
        found[:] = [n for n in elsewhere.living(nova_home) - before if _has_record(nova_home, n)]
        return bool(found)

    await until(appeared)
    return registry.get(found[0])


def _has_record(nova_home: Path, identity: str) -> bool:
    return (nova_home / "run" / identity / "sandbox.json").exists()


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("record", signal.SIGKILL),
        ("machine", signal.SIGKILL),
        ("machine", signal.SIGINT),
        ("running", signal.SIGKILL),
    ],
    ids=["record-KILL", "machine-KILL", "machine-INT", "running-KILL"],
)
async def test_a_maker_killed_at_any_moment_leaves_nothing(
    qemu: str, nova_home: Path, moment: str, number: signal.Signals
) -> None:
    before = elsewhere.living(nova_home)
    async with elsewhere.started(MAKE) as maker:
        record = await _new_record(before, nova_home)
        if moment == "machine":
            await until(lambda: registry.get(record.id).machine is not None)
        if moment == "running":
            assert maker.stdout is not None
            assert (await maker.stdout.readline()).startswith(b"made")
        record = registry.get(record.id)
        maker.send_signal(number)
        await maker.wait()
        pids = elsewhere.pids(record)
        await until(lambda: all(map(is_gone, pids)), within=SOON)
    assert record.id not in [info.id for info in await Sandbox.list()]
    assert elsewhere.living(nova_home) == before
    assert not _processes_of(record.id)
    with pytest.raises((SandboxFailed, SandboxNotFound)):
        await Sandbox.connect(record.id)


def _processes_of(identity: str) -> list[int]:
    """Processes whose command line names the sandbox."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(identity in word for word in process.info["cmdline"] or ()):
            found.append(process.pid)
    return found


async def test_a_program_that_ends_without_a_word_takes_its_sandbox_along(
    qemu: str, nova_home: Path
) -> None:
    before = elsewhere.living(nova_home)
    body = "sandbox = await Sandbox.create(timeout=None)\nprint((await sandbox.info()).pid)"
    pid = int(await elsewhere.run(body))
    await until(lambda: is_gone(pid), within=SOON)
    await Sandbox.list()
    assert elsewhere.living(nova_home) == before


@pytest.mark.parametrize(
    "end", ["await sandbox.kill()", "await sandbox.hibernate()", "await sandbox.set_timeout(0.01)"]
)
async def test_a_program_that_ends_together_with_its_sandbox_leaves_no_handle_open(
    qemu: str, nova_home: Path, end: str
) -> None:
    body = f"""
        sandbox = await Sandbox.create(timeout=None)
        {end}
        while os.path.exists(sys.argv[1] + "/run/" + sandbox.id + "/api.sock"):
            await asyncio.sleep(0)
        print(sandbox.id)
    """
    program = (sys.executable, "-X", "dev", "-c", elsewhere.program(body), str(nova_home))
    process = await asyncio.create_subprocess_exec(
        *program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, complaints = await process.communicate()
    with contextlib.suppress(SandboxNotFound, SandboxFailed):
        registry.end_unheld(output.decode().strip())
    assert "ResourceWarning" not in complaints.decode()
    assert "destroyed" not in complaints.decode()


@pytest.mark.parametrize("moment", ["record", "machine"])
async def test_a_cancelled_creation_leaves_nothing(qemu: str, nova_home: Path, moment: str) -> None:
    async def make() -> Sandbox:
        return await Sandbox.create(timeout=None)

    before = elsewhere.living(nova_home)
    making = asyncio.create_task(make())
    record = await _new_record(before, nova_home)
    if moment == "machine":
        await until(lambda: registry.get(record.id).machine is not None)
        record = registry.get(record.id)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert elsewhere.living(nova_home) == before
    assert all(map(is_gone, elsewhere.pids(record)))
    assert not _processes_of(record.id)


async def test_a_program_with_many_open_files_makes_sandboxes_too(qemu: str) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(600):
            stack.enter_context(open("/dev/null", "rb"))
        async with Sandbox.create() as sandbox:
            assert (await sandbox.exec("echo on")).stdout == "on\n"
