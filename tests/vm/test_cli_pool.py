"""`nova pool`: pools that the keeper holds, and commands that take from them."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import elsewhere
from command_line import NOVA, nova, results, started
from novasandbox.core import registry

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("own_home")]

KEYS = {"name", "ready", "size", "template", "snapshot", "vcpus", "memory_mib", "disk_mib"}


@pytest.fixture
def pool(own_home: Path, qemu: str) -> Iterator[str]:
    """A pool of one, with its sandbox ready."""
    name = results("pool", "start", "--size", "1")
    yield name
    nova("pool", "stop", name)
    nova("kill", "--all")


def pools() -> Any:
    return nova("pool", "ls", "--json").data


def idle(name: str) -> set[str]:
    return set(results("ps", "--quiet", "--metadata", f"pool={name}").split())


def until_ready(name: str) -> str:
    """Wait until the pool of one is full; gives the sandbox that is next."""
    deadline = time.monotonic() + 60
    while [each["ready"] for each in pools()] != [1]:
        assert time.monotonic() < deadline
    (identity,) = idle(name)
    return identity


def until_gone(identity: str) -> None:
    deadline = time.monotonic() + 10
    while any(record.id == identity for record in registry.records()):
        assert time.monotonic() < deadline


def test_a_pool_is_started_listed_and_stopped(pool: str) -> None:
    assert pool == "debian-python"
    (listed,) = pools()
    assert set(listed) == KEYS
    assert (listed["name"], listed["size"], listed["memory_mib"]) == (pool, 1, 256)
    assert results("pool", "ls", "--quiet") == pool
    assert results("pool", "ls").splitlines()[1].split()[:4] == [pool, "1", "1", pool]
    again = nova("pool", "start", "--json")
    assert (again.code, again.error["type"]) == (125, "InvalidRequest")
    member = until_ready(pool)
    assert results("pool", "stop", pool) == pool
    assert pools() == []
    until_gone(member)
    assert nova("pool", "stop", pool).code == 125


def test_a_run_takes_from_it_and_leaves_nothing(pool: str) -> None:
    member = until_ready(pool)
    done = nova(
        "run", "--pool", "--json", "-e", "A=given", "-c", "import os; print(os.environ['A'])"
    )
    assert (done.code, done.data["stdout"], done.data["sandbox_id"]) == (0, "given\n", member)
    assert member not in results("ps", "--quiet").split()
    assert until_ready(pool) != member


def test_what_is_started_from_it_stays_as_any_other(pool: str, own_home: Path) -> None:
    member = until_ready(pool)
    words = ("--name", "mine", "--timeout", "10m", "--metadata", "for=me", "-e", "A=given")
    assert results("start", "--pool", *words) == member
    (info,) = (each for each in nova("ps", "--json").data if each["id"] == member)
    assert (info["name"], info["metadata"], info["env"]) == ("mine", {"for": "me"}, ["A"])
    assert 500 < info["deadline"] - time.time() <= 600
    assert results("pool", "stop", pool) == pool
    assert results("exec", "mine", "--", "sh", "-c", "hostname; echo $A") == "mine\ngiven"
    # The keeper that took it out of the pool may die: the next one holds it.
    elsewhere.end_keeper(own_home, signal.SIGKILL)
    assert results("exec", "mine", "--", "hostname") == "mine"
    assert results("kill", "mine") == member


def test_where_none_fits_or_none_is_ready_one_is_made(pool: str) -> None:
    member = until_ready(pool)
    other = results("start", "--pool", "--memory", "300M")
    assert other != member
    assert idle(pool) == {member}
    assert results("kill", other) == other
    # Two at once, of one that is ready.
    first, second = results("start", "--pool"), results("start", "--pool")
    assert first == member
    assert second != first
    results("kill", first, second)
    taken = nova("start", "--pool", "--name", "No Such!")
    assert taken.code == 125


def test_without_a_pool_nothing_is_different(own_home: Path, qemu: str) -> None:
    elsewhere.end_keeper(own_home)
    assert pools() == []
    assert nova("pool", "stop", "none").code == 125
    assert results("run", "--pool", "-c", "print(6*7)") == "42"
    # Asking has started no keeper.
    assert elsewhere.keepers(own_home) == []


def test_a_command_killed_at_once_takes_what_it_took_with_it(pool: str) -> None:
    member = until_ready(pool)
    code = "import time; print('on', flush=True); time.sleep(600)"
    with started("run", "--pool", "-c", code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        assert member in {record.id for record in registry.records()}
        process.kill()
    until_gone(member)


def test_a_pool_that_cannot_be_is_told_and_is_not_there(own_home: Path, qemu: str) -> None:
    for words in (("--template", "no-such"), ("--size", "0"), ("--memory", "1M")):
        assert nova("pool", "start", *words).code in (2, 125)
    assert pools() == []


def test_its_members_end_with_the_keeper(pool: str, own_home: Path) -> None:
    member = until_ready(pool)
    elsewhere.end_keeper(own_home)
    assert member not in results("ps", "--quiet").split()
    assert pools() == []


def test_ctrl_c_while_it_starts_leaves_no_pool(own_home: Path, qemu: str) -> None:
    assert results("pool", "start", "--name", "first") == "first"

    async def interrupted() -> int:
        process = await asyncio.create_subprocess_exec(*NOVA, "pool", "start", "--name", "second")
        while "second" not in {each["name"] for each in pools()}:
            await asyncio.sleep(0)
        process.send_signal(signal.SIGINT)
        return await process.wait()

    code = asyncio.run(interrupted())
    if code:  # Else it was quicker.
        assert code == 130
        deadline = time.monotonic() + 30
        while [each["name"] for each in pools()] != ["first"]:
            assert time.monotonic() < deadline
    results("pool", "stop", *(each["name"] for each in pools()))
