"""Room for sandboxes: what fits, what is told to who does not, and how a place is given back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from novasandbox.core import admission, host_load
from novasandbox.core.admission import Limits, Usage, admitted, likely_mib, refusal, take
from novasandbox.core.host_load import Memory
from novasandbox.core.hypervisor import SandboxConfig
from novasandbox.errors import CapacityExceeded, InvalidConfig

pytestmark = pytest.mark.usefixtures("own_home")

AMPLE = Memory(total=100_000, available=90_000)
RACER = """
import sys
from novasandbox.core.admission import take
from novasandbox.errors import CapacityExceeded
print("ready", flush=True)
sys.stdin.readline()
rooms = []
try:
    for _ in range(5):
        rooms += take(1)
except CapacityExceeded:
    pass
print(len(rooms), flush=True)
sys.stdin.readline()
"""


def racer() -> subprocess.Popen[str]:
    """A process that takes up to five places when it is told to."""
    return subprocess.Popen(
        [sys.executable, "-c", RACER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str], word: str = "") -> str:
    """What it says next, after it was told `word`."""
    assert process.stdin is not None
    assert process.stdout is not None
    if word:
        process.stdin.write(f"{word}\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


# The arithmetic.


def test_without_limits_only_the_hosts_memory_counts() -> None:
    many = Usage(sandboxes=10_000, memory_mib=10**9)
    assert refusal(256, many, Limits()) is None
    assert refusal(256, many, Limits(), AMPLE) is None


@pytest.mark.parametrize(("used", "fits"), [(0, True), (2, True), (3, False), (4, False)])
def test_so_many_sandboxes_fit_as_are_allowed(used: int, fits: bool) -> None:
    error = refusal(1, Usage(sandboxes=used), Limits(sandboxes=3), AMPLE)
    assert (error is None) is fits


@pytest.mark.parametrize(("wanted", "fits"), [(256, True), (488, True), (489, False)])
def test_guests_together_have_as_much_memory_as_is_allowed(wanted: int, fits: bool) -> None:
    usage = Usage(sandboxes=2, memory_mib=512)
    assert (refusal(wanted, usage, Limits(memory_mib=1000), AMPLE) is None) is fits


def test_the_host_keeps_512_mib_or_a_twentieth() -> None:
    assert Memory(4_000, 0).reserve == 512
    assert Memory(40_000, 0).reserve == 2_000


@pytest.mark.parametrize(
    ("starting", "spare", "fits"), [(0, 0, True), (0, -1, False), (9, 8, False)]
)
def test_what_a_guest_takes_at_first_must_leave_the_host_its_reserve(
    starting: int, spare: int, fits: bool
) -> None:
    memory = Memory(total=8_000, available=512 + likely_mib(256) + spare)
    usage = Usage(sandboxes=1, memory_mib=256, starting_mib=starting)
    assert (refusal(256, usage, Limits(), memory) is None) is fits


def test_no_guest_takes_more_than_all_its_memory_and_qemu() -> None:
    assert likely_mib(64) == 48 + 64
    assert likely_mib(256) == 48 + 48 + 64
    assert likely_mib(4096) < 4096 // 2


def test_a_refusal_says_what_is_used_the_limit_and_what_to_do() -> None:
    count = refusal(256, Usage(sandboxes=3), Limits(sandboxes=3))
    memory = refusal(256, Usage(sandboxes=3, memory_mib=768), Limits(memory_mib=1_000))
    host = refusal(256, Usage(starting_mib=320), Limits(), Memory(8_000, 700))
    assert count is not None
    assert memory is not None
    assert host is not None
    assert "3 of the 3" in str(count)
    assert "raise NOVA_MAX_SANDBOXES" in str(count)
    assert "768 of the 1,000 MiB" in str(memory)
    for number in ("160 MiB", "700 MiB", "512", "320"):
        assert number in str(host)
    for error in (count, memory, host):
        assert "NOVA_ADMISSION_WAIT" in str(error.fix)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NOVA_MAX_SANDBOXES", "many"),
        ("NOVA_MAX_SANDBOXES", "-1"),
        ("NOVA_MAX_MEMORY_MIB", "1.5"),
        ("NOVA_ADMISSION_WAIT", "soon"),
        ("NOVA_ADMISSION_WAIT", "-1"),
        ("NOVA_ADMISSION_WAIT", "nan"),
    ],
)
async def test_a_limit_that_is_no_number_is_named(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(InvalidConfig, match=name):
        async with admitted(SandboxConfig()):
            pass


# Places.


def test_a_place_is_taken_until_it_is_closed_and_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NOVA_MAX_SANDBOXES", "3")
    assert admission.usage() == Usage()
    rooms = [*take(100), *take(200), *take(300)]
    assert (admission.usage().sandboxes, admission.usage().memory_mib) == (3, 600)
    assert admission.usage().starting_mib == sum(map(likely_mib, (100, 200, 300)))
    with pytest.raises(CapacityExceeded):
        take(1)
    rooms[1].close()
    assert admission.usage().memory_mib == 400
    rooms += take(50)
    assert admission.usage().memory_mib == 450
    for room in rooms:
        room.close()
    assert admission.usage() == Usage()


def test_a_place_is_kept_by_whoever_has_its_descriptor(own_home: Path) -> None:
    (room,) = take(256)
    with subprocess.Popen(["sleep", "1000"], pass_fds=[room.fileno()]) as machine:
        room.close()
        assert admission.usage().sandboxes == 1
        machine.kill()
    assert admission.usage().sandboxes == 0


def test_a_killed_maker_gives_its_places_back() -> None:
    with racer() as process:
        assert said(process) == "ready"
        assert said(process, "go") == "5"
        assert admission.usage().sandboxes == 5
        process.send_signal(signal.SIGKILL)
    assert admission.usage().sandboxes == 0


def test_processes_that_race_never_take_more_than_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NOVA_MAX_SANDBOXES", "12")
    processes = [racer() for _ in range(4)]
    try:
        assert [said(each) for each in processes] == ["ready"] * 4
        for each in processes:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        assert sum(int(said(each)) for each in processes) == 12
        assert admission.usage().sandboxes == 12
    finally:
        for each in processes:
            each.communicate("end\n")


def test_the_file_does_not_grow_beyond_what_is_taken(own_home: Path) -> None:
    for room in take(1, 50):
        room.close()
    with take(1)[0]:
        assert os.path.getsize(own_home / "run" / ".slots") == 16


def test_half_a_file_is_no_hindrance(own_home: Path) -> None:
    with take(1)[0]:
        pass
    (own_home / "run" / ".slots").write_bytes(b"x" * 23)
    with take(7)[0]:
        assert admission.usage().memory_mib == 7


def test_several_are_taken_together_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVA_MAX_SANDBOXES", "3")
    with pytest.raises(CapacityExceeded):
        take(1, 4)
    assert admission.usage().sandboxes == 0
    rooms = take(1, 2)
    with pytest.raises(CapacityExceeded):
        take(1, 2)
    assert admission.usage().sandboxes == 2
    rooms += take(1)
    assert admission.usage().sandboxes == 3


# Waiting.


async def test_who_does_not_wait_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVA_MAX_SANDBOXES", "1")
    async with admitted(SandboxConfig()):
        with pytest.raises(CapacityExceeded):
            async with asyncio.timeout(5), admitted(SandboxConfig()):
                pass
    async with admitted(SandboxConfig()):
        assert admission.usage().sandboxes == 1
    assert admission.usage().sandboxes == 0


async def test_who_waits_gets_a_place_in_his_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVA_MAX_SANDBOXES", "1")
    monkeypatch.setenv("NOVA_ADMISSION_WAIT", "20")
    order: list[int] = []

    async def enter(number: int) -> None:
        async with admitted(SandboxConfig()):
            order.append(number)

    (room,) = take(256)
    waiting = [asyncio.create_task(enter(number)) for number in range(4)]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await asyncio.shield(waiting[0])
    assert order == []
    room.close()
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3]


async def test_who_waits_in_vain_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVA_MAX_SANDBOXES", "1")
    monkeypatch.setenv("NOVA_ADMISSION_WAIT", "0.2")
    async with admitted(SandboxConfig()):
        with pytest.raises(CapacityExceeded, match="1 of the 1"):
            async with admitted(SandboxConfig()):
                pass


async def test_nobody_waits_for_what_can_never_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVA_MAX_MEMORY_MIB", "255")
    monkeypatch.setenv("NOVA_ADMISSION_WAIT", "1000")
    with pytest.raises(CapacityExceeded, match="255 MiB"):
        async with asyncio.timeout(5), admitted(SandboxConfig()):
            pass


def test_who_is_cancelled_leaves_no_place_taken() -> None:
    async def enter() -> None:
        async with admitted(SandboxConfig()):
            await asyncio.Event().wait()

    async def give_up_at_any_step() -> None:
        for steps in range(6):
            task = asyncio.create_task(enter())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # A thread that had begun takes its place all the same: the loop's end waits for it.
    asyncio.run(give_up_at_any_step())
    assert admission.usage().sandboxes == 0


def test_a_room_that_is_forgotten_is_given_back() -> None:
    rooms = take(1, 2)
    assert admission.usage().sandboxes == 2
    del rooms
    assert admission.usage().sandboxes == 0


# The host.


def test_the_hosts_memory_is_told_in_mib() -> None:
    memory = host_load.memory()
    assert 0 < memory.available <= memory.total
    assert host_load.processors() >= 1


def _group(folder: Path, limit: str, used: int, inactive: int) -> Path:
    folder.mkdir()
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\nfile 3\n")
    return folder


def test_a_control_group_that_allows_less_is_what_counts(tmp_path: Path) -> None:
    mib = 1 << 20
    outer = _group(tmp_path / "outer", f"{4096 * mib}", 3000 * mib, 500 * mib)
    inner = _group(tmp_path / "inner", f"{2048 * mib}", 100 * mib, 0)
    free = _group(tmp_path / "free", "max", 7 * mib, 0)
    assert host_load.narrowest([]) is None
    assert host_load.narrowest([free, tmp_path / "none"]) is None
    assert host_load.narrowest([inner, outer, free]) == Memory(4096, 1596)
    assert host_load.narrowest([inner]) == Memory(2048, 1948)
