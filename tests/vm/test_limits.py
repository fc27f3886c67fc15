"""A guest at its limits: memory, processes, disk. The next command always works."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator

import pytest

from novasandbox import Sandbox
from novasandbox.errors import CommandNotStarted, FileError, OperationTimeout
from waiting import until

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
async def small(qemu: str) -> AsyncIterator[Sandbox]:
    """256 MiB of memory, 24 MiB of disk; every test leaves it usable."""
    async with Sandbox.create(memory_mib=256, disk_mib=24, timeout=None) as sandbox:
        yield sandbox


async def _works(sandbox: Sandbox) -> None:
    async with asyncio.timeout(60):
        assert (await sandbox.exec("echo on")).stdout == "on\n"


async def _none_runs(sandbox: Sandbox, pattern: str) -> bool:
    return not (await sandbox.exec(["pgrep", "-f", pattern])).ok


async def test_a_hog_dies_and_the_result_says_out_of_memory(small: Sandbox) -> None:
    hog = "blocks = []\nwhile True: blocks.append(b'x' * 4_000_000)"
    result = await small.exec(["python3", "-c", hog], timeout=100)
    assert result.out_of_memory
    assert result.signal == "SIGKILL"
    await _works(small)
    innocent = await small.exec("exit 3")
    assert (innocent.out_of_memory, innocent.exit_code) == (False, 3)
    assert (await small.metrics()).guest.out_of_memory_kills >= 1


async def test_a_hog_of_roots_dies_too(small: Sandbox) -> None:
    hog = "blocks = []\nwhile True: blocks.append(b'x' * 4_000_000)"
    result = await small.exec(["python3", "-c", hog], user="root", timeout=100)
    assert result.out_of_memory
    await _works(small)


async def test_a_hog_behind_a_shell_is_told_as_well(small: Sandbox) -> None:
    hog = 'python3 -c "x = bytearray(1 << 30)"; echo survived; exit 4'
    result = await small.exec(hog, timeout=100)
    assert result.out_of_memory or "MemoryError" in result.stderr
    assert result.exit_code in (4, 137)
    await _works(small)


async def test_memory_filled_with_files_leaves_room_for_the_next_command(small: Sandbox) -> None:
    await small.exec("head -c 1G /dev/zero > /dev/shm/fill", timeout=100)
    await _works(small)
    assert (await small.exec("rm -f /dev/shm/fill", user="root")).ok
    await _works(small)


async def test_a_thousand_processes_are_held_or_refused_and_then_gone(small: Sandbox) -> None:
    fork = (
        "import os, signal\n"
        "count = 0\n"
        "try:\n"
        "    for count in range(1000):\n"
        "        if os.fork() == 0: signal.pause()\n"
        "except OSError: pass\n"
        "print('forked', count, flush=True); signal.pause()\n"
    )
    process = await small.start(["python3", "-c", fork])
    async with asyncio.timeout(120):
        # It says how many there are, or it was killed for the memory that they took.
        async for output in process:
            assert output.text.startswith("forked")
            break
        await _works(small)
        await process.kill()
        await process.wait()
    await until(lambda: _none_runs(small, "signal[.]pause"))
    await _works(small)


async def test_a_fork_bomb_can_be_killed(small: Sandbox) -> None:
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    process = await small.start(["python3", "-c", bomb])
    await asyncio.sleep(0)
    async with asyncio.timeout(120):
        await _works(small)
        await process.kill()
        await process.wait()
        await _works(small)
    await until(lambda: _none_runs(small, "os[.]fork"))


async def test_a_full_disk_is_an_error_and_then_no_more(small: Sandbox) -> None:
    await small.files.write("before", "kept")
    filled = await small.exec("head -c 1G /dev/zero > fill; echo x > more; sync")
    assert "No space left" in filled.stderr
    await _works(small)
    with pytest.raises(FileError) as caught:
        await small.files.write("new", bytes(1 << 20))
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(FileError):
        await small.files.append("before", bytes(1 << 20))
    assert await small.files.read("before") == b"kept"
    guest = (await small.metrics()).guest
    assert guest.disk_used > guest.disk_total * 0.8
    await small.files.remove("fill")
    await small.files.write("new", bytes(1 << 20))
    await _works(small)


async def test_a_disk_filled_by_root_leaves_the_agent_at_work(small: Sandbox) -> None:
    await small.exec("head -c 1G /dev/zero > /root/fill; sync", user="root")
    await _works(small)
    assert (await small.files.list("/"))[0].name == "bin"
    assert (await small.exec("rm /root/fill", user="root")).ok


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.soak)])
@pytest.mark.timeout(600)
async def test_orphans_leave_no_zombie_and_no_lost_status(sandbox: Sandbox, count: int) -> None:
    places = asyncio.Semaphore(8)

    async def one(number: int) -> int:
        async with places:
            command = ["sh", "-c", f"sleep 0.1 & exit {number % 7}"]
            return (await sandbox.exec(command)).exit_code

    codes = await asyncio.gather(*(one(number) for number in range(count)))
    assert codes == [number % 7 for number in range(count)]

    async def are_gone() -> bool:
        states = (await sandbox.exec("ps -eo stat=,args=")).stdout.splitlines()
        return not any(line.startswith("Z") or "sleep 0.1" in line for line in states)

    await until(are_gone)


async def test_who_stops_all_that_is_his_does_not_stop_the_agent(sandbox: Sandbox) -> None:
    stopper = "import os, signal\nprint('on', flush=True)\nwhile True: os.kill(-1, signal.SIGSTOP)"
    process = await sandbox.start(["python3", "-c", stopper], user="4321")
    async for _ in process:
        break
    for _ in range(5):
        with contextlib.suppress(OperationTimeout, CommandNotStarted):
            await sandbox.exec(["true"], user="4321", timeout=1)
        await _works(sandbox)
    await process.kill()
    await process.wait()


async def test_a_lease_on_a_program_holds_no_one_else_up(sandbox: Sandbox) -> None:
    lease = """
import fcntl, os, shutil, signal, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
shutil.copy('/bin/true', '/dev/shm/tool')
fcntl.fcntl(os.open('/dev/shm/tool', os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
time.sleep(100)
"""
    process = await sandbox.start(["python3", "-c", lease], user="4321")
    async for output in process:
        assert output.text == "held\n"
        break
    async with asyncio.timeout(30):
        with pytest.raises(CommandNotStarted):
            await sandbox.exec(["/dev/shm/tool"], user="4321")
    await _works(sandbox)
    await process.kill()
    await process.wait()
    await sandbox.exec("rm /dev/shm/tool", user="4321", check=True)
