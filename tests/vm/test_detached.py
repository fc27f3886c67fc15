"""Sandboxes without a maker: the keeper holds them, and any process reaches them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import elsewhere
from novasandbox import Sandbox, SandboxState
from novasandbox.core import registry, session
from novasandbox.core.gate import CONTROL
from novasandbox.errors import (
    IllegalTransition,
    OutcomeUnknown,
    ProcessNotFound,
    SandboxExpired,
    SandboxFailed,
    SandboxNotFound,
)
from novasandbox.guest.stream import Stream
from novasandbox.providers.qmp import Qmp
from waiting import is_gone, until

pytestmark = pytest.mark.vm

MAKE = """
    sandbox = await Sandbox.create(
        detach=True, name="detached", timeout=900, env={"GIVEN": "to it"}
    )
    await sandbox.files.write("/tmp/mark", "made elsewhere")
    print(sandbox.id)
"""


@pytest.fixture(scope="module")
async def detached(qemu: str, nova_home: Path) -> AsyncIterator[Sandbox]:
    """A sandbox whose maker has ended, as another process sees it."""
    identity = (await elsewhere.run(MAKE)).strip()
    sandbox = await Sandbox.connect(identity)
    yield sandbox
    await sandbox.kill()


async def test_it_outlives_its_maker_and_is_found_by_name(detached: Sandbox) -> None:
    async with await Sandbox.connect("detached") as found:
        assert found.id == detached.id
        assert await found.files.read_text("/tmp/mark") == "made elsewhere"
        assert (await found.exec("echo $GIVEN")).stdout == "to it\n"
    # Leaving the block has let go of the handle only.
    assert (await detached.exec("echo on")).stdout == "on\n"


async def test_looking_at_it_does_not_change_its_lifetime(detached: Sandbox) -> None:
    deadline = (await detached.info()).deadline
    assert deadline is not None
    await elsewhere.run('await (await Sandbox.connect("detached")).exec("true")')
    await Sandbox.list()
    assert (await detached.info()).deadline == deadline
    await elsewhere.run('await (await Sandbox.connect("detached")).set_timeout(1800)')
    changed = (await detached.info()).deadline
    assert changed is not None
    assert changed > deadline + 600


async def test_a_process_started_elsewhere_is_attached_to_with_its_output(
    detached: Sandbox,
) -> None:
    body = """
        sandbox = await Sandbox.connect("detached")
        process = await sandbox.start(
            "echo first; read word; echo got $word; exec sleep 995", name="work"
        )
        print(process.pid)
    """
    pid = int(await elsewhere.run(body))
    (info,) = [each for each in await detached.processes() if each.name == "work"]
    assert (info.pid, info.exit_code) == (pid, None)
    process = await detached.attach(pid)
    await process.stdin.write("hello\n")
    seen = ""
    async for output in process:
        seen += output.text
        if "got" in seen:
            break
    assert seen == "first\ngot hello\n"
    process.detach()
    again = await detached.attach(pid)
    await again.kill()
    assert (await again.wait()).signal == "SIGKILL"
    with pytest.raises(ProcessNotFound):
        await detached.attach(pid)


async def test_what_ended_meanwhile_still_tells_its_output_and_code(detached: Sandbox) -> None:
    body = """
        sandbox = await Sandbox.connect("detached")
        process = await sandbox.start("seq 1 100; echo err >&2; exit 7", name="ended")
        print(process.pid)
    """
    pid = int(await elsewhere.run(body))

    async def has_ended() -> bool:
        return any(e.pid == pid and e.exit_code == 7 for e in await detached.processes())

    await until(has_ended)
    result = await (await detached.attach(pid)).wait()
    assert (result.exit_code, result.stderr) == (7, "err\n")
    assert result.stdout.split() == [str(n) for n in range(1, 101)]


async def test_a_long_silence_keeps_the_end_of_the_output(detached: Sandbox) -> None:
    process = await detached.start("read go; seq 1 200000; exit 3")
    await process.stdin.write("go\n")
    process.detach()

    async def has_ended() -> bool:
        return any(e.pid == process.pid and e.exit_code == 3 for e in await detached.processes())

    await until(has_ended, within=60)
    result = await (await detached.attach(process.pid)).wait()
    assert result.stdout.endswith("\n199999\n200000\n")
    assert result.truncated == {"stdout"}
    assert 16_000 < len(result.stdout_bytes) <= 262_144


async def test_one_that_is_attached_to_twice_has_one_reader(detached: Sandbox) -> None:
    process = await detached.start("read line; echo $line; exit 4")
    waiting = asyncio.create_task(process.wait())
    async with await Sandbox.connect("detached") as other:
        second = await other.attach(process.pid)
        await second.stdin.write("for the second\n")
        async with asyncio.timeout(30):
            assert (await second.wait()).stdout == "for the second\n"
            # The first is told, or has the same answer; it does not wait for ever.
            await asyncio.wait((waiting,))
    if waiting.exception() is None:
        assert waiting.result().exit_code == 4


async def test_a_client_that_dies_takes_only_its_foreground_along(detached: Sandbox) -> None:
    body = """
        sandbox = await Sandbox.connect("detached")
        await sandbox.start("exec sleep 996")
        asyncio.create_task(sandbox.exec("exec sleep 997"))
        while not (await sandbox.exec("pgrep -x -f 'sleep 997'")).ok:
            await asyncio.sleep(0.05)
        print("running", flush=True)
        await asyncio.sleep(600)
    """
    async with elsewhere.started(body) as client:
        assert client.stdout is not None
        assert await client.stdout.readline() == b"running\n"
        client.kill()
        await client.wait()

    async def foreground_is_gone() -> bool:
        return not (await detached.exec(["pgrep", "-x", "-f", "sleep 997"])).ok

    await until(foreground_is_gone)
    assert (await detached.exec(["pgrep", "-x", "-f", "sleep 996"])).ok
    await detached.exec(["pkill", "-x", "-f", "sleep 996"])


async def test_a_new_keeper_takes_over_and_streams_go_on(
    detached: Sandbox, nova_home: Path
) -> None:
    process = await detached.start("echo one; read word; echo $word; exit 5")
    seen = ""
    async for output in process:
        seen += output.text
        break
    running = asyncio.create_task(detached.exec("sleep 4; seq 1 20000"))

    async def runs() -> bool:
        return (await detached.exec(["pgrep", "-x", "-f", "sleep 4"])).ok

    await until(runs)
    (old,) = elsewhere.keepers(nova_home)
    pids = elsewhere.pids(registry.get(detached.id))
    old.send_signal(signal.SIGKILL)
    async with asyncio.timeout(60):
        result = await running
    assert result.stdout.split() == [str(n) for n in range(1, 20_001)]
    await process.stdin.write("two\n")
    async for output in process:
        seen += output.text
    assert seen == "one\ntwo\n"
    assert (await process.wait()).exit_code == 5
    assert elsewhere.pids(registry.get(detached.id)) == pids
    (new,) = elsewhere.keepers(nova_home)
    assert new.pid != old.pid
    assert (await detached.exec("cat /tmp/mark")).stdout == "made elsewhere"


async def test_a_keeper_that_is_asked_to_go_hands_over_too(
    detached: Sandbox, nova_home: Path
) -> None:
    process = await detached.start("read word; echo $word; exit 6")
    await asyncio.to_thread(elsewhere.end_keeper, nova_home)
    assert (await detached.exec("echo on")).stdout == "on\n"
    data = bytes(range(256)) * 2000
    await detached.files.write("/tmp/through-the-new-one", data)
    assert await detached.files.read("/tmp/through-the-new-one") == data
    await process.stdin.write("after\n")
    result = await process.wait()
    assert (result.stdout, result.exit_code) == ("after\n", 6)


async def test_a_paused_one_stays_paused_through_a_new_keeper(
    detached: Sandbox, nova_home: Path
) -> None:
    await detached.pause()
    await asyncio.to_thread(elsewhere.end_keeper, nova_home, signal.SIGKILL)
    async with await Sandbox.connect("detached") as found:
        assert found.state is SandboxState.PAUSED
        with pytest.raises(IllegalTransition):
            await found.exec("true")
        await found.resume()
        assert (await found.exec("cat /tmp/mark")).stdout == "made elsewhere"


async def test_a_keeper_goes_on_taking_over_when_the_one_who_asked_dies(
    detached: Sandbox, nova_home: Path
) -> None:
    await asyncio.to_thread(elsewhere.end_keeper, nova_home, signal.SIGKILL)
    body = 'await Sandbox.connect("detached")'
    async with elsewhere.started(body) as client:
        await until(lambda: elsewhere.keepers(nova_home))
        client.kill()
        await client.wait()
    assert (await detached.exec("cat /tmp/mark")).stdout == "made elsewhere"


async def test_a_keeper_that_dies_while_it_is_asked_is_followed_by_another(
    detached: Sandbox, nova_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = session.RemoteChannel.request
    asked = 0

    def request_and_kill(self: session.RemoteChannel, op: int, *rest: Any, **more: Any) -> Stream:
        nonlocal asked
        stream = request(self, op, *rest, **more)
        if op == CONTROL and b'"adopt"' in bytes(stream.request or b""):
            asked += 1
            if asked == 1:
                elsewhere.end_keeper(nova_home, signal.SIGKILL)
        return stream

    monkeypatch.setattr(session.RemoteChannel, "request", request_and_kill)
    elsewhere.end_keeper(nova_home, signal.SIGKILL)
    # The first may have been on its way to the one that died; the handle goes on.
    with contextlib.suppress(OutcomeUnknown):
        await detached.exec("true")
    assert (await detached.exec("echo again")).stdout == "again\n"
    assert asked >= 1


async def test_it_ends_when_another_process_kills_it(detached: Sandbox, nova_home: Path) -> None:
    pids = elsewhere.pids(registry.get(detached.id))
    running = asyncio.create_task(detached.exec("sleep 998"))
    await elsewhere.run('await (await Sandbox.connect("detached")).kill()')
    with pytest.raises(SandboxFailed):
        await running
    with pytest.raises((SandboxFailed, SandboxNotFound)):
        await detached.exec("true")
    with pytest.raises(SandboxNotFound, match="killed"):
        await Sandbox.connect("detached")
    assert all(map(is_gone, pids))
    assert detached.id not in elsewhere.living(nova_home)


async def test_its_time_to_live_is_kept_through_a_dead_keeper(qemu: str, nova_home: Path) -> None:
    identity = (await elsewhere.run("print((await Sandbox.create(detach=True)).id)")).strip()
    pids = elsewhere.pids(registry.get(identity))
    sandbox = await Sandbox.connect(identity)
    await sandbox.set_timeout(1)
    await sandbox.close()
    elsewhere.end_keeper(nova_home, signal.SIGKILL)
    await asyncio.sleep(1)  # Its time passes, and nobody is there to see it.

    async def come_late() -> None:
        late = await Sandbox.connect(identity)
        await late.exec("sleep 60")

    with pytest.raises(SandboxExpired):
        await come_late()
    await until(lambda: all(map(is_gone, pids)), within=10)
    await until(lambda: identity not in elsewhere.living(nova_home), within=10)


async def test_a_maker_that_is_killed_takes_its_half_made_sandbox_along(
    qemu: str, nova_home: Path
) -> None:
    before = elsewhere.living(nova_home)
    async with elsewhere.started("await Sandbox.create(detach=True, timeout=None)") as maker:
        await until(lambda: elsewhere.living(nova_home) - before)
        maker.kill()
        await maker.wait()
    await until(lambda: elsewhere.living(nova_home) == before)


async def test_a_keeper_killed_in_the_middle_of_a_pause_loses_nothing(
    qemu: str, nova_home: Path
) -> None:
    sandbox = await Sandbox.create(detach=True, timeout=600)
    # The machine stands still, and the record does not say so yet.
    monitor = Qmp(registry.get(sandbox.id).directory / "qmp.sock")
    await monitor.execute("stop")
    await monitor.close()
    elsewhere.end_keeper(nova_home, signal.SIGKILL)
    async with await Sandbox.connect(sandbox.id) as found:
        assert found.state is SandboxState.RUNNING
        assert (await found.exec("echo on")).stdout == "on\n"
        await found.kill()
    await sandbox.close()
