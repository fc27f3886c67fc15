"""A process is known by its id and its start, and its end is noticed at once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from novasandbox.core.owner import Owner


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for its end."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_this_process_is_alive_and_known_again() -> None:
    me = Owner.self()
    assert me.pid == os.getpid()
    assert me.alive
    assert Owner.load(me.as_data()) == me


def test_no_process_has_no_owner(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    with pytest.raises(ProcessLookupError):
        Owner.of(child.pid)


@pytest.mark.parametrize("data", [None, 5, [], {}, {"pid": "1"}, {"pid": 1, "started": "x"}])
def test_what_is_no_owner_loads_as_none(data: object) -> None:
    assert Owner.load(data) is None


def test_an_id_that_was_used_again_is_another_process(child: subprocess.Popen[bytes]) -> None:
    before = replace(Owner.of(child.pid), started=1.0)
    assert not before.alive
    before.kill()
    assert child.poll() is None


def test_a_process_of_another_boot_of_the_host_is_another_process() -> None:
    assert not replace(Owner.self(), boot="an earlier one").alive


def test_setting_the_hosts_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    me = Owner.self()
    monkeypatch.setattr(psutil, "boot_time", lambda: 1.0)
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 1.0)
    assert me.alive
    assert Owner.self() == me


def test_a_zombie_is_dead(child: subprocess.Popen[bytes]) -> None:
    owner = Owner.of(child.pid)
    owner.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    assert not owner.alive
    owner.kill()


async def test_the_end_of_a_child_is_waited_for(child: subprocess.Popen[bytes]) -> None:
    owner = Owner.of(child.pid)
    waiting = asyncio.create_task(owner.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    owner.kill()
    async with asyncio.timeout(20):
        await waiting
    await owner.wait()


async def test_the_end_of_a_process_that_is_no_child_is_waited_for() -> None:
    script = "import subprocess; print(subprocess.Popen(['sleep', '1000'], stdout=2).pid)"
    found = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    out, _ = await found.communicate()
    owner = Owner.of(int(out))
    assert owner.alive
    owner.kill()
    async with asyncio.timeout(20):
        await owner.wait()
    assert not owner.alive


async def test_a_wait_that_is_cancelled_gives_its_descriptor_back(
    child: subprocess.Popen[bytes],
) -> None:
    owner = Owner.of(child.pid)
    before = len(os.listdir("/proc/self/fd"))
    waiting = asyncio.create_task(owner.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert len(os.listdir("/proc/self/fd")) == before
