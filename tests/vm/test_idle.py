"""A sandbox that nobody uses rests; whoever uses it again notices nothing of that."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import elsewhere
from command_line import nova, results
from novasandbox import Pool, Sandbox, SandboxState
from novasandbox.core import registry
from novasandbox.core.hypervisor import OnTimeout
from novasandbox.core.pool import LABEL
from novasandbox.errors import IllegalTransition, SandboxExpired
from waiting import is_gone, until

pytestmark = pytest.mark.vm

RESTING = {"pause": SandboxState.PAUSED, "hibernate": SandboxState.HIBERNATED}
wishes = pytest.mark.parametrize("wish", ["pause", "hibernate"])


async def _text(sandbox: Sandbox, command: str) -> str:
    return (await sandbox.exec(command, check=True)).stdout.strip()


def _state(sandbox: Sandbox) -> SandboxState:
    return registry.get(sandbox.id).state


async def _rests(sandbox: Sandbox, wish: str = "hibernate") -> None:
    await until(lambda: _state(sandbox) is RESTING[wish], within=20)


async def _stays_awake(sandbox: Sandbox, seconds: float = 2.5) -> None:
    """It does not rest for much longer than its idle timeout."""
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        assert _state(sandbox) is SandboxState.RUNNING
        await asyncio.sleep(0.1)


@pytest.fixture
async def drowsy(qemu: str) -> AsyncIterator[Sandbox]:
    """A sandbox that hibernates when nobody uses it for half a second."""
    async with Sandbox.create(timeout=600, idle_timeout=0.5) as sandbox:
        yield sandbox


@wishes
@pytest.mark.parametrize("detach", [False, True])
async def test_an_idle_sandbox_rests_and_the_next_call_finds_all_as_it_was(
    nova_home: Path, qemu: str, wish: OnTimeout, detach: bool
) -> None:
    sandbox = await Sandbox.create(timeout=600, idle_timeout=0.5, on_idle=wish, detach=detach)
    deadline = registry.get(sandbox.id).deadline
    assert deadline is not None
    await sandbox.run_code("x = 41")
    await _text(sandbox, "echo disk >f; echo memory >/dev/shm/f")
    for turn in range(2):
        await _rests(sandbox, wish)
        if turn:
            assert (await sandbox.run_code("x + 1")).text == "42"
        else:
            assert await _text(sandbox, "cat f /dev/shm/f") == "disk\nmemory"
        # Neither what is idle nor a call changes its lifetime; asleep, it stands still.
        now = registry.get(sandbox.id).deadline
        assert now is not None
        assert now == deadline if wish == "pause" else now >= deadline
    await sandbox.kill()
    if detach:
        elsewhere.end_keeper(nova_home)


async def test_an_idle_sandbox_may_end_and_says_so(qemu: str, nova_home: Path) -> None:
    sandbox = await Sandbox.create(timeout=600, idle_timeout=0.5, on_idle="kill")
    pid = (await sandbox.info()).pid
    assert pid is not None
    await until(lambda: is_gone(pid))
    with pytest.raises(SandboxExpired, match=r"nobody used it for 0\.5 s"):
        await sandbox.exec("true")
    await until(lambda: sandbox.id not in elsewhere.living(nova_home))
    with pytest.raises(SandboxExpired, match="nobody used it"):
        await Sandbox.connect(sandbox.id)


async def test_whoever_waits_for_something_keeps_it_awake(drowsy: Sandbox) -> None:
    silent = asyncio.create_task(drowsy.exec("sleep 3"))
    await _stays_awake(drowsy)
    assert (await silent).exit_code == 0
    cell = asyncio.create_task(drowsy.run_code("import time; time.sleep(3)"))
    await _stays_awake(drowsy)
    assert (await cell).error is None
    terminal = await drowsy.start("sleep 1000", pty=True)
    await _stays_awake(drowsy)
    await terminal.kill()
    terminal.detach()
    async with drowsy.files.watching("/tmp"):
        await _stays_awake(drowsy)
    waiting = asyncio.create_task((await drowsy.start("sleep 3")).wait())
    await _stays_awake(drowsy)
    assert (await waiting).exit_code == 0
    await _rests(drowsy)


async def test_an_open_connection_keeps_it_awake_and_a_new_one_wakes_it(drowsy: Sandbox) -> None:
    await drowsy.start(["python3", "-c", _ECHO])
    host, port = (await drowsy.expose(7000)).split(":")
    await until(lambda: _echoes(host, int(port)))
    _, writer = await asyncio.open_connection(host, int(port))
    await _stays_awake(drowsy)
    writer.close()
    for _ in range(2):
        # Its port stays open: who connects finds it awake.
        await _rests(drowsy)
        assert (await drowsy.info()).ports == {7000: f"{host}:{port}"}
        assert await _echoes(host, int(port))


_ECHO = (
    "import socket\n"
    "s = socket.create_server(('127.0.0.1', 7000))\n"
    "while True:\n"
    "    c, _ = s.accept()\n"
    "    while d := c.recv(100): c.sendall(d)\n"
    "    c.close()\n"
)


async def _echoes(host: str, port: int) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"?\n")
        return await reader.readline() == b"?\n"
    except ConnectionError:
        return False
    finally:
        writer.close()


async def test_a_process_that_computes_keeps_it_awake_and_one_that_waits_does_not(
    qemu: str,
) -> None:
    async with Sandbox.create(timeout=600, idle_timeout=1) as sandbox:
        busy = await sandbox.start("while :; do :; done")
        await _stays_awake(sandbox, 4)
        await busy.kill()
        asleep = await sandbox.start("sleep 1000")
        asking = await sandbox.start("read line; echo got $line; sleep 1000")
        await _rests(sandbox)
        # Handles on what waits in the background go on over the sleep.
        await asking.stdin.write("a line\n")
        async for output in asking:
            assert output.text == "got a line\n"
            break
        await _rests(sandbox)
        await asleep.kill()
        assert (await asleep.wait()).signal == "SIGKILL"


@wishes
async def test_a_handle_of_another_process_goes_on_as_well(
    nova_home: Path, qemu: str, wish: OnTimeout
) -> None:
    async with Sandbox.create(timeout=600, idle_timeout=0.5, on_idle=wish) as sandbox:
        body = """
            sandbox = await Sandbox.connect(sys.argv[1])
            process = await sandbox.start("read line; echo got $line; sleep 1000")
            print("started", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            await process.stdin.write("a line\\n")
            async for output in process:
                print(output.text, end="", flush=True)
                break
            await process.kill()
            print((await process.wait()).signal, flush=True)
            await sandbox.close()
        """
        async with elsewhere.started(body, sandbox.id, stdin=asyncio.subprocess.PIPE) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            assert await other.stdout.readline() == b"started\n"
            await _rests(sandbox, wish)
            other.stdin.write(b"go on\n")
            assert await other.stdout.readline() == b"got a line\n"
            assert await other.stdout.readline() == b"SIGKILL\n"
            assert await other.wait() == 0


async def test_one_that_its_user_has_paused_is_not_idle(qemu: str) -> None:
    async with Sandbox.create(timeout=600, idle_timeout=0.5) as sandbox:
        await sandbox.pause()
        await asyncio.sleep(1.5)
        assert _state(sandbox) is SandboxState.PAUSED
        with pytest.raises(IllegalTransition):
            await sandbox.exec("true")
        await sandbox.resume()
        await _rests(sandbox)
        # Pausing counts as a call; of one that is at rest it makes one that stays paused.
        await sandbox.pause()
        assert _state(sandbox) is SandboxState.PAUSED
    async with Sandbox.create(timeout=600, idle_timeout=0.5, on_idle="pause") as sandbox:
        await _rests(sandbox, "pause")
        await sandbox.pause()
        with pytest.raises(IllegalTransition):
            await sandbox.exec("true")
        await sandbox.resume()
        assert await _text(sandbox, "echo on") == "on"


@wishes
async def test_every_verb_finds_it_as_if_it_were_awake(
    nova_home: Path, qemu: str, wish: OnTimeout
) -> None:
    async with Sandbox.create(timeout=600, idle_timeout=0.5, on_idle=wish) as sandbox:
        await _text(sandbox, "echo then >f")
        await _rests(sandbox, wish)
        taken = await sandbox.snapshot()
        await _rests(sandbox, wish)
        await sandbox.set_timeout(500)
        await _rests(sandbox, wish)
        (child,) = await sandbox.fork()
        async with child, Sandbox.create(snapshot=taken.id) as copy:
            for each in (child, copy):
                assert await _text(each, "cat f") == "then"
                # They do when idle what it does.
                await _rests(each, wish)
        await _rests(sandbox, wish)
        assert (await sandbox.metrics()).machine["rss_bytes"]
        await _rests(sandbox, wish)
        await sandbox.rollback(taken.id)
        await _rests(sandbox, wish)
        # At rest already, and now for good: its next user may be another process.
        await sandbox.hibernate()
        assert (await sandbox.info()).state is SandboxState.HIBERNATED
        again = await Sandbox.connect(sandbox.id)
        assert await _text(again, "cat f") == "then"
        await again.kill()
    await Sandbox.remove_snapshot(taken.id)


async def test_it_ends_with_its_block_also_where_it_fell_asleep_in_it(
    nova_home: Path, qemu: str
) -> None:
    async with Sandbox.create(timeout=600, idle_timeout=0.5) as sandbox:
        await _rests(sandbox)
    assert sandbox.id not in elsewhere.living(nova_home)


@wishes
async def test_its_time_to_live_is_kept_while_it_is_idle(qemu: str, wish: OnTimeout) -> None:
    sandbox = await Sandbox.create(timeout=3, idle_timeout=0.5, on_idle=wish)
    await _rests(sandbox, wish)
    if wish == "hibernate":
        # Asleep, its time stands still.
        await asyncio.sleep(3)
        assert await _text(sandbox, "echo on") == "on"
        running = asyncio.create_task(sandbox.exec("sleep 60"))
        with pytest.raises(SandboxExpired, match="time-to-live"):
            await running
    await until(lambda: not registry.exists(sandbox.id), within=20)
    with pytest.raises(SandboxExpired, match="time-to-live"):
        await sandbox.exec("true")


async def test_one_of_a_pool_is_not_idle_until_it_is_taken(qemu: str) -> None:
    async with Pool(size=1, idle_timeout=0.5) as pool:
        await pool.ready()
        (waiting,) = await Sandbox.list(metadata={LABEL: pool.name})
        await asyncio.sleep(2)
        async with await pool.acquire() as sandbox:
            assert sandbox.id == waiting.id
            assert await _text(sandbox, "echo kept >/dev/shm/f") == ""
            await _rests(sandbox)
            assert await _text(sandbox, "cat /dev/shm/f") == "kept"
            taken = await sandbox.snapshot()
    # As there, unless it is said otherwise.
    async with Pool(snapshot=taken.id, size=2) as pool:
        await pool.ready()
        async with await pool.acquire() as sandbox:
            await _rests(sandbox)
    never = Pool(snapshot=taken.id, size=1, idle_timeout=math.inf)
    async with never, await never.acquire() as sandbox:
        await _stays_awake(sandbox)
    await Sandbox.remove_snapshot(taken.id)


# Whoever holds it.


@wishes
async def test_it_is_woken_in_another_process_when_its_maker_is_gone(
    nova_home: Path, qemu: str, wish: OnTimeout
) -> None:
    body = """
        sandbox = await Sandbox.create(
            timeout=600, idle_timeout=0.5, on_idle=sys.argv[1], detach=sys.argv[2] == "True"
        )
        await sandbox.run_code("x = 41")
        print(sandbox.id, flush=True)
        while (await sandbox.info()).state.value == "running":
            await asyncio.sleep(0.05)
    """
    detach = wish == "pause"
    identity = (await elsewhere.run(body, wish, str(detach))).strip()
    if detach:
        elsewhere.end_keeper(nova_home, signal.SIGKILL)
    assert registry.get(identity).state is RESTING[wish]
    sandbox = await Sandbox.connect(identity)
    for _ in range(2):
        assert (await sandbox.run_code("x + 1")).text == "42"
        await _rests(sandbox, wish)
    await sandbox.kill()
    elsewhere.end_keeper(nova_home)


@wishes
async def test_a_client_does_not_notice_that_its_keeper_ended_while_it_was_idle(
    nova_home: Path, qemu: str, wish: OnTimeout
) -> None:
    sandbox = await Sandbox.create(timeout=600, idle_timeout=0.5, on_idle=wish, detach=True)
    await sandbox.run_code("x = 41")
    for number in (signal.SIGTERM, signal.SIGKILL):
        await _rests(sandbox, wish)
        elsewhere.end_keeper(nova_home, number)
        await asyncio.sleep(0.2)
        assert _state(sandbox) is RESTING[wish]
        assert (await sandbox.run_code("x + 1")).text == "42"
    await sandbox.kill()
    elsewhere.end_keeper(nova_home)


def test_nova_starts_one_that_sleeps_when_idle(own_home: Path, qemu: str) -> None:
    words = ("--idle-timeout", "500ms", "--on-idle", "hibernate", "--on-timeout", "hibernate")
    box = results("start", "--name", "drowsy", *words)
    assert nova("exec", box, "--", "sh", "-c", "echo kept >/dev/shm/f").code == 0

    def listed() -> dict[str, object]:
        (info,) = nova("ps", "--json").data
        return dict(info)

    for _ in range(100):
        if listed()["state"] == "hibernated":
            break
    info = listed()
    assert (info["state"], info["idle_timeout"]) == ("hibernated", 0.5)
    assert (info["on_idle"], info["on_timeout"]) == ("hibernate", "hibernate")
    assert results("exec", box, "--", "cat", "/dev/shm/f") == "kept"
    assert results("kill", box) == box


# The moment in which it falls asleep.


HAMMER = """
    import random
    sandbox = await Sandbox.connect(sys.argv[1])
    chance = random.Random(int(sys.argv[2]))
    for number in range(int(sys.argv[3])):
        await asyncio.sleep(chance.uniform(0.3, 0.75))
        calls = [sandbox.exec(f"echo {sys.argv[2]}-{number}-{i} >>f", check=True) for i in range(2)]
        await asyncio.gather(*calls)
        if number % 5 == 4:
            await sandbox.close()
            sandbox = await Sandbox.connect(sys.argv[1])
    await sandbox.close()
"""
TURNS = int(os.environ.get("NOVA_HAMMER", "12"))


@wishes
@pytest.mark.parametrize("detach", [False, True])
async def test_no_call_fails_or_runs_twice_in_the_moment_it_falls_asleep(
    nova_home: Path, qemu: str, wish: OnTimeout, detach: bool
) -> None:
    sandbox = await Sandbox.create(timeout=600, idle_timeout=0.2, on_idle=wish, detach=detach)
    chance = random.Random(0)

    async def here() -> None:
        for number in range(TURNS):
            await asyncio.sleep(chance.uniform(0.3, 0.75))
            await asyncio.gather(
                sandbox.exec(f"echo 0-{number}-0 >>f", check=True),
                sandbox.exec(["sh", "-c", "cat >>f"], stdin=f"0-{number}-1\n", check=True),
            )

    others = [elsewhere.run(HAMMER, sandbox.id, str(each), str(TURNS)) for each in (1, 2)]
    await asyncio.gather(here(), *others)
    expected = {f"{who}-{n}-{i}" for who in range(3) for n in range(TURNS) for i in range(2)}
    assert Counter((await _text(sandbox, "cat f")).split()) == Counter(expected)
    rested = [e for e in await sandbox.events() if e.kind in ("paused", "hibernated")]
    assert len(rested) > 2
    await sandbox.kill()
    if detach:
        elsewhere.end_keeper(nova_home)
