"""The jail as the package uses it: started, watched, ended, and clear about what is missing."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jail_probe import Probe
from novasandbox.core import uids
from novasandbox.errors import BootFailed, InvalidConfig, ProviderUnavailable
from novasandbox.providers import cgroups, jail_check
from novasandbox.providers.jail import Bind, Console, Ending, JailedProcess, JailSpec, launch
from novasandbox.providers.room import qemu_room

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root can have uids of its own to lease")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Probe(tmp_path_factory.mktemp("probe")).hostile


@pytest.fixture
def lease() -> Iterator[uids.UidLease | None]:
    if not ROOT:
        yield None
        return
    with uids.lease() as own:
        yield own


def spec(program: Path, *arguments: str, **more: object) -> JailSpec:
    bind = Bind(str(program), "/program")
    return JailSpec("/program", arguments, (bind,), **more)  # type: ignore[arg-type]


async def test_a_program_runs_and_its_exit_code_comes_back(
    program: Path, lease: uids.UidLease | None
) -> None:
    process = await launch(spec(program, "exit", "7", lease=lease))
    assert await process.wait() == Ending(code=7)
    assert await process.wait() == Ending(code=7), "it may be asked again"
    assert not process.alive


async def test_kill_ends_program_and_supervisor(program: Path, lease: uids.UidLease | None) -> None:
    process = await launch(spec(program, "sleep", lease=lease))
    assert (process.alive, process.supervisor.alive) == (True, True)
    await process.kill()
    assert (await process.wait()).signal == signal.SIGKILL
    assert (process.alive, process.supervisor.alive) == (False, False)
    await process.kill()


async def test_what_is_missing_is_told_by_name(program: Path) -> None:
    process = await launch(spec(program, "exit", "0"))
    await process.wait()
    assert "uid" in {reduction.part for reduction in process.reductions}


async def test_a_strict_jail_without_a_uid_of_its_own_is_refused(program: Path) -> None:
    with pytest.raises(ProviderUnavailable, match="uid"):
        await launch(spec(program, "exit", "0", strict=True))


async def test_a_program_that_is_not_there_is_named(program: Path) -> None:
    with pytest.raises(BootFailed, match="exec: /nothing: No such file"):
        await launch(JailSpec("/nothing"))


async def test_a_bind_that_is_not_there_is_named(program: Path) -> None:
    with pytest.raises(BootFailed, match="bind: /no/such/file"):
        await launch(JailSpec("/x", binds=(Bind("/no/such/file", "/x"),)))


def test_the_file_that_is_opened_to_read_only_is_one_option(program: Path) -> None:
    binds = (Bind(str(program), "/program"), Bind("/some/file", "/memory"))
    asked = JailSpec("/program", binds=binds, open_read_only="/memory")
    command = asked.command(Path("/nova-jail"), 9)
    assert command.count("--open-read-only") == 1
    at = command.index("--open-read-only")
    assert command[at + 1] == "/memory"
    assert at < command.index("--")
    assert "--open-read-only" not in JailSpec("/program", binds=binds).command(Path("/x"), 9)


@pytest.mark.parametrize("binds", [(), (Bind("/some/file", "/memory", "read-write"),)])
def test_a_file_to_read_only_has_to_be_in_the_room_to_read_only(binds: tuple[Bind, ...]) -> None:
    with pytest.raises(ValueError, match="/memory"):
        JailSpec("/program", binds=binds, open_read_only="/memory")


async def test_a_program_that_is_lent_a_file_starts_and_ends_like_any_other(
    program: Path, lease: uids.UidLease | None
) -> None:
    asked = spec(program, "exit", "7", lease=lease, open_read_only="/program")
    assert await (await launch(asked)).wait() == Ending(code=7)
    sleeps = spec(program, "sleep", lease=lease, open_read_only="/program")
    process = await launch(sleeps)
    await process.kill()
    assert (process.alive, process.supervisor.alive) == (False, False)


@pytest.mark.parametrize("missing", ["listener=22", "addfd=22", "process_vm_readv=1"])
async def test_a_host_that_cannot_lend_a_file_is_told_in_words(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    probe = Probe(tmp_path)
    jail = tmp_path / "poor-jail"
    jail.write_text(f'#!/bin/sh\nexec {probe.deny} {missing} {probe.jail} "$@"\n')
    jail.chmod(0o755)
    monkeypatch.setattr("novasandbox.native.path", lambda _: jail)
    with pytest.raises(ProviderUnavailable, match=r"only reads a file .* Linux 5\.9"):
        await launch(spec(probe.hostile, "sleep", open_read_only="/program"))
    process = await launch(spec(probe.hostile, "exit", "7"))
    assert await process.wait() == Ending(code=7)


async def test_a_cancelled_start_leaves_no_process(program: Path) -> None:
    task = asyncio.create_task(launch(spec(program, "sleep", env={"A": "cancelled-start"})))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for found in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert b"cancelled-start" not in found.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue


async def test_output_and_console_go_to_their_files(program: Path, tmp_path: Path) -> None:
    log, console = tmp_path / "log", tmp_path / "console"
    process = await launch(spec(program, "sleep", log=log, consoles=(Console(100, console),)))
    while not log.read_text():
        await asyncio.sleep(0.001)
    await process.kill()
    assert log.read_text() == "sleeping\n"
    assert console.read_text() == ""
    assert log.stat().st_mode & 0o777 == 0o600


async def test_a_process_that_was_let_go_can_be_taken_over(program: Path) -> None:
    process = await launch(spec(program, "sleep"))
    process.let_go()
    again = JailedProcess(process.supervisor, process.process)
    assert again.alive
    await again.kill()
    assert not process.alive
    await process.wait()


async def test_it_dies_when_the_python_process_that_owns_it_is_killed(program: Path) -> None:
    code = f"""
import asyncio, os, sys
from novasandbox.providers.jail import Bind, JailSpec, launch
async def main():
    reader, writer = os.pipe()
    bind = Bind({str(program)!r}, "/program")
    process = await launch(JailSpec("/program", ("sleep",), (bind,), owner_fd=reader))
    print(process.pid, process.supervisor.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    source = str(Path(uids.__file__).parents[2])
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 1
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@needs_root
async def test_a_uid_is_free_again_when_its_supervisor_ends(
    program: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOVA_UID_RANGE", "2000100-2000100")
    store = tmp_path / "uids"
    with uids.lease(store) as own:
        process = await launch(spec(program, "sleep", lease=own))
    with pytest.raises(Exception, match="no uid is free"):
        uids.lease(store)
    await process.kill()
    with uids.lease(store) as again:
        assert again.uid == 2000100


@needs_root
def test_two_processes_never_lease_the_same_uid(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOVA_UID_RANGE", "2000100-2000149")
    code = """
import os, sys
from pathlib import Path
from novasandbox.core import uids
leases = [uids.lease(Path(sys.argv[1])) for _ in range(10)]
print(*(lease.uid for lease in leases), flush=True)
sys.stdin.read()
"""
    source = str(Path(uids.__file__).parents[2])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "uids")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": source},
        )
        for _ in range(5)
    ]
    leased: list[str] = []
    for process in processes:
        assert process.stdout is not None
        leased += process.stdout.readline().split()
    for process in processes:
        process.communicate("")
    assert len(leased) == 50
    assert len(set(leased)) == 50


@needs_root
def test_a_lease_store_that_others_may_write_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "uids"
    store.mkdir()
    store.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write"):
        uids.lease(store)


@pytest.mark.parametrize("text", ["x", "5-2", "0-10", "1000", "1000-99999999999", "-1-5"])
def test_an_illegal_uid_range_is_an_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVA_UID_RANGE", text)
    with pytest.raises(InvalidConfig, match="NOVA_UID_RANGE"):
        uids.uid_range()


async def test_memory_beyond_the_cgroup_kills_the_program_and_the_ending_says_so(
    program: Path, lease: uids.UidLease | None
) -> None:
    places = cgroups.find_places()
    if "memory" in cgroups.missing(places):
        (finding,) = [f for f in jail_check.check() if "cgroup" in f.what]
        pytest.skip(f"{finding.why} ({finding.fix})")
    groups = cgroups.cgroups(f"test-{os.getpid()}", cgroups.Limits(32 << 20), places)
    assert groups
    process = await launch(spec(program, "eat", "256", lease=lease, cgroups=groups))
    ending = await process.wait()
    assert process.reductions == () or not ROOT
    assert ending == Ending(signal=signal.SIGKILL, out_of_memory=True)
    assert "more memory" in str(ending)
    assert not any(group.folder.exists() for group in groups)


def test_the_room_holds_what_the_loader_lists_and_no_more(qemu: str, tmp_path: Path) -> None:
    room = qemu_room(qemu, tmp_path)
    paths = [bind.source for bind in room.binds]
    assert len(paths) == len(set(paths))
    assert room.program in paths
    assert any("/ld-linux" in path for path in paths)
    assert any("/libc.so.6" in path for path in paths)
    assert not any(path.startswith(("/etc", "/home", "/root", "/var")) for path in paths)
    assert all(bind.source == bind.dest and bind.access == "read-only" for bind in room.binds)


def test_the_room_is_worked_out_once(qemu: str, tmp_path: Path) -> None:
    first = qemu_room(qemu, tmp_path)
    (kept,) = tmp_path.glob("room-*.json")
    changed = kept.stat().st_mtime_ns
    assert qemu_room(qemu, tmp_path) == first
    assert kept.stat().st_mtime_ns == changed


def test_a_damaged_answer_is_worked_out_again(qemu: str, tmp_path: Path) -> None:
    first = qemu_room(qemu, tmp_path)
    (kept,) = tmp_path.glob("room-*.json")
    for damage in ("", "{", '["/no/such/library.so"]'):
        kept.write_text(damage)
        assert qemu_room(qemu, tmp_path) == first


def test_a_script_in_qemus_place_is_an_error_that_says_so(tmp_path: Path) -> None:
    script = tmp_path / "qemu-system-x86_64"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(ProviderUnavailable, match="no shell"):
        qemu_room(script)


def test_every_finding_that_is_no_success_names_its_mending() -> None:
    findings = jail_check.check()
    assert findings[0].what == "jail"
    assert findings[0].state in ("ok", "warn")
    for finding in findings:
        assert finding.why
        assert finding.state == "ok" or finding.fix


def test_version_2_settings_are_in_the_kernels_own_units() -> None:
    everything = frozenset(cgroups.CONTROLLERS)
    place = cgroups.Place(Path("/sys/fs/cgroup/x"), everything, 2)
    (group,) = cgroups.cgroups("box", cgroups.Limits(1 << 30, tasks=9, cpus=1.5), [place])
    assert group.folder == Path("/sys/fs/cgroup/x/novasandbox-box")
    assert group.settings == {
        "memory.max": str(1 << 30),
        "memory.oom.group": "1",
        "pids.max": "9",
        "cpu.max": "150000 100000",
    }


async def test_the_jail_costs_milliseconds(
    program: Path, lease: uids.UidLease | None, qemu: str, capsys: pytest.CaptureFixture[str]
) -> None:
    room = qemu_room(qemu)
    jailed = spec(program, "exit", "0", lease=lease)
    full = JailSpec("/program", ("exit", "0"), (*jailed.binds, *room.binds), lease=lease)
    bare: list[float] = []
    empty: list[float] = []
    filled: list[float] = []
    for _ in range(50):
        began = time.perf_counter()
        pid = os.posix_spawn(program, [str(program), "exit", "0"], {})
        bare.append(time.perf_counter() - began)
        os.waitpid(pid, 0)
        for times, what in ((empty, jailed), (filled, full)):
            began = time.perf_counter()
            process = await launch(what)
            times.append(time.perf_counter() - began)
            await process.wait()
    with capsys.disabled():
        for name, times in (
            ("bare spawn", bare),
            ("in the jail", empty),
            (f"with QEMU's {len(room.binds)} files", filled),
        ):
            p50, p95 = statistics.median(times), statistics.quantiles(times, n=20)[-1]
            print(f"\n  {name}: p50 {p50 * 1e3:.2f} ms, p95 {p95 * 1e3:.2f} ms", end="")
