"""Pools: one taker for each sandbox, whatever dies, is refused, is cancelled or is full."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import elsewhere
from novasandbox import Pool, Sandbox, SandboxState, sync
from novasandbox.core import admission, host_load, registry
from novasandbox.core.pool import LABEL
from novasandbox.errors import (
    CapacityExceeded,
    InvalidConfig,
    InvalidRequest,
    NameTaken,
    SandboxExpired,
    SandboxNotFound,
    TemplateNotFound,
)
from waiting import until

pytestmark = pytest.mark.vm

# What no two guests may have in common.
IDENTITY = (
    "import random, uuid\n"
    "for name in '/etc/machine-id', '/proc/sys/kernel/random/boot_id':\n"
    "    print(open(name).read(), end='')\n"
    "print(random.random(), uuid.uuid4(), open('/dev/urandom', 'rb').read(8).hex())"
)


@pytest.fixture(autouse=True)
async def nothing_left(nova_home: Path) -> AsyncIterator[None]:
    """After each test there are as many sandboxes and places as before."""
    before, places = elsewhere.living(nova_home), admission.usage().sandboxes
    yield
    await until(lambda: elsewhere.living(nova_home) == before, within=10)
    await until(lambda: admission.usage().sandboxes == places, within=10)


@pytest.fixture
async def pool(qemu: str) -> AsyncIterator[Pool]:
    """A pool of two, both ready."""
    async with Pool(size=2) as made:
        await made.ready()
        yield made


async def _idle(pool: Pool) -> set[str]:
    return {info.id for info in await Sandbox.list(metadata={LABEL: pool.name})}


async def _end(*sandboxes: Sandbox) -> None:
    await asyncio.gather(*(sandbox.kill() for sandbox in sandboxes))


def _kill_machine(identity: str) -> None:
    machine = registry.get(identity).machine
    assert machine is not None
    os.kill(machine["pid"], signal.SIGKILL)


async def test_what_is_taken_has_its_takers_settings_and_nothing_else(pool: Pool) -> None:
    infos = await Sandbox.list(metadata={LABEL: pool.name})
    assert [info.state for info in infos] == [SandboxState.RUNNING] * 2
    assert [info.deadline for info in infos] == [None] * 2
    before = time.time()
    sandbox = await pool.acquire(
        name="taken", env={"A": "x y"}, metadata={"of": "mine"}, timeout=60, cwd="/tmp"
    )
    async with sandbox:
        assert sandbox.id in {info.id for info in infos}
        assert (sandbox.name, sandbox.config.cwd) == ("taken", "/tmp")
        info = await sandbox.info()
        assert (info.metadata, info.env) == ({"of": "mine"}, ("A",))
        assert info.deadline is not None
        assert before + 59 < info.deadline < time.time() + 61
        here = await sandbox.exec("hostname; echo $A; pwd; id -un; date +%s.%N", check=True)
        name, value, folder, user, clock = here.stdout.split("\n")[:5]
        assert (name, value, folder, user) == ("taken", "x y", "/tmp", "user")
        assert before - 1 < float(clock) < time.time() + 1
        cell = await sandbox.run_code("import os\nprint(os.environ['A'], os.getcwd())\n6*7")
        assert (cell.stdout, cell.text) == ("x y /tmp\n", "42")
        found = await Sandbox.connect("taken")
        assert found.id == sandbox.id
        await found.close()
        assert "taken" in [event.kind for event in await sandbox.events()]


async def test_the_first_cell_finds_nothing_of_the_one_that_warmed_it(pool: Pool) -> None:
    async with await pool.acquire() as sandbox:
        cell = await sandbox.run_code("[name for name in dir() if name[0] != '_']")
        assert (cell.text, cell.execution_count) == ("[]", 1)
        assert [context.id for context in await sandbox.contexts.list()] == ["default"]
        assert (await sandbox.info()).metadata == {}


async def test_more_takers_than_members_get_a_machine_each_in_their_order(pool: Pool) -> None:
    served: list[int] = []

    async def take(number: int) -> Sandbox:
        sandbox = await pool.acquire()
        served.append(number)
        return sandbox

    sandboxes = await asyncio.gather(*(take(number) for number in range(6)))
    try:
        # Those who can be served at once are so side by side.
        beside = max(pool.size, host_load.processors() // 2)
        assert all(abs(place - number) < beside for place, number in enumerate(served))
        assert len({sandbox.id for sandbox in sandboxes}) == 6
        cells = await asyncio.gather(*(each.run_code(IDENTITY) for each in sandboxes))
        lines = [set(cell.stdout.split()) for cell in cells]
        assert all(len(each) == 5 for each in lines)
        assert len(set.union(*lines)) == 6 * 5
        # It fills up again, and with others.
        await pool.ready()
        assert not await _idle(pool) & {sandbox.id for sandbox in sandboxes}
    finally:
        await _end(*sandboxes)


@pytest.mark.soak
async def test_forty_takers_of_a_pool_of_five_get_forty_machines(qemu: str) -> None:
    async with Pool(size=5) as pool:
        sandboxes = await asyncio.gather(*(pool.acquire() for _ in range(40)))
        assert len({sandbox.id for sandbox in sandboxes}) == 40
        await _end(*sandboxes)


async def test_a_member_that_dies_is_noticed_and_replaced(pool: Pool) -> None:
    dead, other = await _idle(pool)
    _kill_machine(dead)
    await until(lambda: pool.idle == 1)
    await pool.ready()
    now = await _idle(pool)
    assert other in now
    assert dead not in now
    assert len(now) == 2


async def test_nobody_gets_a_dead_one_though_nobody_has_noticed_yet(pool: Pool) -> None:
    dead = await _idle(pool)
    for identity in dead:
        _kill_machine(identity)
    async with await pool.acquire() as sandbox:
        assert sandbox.id not in dead
        assert (await sandbox.run_code("6*7")).text == "42"


async def test_one_that_somebody_else_has_put_to_rest_is_not_handed_out(pool: Pool) -> None:
    first, second = await _idle(pool)
    for identity, verb in ((first, "pause"), (second, "hibernate")):
        other = await elsewhere.run(
            f"""
            sandbox = await Sandbox.connect(sys.argv[1])
            await sandbox.{verb}()
            await sandbox.close()
            """,
            identity,
        )
        assert other == ""
    async with await pool.acquire() as sandbox:
        assert sandbox.id not in (first, second)
        assert (await sandbox.exec("echo on")).stdout == "on\n"
    await until(lambda: not {first, second} & {record.id for record in registry.records()})


async def test_what_cannot_get_its_settings_is_ended(pool: Pool) -> None:
    before = await _idle(pool)
    with pytest.raises(InvalidConfig, match="refused its settings"):
        await pool.acquire(user="No Such")
    refused = before - await _idle(pool)
    await until(lambda: not refused & {record.id for record in registry.records()})
    assert len(refused) == 1
    # What is wrong by itself costs no member.
    await pool.ready()
    before = await _idle(pool)
    with pytest.raises(InvalidConfig):
        await pool.acquire(cwd="relative")
    assert await _idle(pool) == before


async def test_a_name_that_is_taken_leaves_the_member_to_the_next(
    pool: Pool, sandbox: Sandbox
) -> None:
    before = await _idle(pool)
    with pytest.raises(NameTaken, match=sandbox.id):
        await pool.acquire(name="shared")
    assert await _idle(pool) == before
    taken = await asyncio.gather(
        *(pool.acquire(name="wanted") for _ in range(2)), return_exceptions=True
    )
    names = [each.name for each in taken if isinstance(each, Sandbox)]
    assert names == ["wanted"]
    assert [type(each) for each in taken if not isinstance(each, Sandbox)] == [NameTaken]
    await _end(*(each for each in taken if isinstance(each, Sandbox)))


async def test_another_user_has_an_interpreter_of_his_own(qemu: str) -> None:
    env = {"P": "pool", "A": "pool"}
    async with Pool(size=1, env=env, cwd="/tmp") as pool:
        sandbox = await pool.acquire(user="root", env={"A": "taker"})
        async with sandbox:
            cell = await sandbox.run_code(
                "import os; print(os.getuid(), os.environ['P'], os.environ['A'], os.getcwd())"
            )
            assert cell.stdout == "0 pool taker /tmp\n"
            assert (await sandbox.exec("id -u; echo $A; pwd")).stdout == "0\ntaker\n/tmp\n"
            assert (await sandbox.info()).env == ("A", "P")


async def test_its_time_begins_when_it_is_taken(pool: Pool) -> None:
    sandbox = await pool.acquire(timeout=0.5)
    await until(lambda: sandbox.state.ended)
    with pytest.raises(SandboxExpired):
        await sandbox.exec("true")
    async with await pool.acquire(timeout=None) as other:
        assert (await other.info()).deadline is None


async def test_a_snapshots_copies_can_be_kept_ready(own_sandbox: Sandbox) -> None:
    await own_sandbox.run_code("kept = 6 * 7")
    await own_sandbox.exec("echo state >note")
    snapshot = await own_sandbox.snapshot("for-pool")
    try:
        async with Pool(snapshot="for-pool", size=1) as pool:
            copy = await pool.acquire(env={"A": "1"})
            async with copy:
                assert (await copy.exec("cat note; echo $A")).stdout == "state\n1\n"
                assert (await copy.run_code("kept")).text == "42"
    finally:
        await Sandbox.remove_snapshot(snapshot.id)


# Waiting, and giving up.


async def test_a_taker_who_waits_too_long_is_told_so(qemu: str) -> None:
    async with Pool(size=0) as pool:
        with pytest.raises(CapacityExceeded, match="in time"):
            await pool.acquire(timeout_wait=0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await pool.acquire()
        async with await pool.acquire(timeout_wait=60) as sandbox:
            assert await sandbox.ping() < 10


async def test_takers_who_give_up_at_any_moment_lose_no_machine(
    pool: Pool, nova_home: Path, qemu: str
) -> None:
    others = elsewhere.living(nova_home) - await _idle(pool)
    got: list[Sandbox] = []

    async def take(patience: float) -> None:
        async with asyncio.timeout(patience):
            got.append(await pool.acquire())

    for round_ in range(3):
        takers = [take(0.001 * 2**step + 0.0007 * round_) for step in range(6)]
        await asyncio.gather(*takers, return_exceptions=True)
    await pool.ready()
    known = {sandbox.id for sandbox in got}
    assert len(known) == len(got)

    async def only_known() -> bool:
        return elsewhere.living(nova_home) - others == known | await _idle(pool)

    await until(only_known)
    await _end(*got)


async def test_closed_while_it_creates_it_leaves_nothing(nova_home: Path, qemu: str) -> None:
    for steps in (0.0, 0.05, 0.2):
        pool = Pool(size=3)
        pool.start()
        if steps:
            await until(lambda pool=pool: _idle(pool))
            await asyncio.sleep(steps)
        await pool.close()
        assert await _idle(pool) == set()
        with pytest.raises(InvalidRequest, match="closed"):
            await pool.acquire()


async def test_closed_it_ends_what_is_idle_and_what_was_taken_lives_on(qemu: str) -> None:
    async with Pool(size=1) as pool:
        taken = await pool.acquire()
        waiting = [asyncio.create_task(pool.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(result, Sandbox):
            await result.kill()
        else:
            assert isinstance(result, InvalidRequest)
    assert (await taken.run_code("6*7")).text == "42"
    await pool.close()
    await taken.kill()


async def test_its_members_die_with_their_process(nova_home: Path, qemu: str) -> None:
    body = """
    from novasandbox import Pool
    pool = Pool(size=1, name="doomed")
    await pool.ready()
    print("ready", flush=True)
    await asyncio.Event().wait()
    """
    async with elsewhere.started(body) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        (member,) = await Sandbox.list(metadata={LABEL: "doomed"})
        process.kill()
        await process.wait()
    assert await Sandbox.list(metadata={LABEL: "doomed"}) == []
    with pytest.raises(Exception, match="died"):
        await Sandbox.connect(member.id)


# What goes wrong in making them.


async def test_what_cannot_be_made_is_told_and_not_tried_without_end(
    caplog: pytest.LogCaptureFixture, qemu: str
) -> None:
    caplog.set_level(logging.INFO, "novasandbox.core.pool")
    async with Pool("no-such-template", size=2) as pool:
        for patience in (None, None, 30.0):
            with pytest.raises(TemplateNotFound):
                await pool.acquire(timeout_wait=patience)
        results = await asyncio.gather(*(pool.acquire() for _ in range(5)), return_exceptions=True)
        assert {type(each) for each in results} == {TemplateNotFound}
        with pytest.raises(TemplateNotFound):
            await pool.ready()
        await asyncio.sleep(0.5)
    tries = [each for each in caplog.records if "none could be made" in each.getMessage()]
    assert 1 <= len(tries) <= 4


@pytest.mark.parametrize(
    "config", [{"metadata": {}}, {"timeout": 5}, {"detach": True}, {"size": -1}, {"vcpus": 0}]
)
def test_a_pool_that_cannot_be_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig):
        Pool(**config)


async def test_takers_of_a_pool_on_a_full_host_are_told_so_and_go_on_later(
    monkeypatch: pytest.MonkeyPatch, qemu: str
) -> None:
    monkeypatch.setenv("NOVA_MAX_SANDBOXES", str(admission.usage().sandboxes + 2))
    async with Pool(size=2) as pool:
        taken = [await pool.acquire(), await pool.acquire()]
        with pytest.raises(CapacityExceeded, match="NOVA_MAX_SANDBOXES"):
            await pool.acquire()
        with pytest.raises(CapacityExceeded, match="NOVA_MAX_SANDBOXES"):
            await pool.acquire(timeout_wait=0.5)
        waiting = asyncio.create_task(pool.acquire(timeout_wait=60))
        await taken.pop().kill()
        taken.append(await waiting)
        await _end(*taken)


# Without a loop.


def test_threads_take_from_a_pool_of_the_sync_kind(qemu: str) -> None:
    with sync.Pool(size=2, name="sync-pool") as pool:
        pool.ready()
        assert len(sync.Sandbox.list(metadata={LABEL: "sync-pool"})) == pool.idle == pool.size
        found: list[sync.Sandbox] = []
        threads = [
            threading.Thread(target=lambda: found.append(pool.acquire(metadata={"a": "b"})))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len({sandbox.id for sandbox in found}) == 3
    for sandbox in found:
        with sandbox:
            assert sandbox.run_code("6*7").text == "42"
            assert sandbox.info().metadata == {"a": "b"}
    with pytest.raises(SandboxNotFound):
        sync.Sandbox.connect(found[0].id)
    with pytest.raises(InvalidRequest):
        pool.acquire()
