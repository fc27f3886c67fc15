"""A hostile program in the jail reaches nothing of the host; without the jail it does.

native/jail/probe/hostile.c sits where a hostile QEMU would, and says how far it got.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import jail_probe
from jail_probe import ATTEMPTS, NOBODY, OWN_UID, Attempt, Probe

pytestmark = pytest.mark.security

MODES = ["root", "user"]
OLD_KERNEL = "mount_setattr=38,close_range=38,landlock=38"
CONTAINER = "namespaces=1"

# What an ordinary user's program gets without the jail, whatever the host: so that the tests
# above can fail.
ANYBODYS = {
    "inherited_descriptors",
    "inherited_environment",
    "learn_host_name",
    "read_password_file",
    "read_secret_file",
    "climb_out",
    "read_proc_self",
    "list_host_folders",
    "make_file_in_tmp",
    "signal_victim",
    "fork_process",
    "run_shell",
    "run_program_in_memory",
    "internet_socket",
    "netlink_socket",
    "connect_to_loopback",
    "connect_to_abstract_socket",
    "attach_shared_memory",
    "session_keyring",
    "adjust_clock",
    "open_many_files",
}


@pytest.fixture(scope="module")
def probe() -> Iterator[Probe]:
    with tempfile.TemporaryDirectory(prefix="nova-probe-") as folder:
        yield Probe(Path(folder))


@pytest.fixture(scope="module")
def attempts(probe: Probe) -> Callable[[str, str], dict[str, Attempt]]:
    """What the hostile program got, by mode and by the host's kind; each is run once."""
    known: dict[tuple[str, str], dict[str, Attempt]] = {}

    def run(mode: str, host: str) -> dict[str, Attempt]:
        _need(mode)
        if (mode, host) not in known:
            with jail_probe.bait(mode) as (arguments, started):
                command = [str(probe.hostile), *arguments]
                if host != "no jail":
                    command = probe.jailed(mode, *arguments)
                if host not in ("no jail", "this"):
                    command = [str(probe.deny), host, *command]
                known[mode, host] = jail_probe.try_all(command, started)
        return known[mode, host]

    return run


def _need(mode: str) -> None:
    if mode == "root" and os.geteuid() != 0:
        pytest.skip("a uid of its own needs root: run the tests as root as well")


@pytest.mark.parametrize("attempt", ATTEMPTS)
@pytest.mark.parametrize("mode", MODES)
def test_in_the_jail_it_cannot(
    mode: str, attempt: str, attempts: Callable[[str, str], dict[str, Attempt]]
) -> None:
    found = attempts(mode, "this")[attempt]
    assert not found.got, f"{attempt} got through: {os.strerror(found.errno)}"


@pytest.mark.parametrize("mode", MODES)
def test_on_an_old_kernel_it_gets_no_further(
    mode: str, attempts: Callable[[str, str], dict[str, Attempt]]
) -> None:
    got = {name for name, found in attempts(mode, OLD_KERNEL).items() if found.got}
    assert got == set()


@pytest.mark.parametrize("mode", MODES)
def test_without_namespaces_landlock_and_the_filter_still_hold(
    mode: str, attempts: Callable[[str, str], dict[str, Attempt]]
) -> None:
    got = {name for name, found in attempts(mode, CONTAINER).items() if found.got}
    # Names and limits, but no content: the price of a host that gives no namespace.
    assert got <= {
        "learn_host_name",
        "list_host_folders",
        "run_shell",
        "limit_victim",
        "pin_victim",
        "slow_victim",
        # Landlock forbids writing, but not the mode and the times of a file that is one's own.
        "change_mode_of_program",
        "touch_program",
        "signal_everybody",  # kill(-1) says yes even when each single one was refused
        # Landlock confines signals and abstract sockets from Linux 6.12 on.
        *(() if _kernel() >= (6, 12) else ("signal_victim", "connect_to_abstract_socket")),
    }


@pytest.mark.parametrize("mode", MODES)
def test_without_the_jail_it_gets_far(
    mode: str, attempts: Callable[[str, str], dict[str, Attempt]]
) -> None:
    got = {name for name, found in attempts(mode, "no jail").items() if found.got}
    assert got >= ANYBODYS
    if mode == "root":
        assert len(got) > len(ATTEMPTS) * 3 / 4


@pytest.mark.parametrize("architecture", ["x32", "i386"])
def test_calls_of_another_architecture_kill_it(probe: Probe, architecture: str) -> None:
    if platform.machine() != "x86_64":
        pytest.skip(f"{platform.machine()} has no second set of system calls that we let it use")
    done = subprocess.run(probe.jailed("user", architecture), check=False)
    assert done.returncode == 128 + signal.SIGSYS


@contextlib.contextmanager
def _sleeping(probe: Probe, mode: str, *options: str, **started: Any) -> Iterator[tuple[int, int]]:
    """A jailed program that sleeps: its pid and its supervisor's."""
    reader, writer = os.pipe()
    inherit = started.pop("pass_fds", ())
    supervisor = subprocess.Popen(
        probe.jailed(mode, "sleep", options=("--status-fd", str(writer), *options)),
        **jail_probe.identity(mode),
        **started,
        pass_fds=[writer, *inherit],
        stdout=subprocess.DEVNULL,
        cwd="/",
    )
    os.close(writer)
    try:
        with open(reader) as status:
            line = next(line for line in status if not line.startswith("reduced"))
            assert line.startswith("started "), line
            yield int(line.split()[1]), supervisor.pid
            supervisor.kill()
    finally:
        supervisor.kill()
        supervisor.wait()


@pytest.mark.parametrize("mode", MODES)
def test_from_outside_it_has_no_privilege_left(probe: Probe, mode: str) -> None:
    _need(mode)
    with _sleeping(probe, mode) as (pid, _):
        status = jail_probe.status_of(pid)
    uid = OWN_UID if mode == "root" else NOBODY if os.geteuid() == 0 else os.geteuid()
    assert status["Uid"] == [str(uid)] * 4
    if mode == "root":
        assert status["Gid"] == [str(uid)] * 4
        assert status["Groups"] == []
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name][0], 16) == 0, name
    assert status["NoNewPrivs"] == ["1"]
    assert status["Seccomp"] == ["2"]
    assert status["NSpid"][-1] == "1", "it is the first process of a namespace of its own"


@pytest.mark.parametrize("mode", MODES)
def test_from_outside_it_shares_no_namespace_with_the_host(probe: Probe, mode: str) -> None:
    _need(mode)
    if os.geteuid() != 0:
        pytest.skip("only root may look at another process's namespaces")
    with _sleeping(probe, mode) as (pid, _):
        for name in ("mnt", "pid", "ipc", "uts", "net", "cgroup"):
            here, there = (os.readlink(f"/proc/{p}/ns/{name}") for p in ("self", pid))
            assert here != there, f"it is in the host's {name} namespace"


@pytest.mark.parametrize("mode", MODES)
def test_from_outside_its_room_is_empty_and_read_only(probe: Probe, mode: str) -> None:
    _need(mode)
    if os.geteuid() != 0:
        pytest.skip("only root may look into another process's room")
    with _sleeping(probe, mode) as (pid, _):
        root = Path(f"/proc/{pid}/root")
        files = {str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir()}
        mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    assert files == {"dev/null", "dev/urandom", str(probe.hostile).lstrip("/")}
    # Root makes its devices on a mount of their own, an ordinary user can only bind them.
    assert len(mounts) == (3 if mode == "root" else 4)
    for mount in mounts:
        options = mount.split()[5].split(",")
        assert "ro" in options, mount
        assert "nosuid" in options, mount
        assert "nodev" in options or mount.split()[4].startswith("/dev"), mount


def test_from_outside_it_holds_only_the_descriptors_it_was_given(probe: Probe) -> None:
    with open("/dev/null") as kept, open("/dev/null") as unkept:
        given = (kept.fileno(), unkept.fileno())
        expected = {"0", "1", "2", str(kept.fileno())}
        options = ("--keep-fd", str(kept.fileno()))
        with _sleeping(probe, MODES[os.geteuid() != 0], *options, pass_fds=given) as (pid, _):
            if os.geteuid() != 0:
                pytest.skip("only root may look at another process's descriptors")
            held = set(os.listdir(f"/proc/{pid}/fd"))
            environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert held == expected
    assert environment == b""


@pytest.mark.parametrize("mode", MODES)
def test_it_dies_at_once_when_its_owner_does(probe: Probe, mode: str) -> None:
    _need(mode)
    reader, writer = os.pipe()
    options = ("--owner-fd", str(reader))
    with _sleeping(probe, mode, *options, pass_fds=[reader]) as (pid, _):
        os.close(reader)
        began = time.monotonic()
        os.close(writer)  # as the kernel does for a process that was killed
        assert _ends(pid)
        assert time.monotonic() - began < 0.5


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("mode", MODES)
def test_it_dies_with_its_supervisor(probe: Probe, mode: str, how: signal.Signals) -> None:
    _need(mode)
    with _sleeping(probe, mode) as (pid, supervisor):
        os.kill(supervisor, how)
        assert _ends(pid)


@pytest.mark.parametrize("output", ["log", "console"])
@pytest.mark.parametrize("mode", MODES)
def test_output_without_end_leaves_a_small_log(probe: Probe, mode: str, output: str) -> None:
    _need(mode)
    with tempfile.TemporaryDirectory(prefix="nova-logs-") as name:
        Path(name).chmod(0o777)
        log = Path(name, "log")
        if output == "log":
            command = probe.jailed(mode, "print", options=("--log", str(log)), keep_stdout=False)
        else:
            command = probe.jailed(mode, "print", "100", options=("--console", "100", str(log)))
        process = subprocess.Popen(command, **jail_probe.identity(mode), cwd="/")
        try:
            first = _when(lambda: log.exists() and log.stat().st_ino)
            # A new file takes the old one's place each time that one is full.
            _when(lambda: log.stat().st_ino != first)
            for _ in range(200):
                assert log.stat().st_size <= 128 * 1024
        finally:
            process.terminate()
            process.wait()
        assert 64 * 1024 <= log.stat().st_size <= 128 * 1024


@pytest.mark.parametrize("mode", MODES)
def test_strict_mode_starts_nothing_where_a_part_is_missing(probe: Probe, mode: str) -> None:
    _need(mode)
    command = probe.jailed(mode, "exit", "7")
    who: dict[str, Any] = {**jail_probe.identity(mode), "cwd": "/", "capture_output": True}
    lax = subprocess.run([str(probe.deny), "net=1", *command], check=False, **who)
    assert lax.returncode == 7
    command.insert(1, "--strict")
    strict = subprocess.run([str(probe.deny), "net=1", *command], check=False, **who)
    assert strict.returncode == 125
    assert b"net" in strict.stderr if mode == "root" else b"uid" in strict.stderr


@pytest.mark.parametrize("mode", MODES)
def test_qemu_runs_in_the_jail(probe: Probe, mode: str, qemu: str) -> None:
    _need(mode)
    from novasandbox.providers.room import qemu_room

    room = qemu_room(qemu)
    uid = ["--uid", str(OWN_UID)] if mode == "root" else []
    binds = [word for bind in room.binds for word in bind.words()]
    env = [word for key, value in room.env.items() for word in ("--env", f"{key}={value}")]
    machine = ["-M", "virt" if platform.machine() == "aarch64" else "pc", "-accel", "tcg", "-S"]
    sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    done = subprocess.run(
        [
            *(str(probe.jail), *uid, *binds, *env),
            *("--keep-fd", "0", "--keep-fd", "1", "--keep-fd", "2", "--"),
            *(room.program, *machine, "-nodefaults", "-display", "none", "-qmp", "stdio"),
            *("-sandbox", sandbox),
        ],
        input='{"execute":"qmp_capabilities"}\n{"execute":"query-status"}\n{"execute":"quit"}\n',
        **jail_probe.identity(mode),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert '"prelaunch"' in done.stdout


# What a program may do with a file that it was lent (native/jail/probe/lent.c), and with others.
LENT = {
    "open_to_write",
    "is_read_only",
    "is_closed_by_exec",
    "starts_at_its_beginning",
    "read_it",
    "map_it_privately",
    "map_it_shared_to_read",
    "write_to_own_file",
    "open_null",
}
ATTRIBUTES = {
    "change_its_mode",
    "change_its_owner",
    "change_its_times",
    "mark_it",
    "change_mode_by_name",
    "change_times_by_name",
}
SHARED, OTHER, LOCKED = "/memory", "/other", "/locked"


@dataclass(frozen=True)
class Files:
    """A file of the program's own user, as an ordinary user's templates are, and two others."""

    folder: Path
    mode: str
    uid: int

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    @property
    def other(self) -> Path:
        return self.folder / "other"

    def binds(self, how: str = "--bind-ro") -> tuple[str, ...]:
        return (
            *(how, str(self.shared), SHARED, "--bind", str(self.other), OTHER),
            *("--bind-ro", str(self.folder / "locked"), LOCKED),
        )

    def lent(self) -> tuple[str, ...]:
        return (*self.binds(), "--open-read-only", SHARED)


@pytest.fixture(params=MODES)
def files(request: pytest.FixtureRequest) -> Iterator[Files]:
    mode = request.param
    _need(mode)
    uid = OWN_UID if mode == "root" else NOBODY if os.geteuid() == 0 else os.geteuid()
    with tempfile.TemporaryDirectory(prefix="nova-lent-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file, bits in (("shared", 0o444), ("other", 0o600), ("locked", 0o444)):
            (folder / file).write_bytes(b"s" * 8192)
            (folder / file).chmod(bits)
            if os.geteuid() == 0:
                os.chown(folder / file, uid, uid)
        yield Files(folder, mode, uid)


def _lent(probe: Probe, files: Files, *words: str, host: str | None = None) -> Any:
    """Run the program that is lent a file; `words` are the jail's options and its arguments."""
    at = words.index("--") if "--" in words else 0
    uid = ("--uid", str(files.uid)) if files.mode == "root" else ()
    program = str(probe.lent)
    command = [
        *(str(probe.jail), *uid, "--keep-fd", "1", "--status-fd", "2"),
        *("--bind-ro", program, program, *words[:at], "--", program, *words[at + 1 :]),
    ]
    if host is not None:
        command = [str(probe.deny), host, *command]
    who = jail_probe.identity(files.mode)
    return subprocess.run(command, **who, capture_output=True, text=True, check=False, cwd="/")


def _tried(done: Any) -> dict[str, Attempt]:
    assert done.returncode == 0, done.stderr
    return {name: Attempt(**found) for name, found in json.loads(done.stdout).items()}


def _got(attempts: dict[str, Attempt]) -> set[str]:
    return {name for name, found in attempts.items() if found.got}


@pytest.mark.parametrize("how", ["try", "thread"])
def test_a_lent_file_is_opened_to_write_and_only_read(probe: Probe, files: Files, how: str) -> None:
    before = files.shared.stat()
    tried = _tried(_lent(probe, files, *files.lent(), "--", how, SHARED, OTHER, LOCKED))
    assert _got(tried) == LENT
    for attempt in ("write_it", "pwrite_it", "pwritev_it", "copy_to_it", "allocate_it"):
        assert tried[attempt].errno == errno.EBADF, attempt
    assert tried["cut_it"].errno == errno.EINVAL
    assert tried["map_it_shared"].errno == errno.EACCES
    assert files.shared.read_bytes() == b"s" * 8192
    after = files.shared.stat()
    assert (after.st_mode, after.st_uid, after.st_mtime_ns, after.st_ctime_ns) == (
        *(before.st_mode, before.st_uid),
        *(before.st_mtime_ns, before.st_ctime_ns),
    )
    assert files.other.read_bytes() == b"o" + b"s" * 8191


def test_where_nothing_is_lent_it_cannot_be_opened_and_others_open_alike(
    probe: Probe, files: Files
) -> None:
    run = ("--", "try", SHARED, OTHER, LOCKED)
    lent = _tried(_lent(probe, files, *files.lent(), *run))
    plain = _tried(_lent(probe, files, *files.binds(), *run))
    assert plain["open_to_write"].errno in (errno.EACCES, errno.EROFS)
    for attempt in plain:
        if attempt.startswith("open_") and attempt != "open_to_write":
            assert lent[attempt] == plain[attempt], attempt


def test_a_file_that_may_be_written_is_so_that_these_tests_can_fail(
    probe: Probe, files: Files
) -> None:
    files.shared.chmod(0o666)
    run = ("--", "try", SHARED, OTHER, LOCKED)
    got = _got(_tried(_lent(probe, files, *files.binds("--bind"), *run)))
    assert got >= {
        *("write_it", "pwrite_it", "pwritev_it", "copy_to_it", "cut_it", "allocate_it"),
        *("map_it_shared", "map_it_and_ask_for_more", "open_again", "open_by_another_name"),
        *("open_by_new_call", "lock_it_to_write", *ATTRIBUTES),
    } - {"mark_it"}
    assert files.shared.read_bytes() != b"s" * 8192


def test_without_a_room_what_is_lent_is_still_not_written(probe: Probe, files: Files) -> None:
    path = str(files.shared)
    options = ("--bind-ro", path, SHARED, "--open-read-only", path)
    run = ("--", "try", path, "/none", "/none")
    got = _got(_tried(_lent(probe, files, *options, *run, host=CONTAINER)))
    # As for any file of one's own, without namespaces landlock guards the content alone.
    assert got - ATTRIBUTES - {"flag_it"} == LENT - {"write_to_own_file"}
    assert files.shared.read_bytes() == b"s" * 8192


@pytest.mark.parametrize(
    "host", ["listener=22", "listener=16", "addfd=22", "process_vm_readv=1", "process_vm_readv=38"]
)
def test_a_host_that_cannot_lend_starts_nothing(probe: Probe, files: Files, host: str) -> None:
    done = _lent(probe, files, *files.lent(), "--", "open", "1", host=host)
    assert done.returncode == 125
    assert "failed open-read-only " in done.stderr
    assert "started" not in done.stderr
    assert _lent(probe, files, *files.binds(), "--", "open", "1", host=host).returncode == 0


@pytest.mark.parametrize("how", ["--bind", "none"])
def test_only_a_read_only_bind_is_lent(probe: Probe, files: Files, how: str) -> None:
    binds = files.binds(how) if how == "--bind" else files.binds()
    path = SHARED if how == "--bind" else "/no/such/place"
    done = _lent(probe, files, *binds, "--open-read-only", path, "--", "open", "1")
    assert done.returncode == 125
    assert "failed options 22 --open-read-only: no --bind-ro has it" in done.stderr


def test_a_supervisor_answers_a_thousand_calls_and_then_one_each_millisecond(
    probe: Probe, files: Files
) -> None:
    began = time.monotonic()
    assert _lent(probe, files, *files.lent(), "--", "open", "1500").returncode == 0
    assert time.monotonic() - began > 0.4


def test_a_supervisor_that_is_asked_without_end_still_sees_its_owner_go(
    probe: Probe, files: Files
) -> None:
    reader, writer = os.pipe()
    program = str(probe.lent)
    uid = ("--uid", str(files.uid)) if files.mode == "root" else ()
    supervisor = subprocess.Popen(
        [
            *(str(probe.jail), *uid, "--bind-ro", program, program, *files.lent()),
            *("--owner-fd", str(reader), "--", program, "open", "0"),
        ],
        **jail_probe.identity(files.mode),
        pass_fds=[reader],
        cwd="/",
    )
    os.close(reader)
    try:
        _when(lambda: int(jail_probe.status_of(supervisor.pid)["voluntary_ctxt_switches"][0]) > 50)
        began = time.monotonic()
        os.close(writer)
        supervisor.wait(timeout=2)
        assert time.monotonic() - began < 0.5
    finally:
        supervisor.kill()
        supervisor.wait()


def test_qemu_holds_its_memory_file_to_read_only(probe: Probe, files: Files, qemu: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may look at another process's descriptors")
    from novasandbox.providers.qemu_command import SANDBOX
    from novasandbox.providers.room import qemu_room

    files.shared.chmod(0o644)
    os.truncate(files.shared, 64 << 20)
    files.shared.chmod(0o444)
    room = qemu_room(qemu)
    uid = ["--uid", str(files.uid)] if files.mode == "root" else []
    binds = [word for bind in room.binds for word in bind.words()]
    env = [word for key, value in room.env.items() for word in ("--env", f"{key}={value}")]
    kind = "virt" if platform.machine() == "aarch64" else "pc"
    memory = f"memory-backend-file,id=memory,size=64M,mem-path={SHARED},share=off"
    command = [
        *(str(probe.jail), *uid, *binds, *env, *files.lent(), "--status-fd", "2"),
        *("--keep-fd", "0", "--keep-fd", "1", "--", room.program),
        *("-nodefaults", "-display", "none", "-sandbox", SANDBOX, "-accel", "tcg", "-S"),
        *("-object", memory, "-M", f"{kind},memory-backend=memory", "-m", "64M", "-qmp", "stdio"),
    ]
    pipe = subprocess.PIPE
    who = jail_probe.identity(files.mode)
    with subprocess.Popen(
        command, **who, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd="/"
    ) as supervisor:
        try:
            assert supervisor.stdin is not None
            assert supervisor.stdout is not None
            assert supervisor.stderr is not None
            pid = next(int(w[8:]) for w in supervisor.stderr if w.startswith("started "))
            assert "QMP" in supervisor.stdout.readline()
            held = {
                fd: Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
                for fd in os.listdir(f"/proc/{pid}/fd")
                if os.readlink(f"/proc/{pid}/fd/{fd}") == SHARED
            }
            assert len(held) == 1
            (info,) = held.values()
            flags = int(info.split("flags:")[1].split()[0], 8)
            assert flags & os.O_ACCMODE == os.O_RDONLY
            ids = jail_probe.status_of(supervisor.pid)["Uid"]
            assert len(set(ids)) == 1, "the supervisor is again who it was"
            for word in ("qmp_capabilities", "query-status", "quit"):
                supervisor.stdin.write(f'{{"execute":"{word}"}}\n')
            supervisor.stdin.flush()
            assert '"prelaunch"' in supervisor.stdout.read()
            assert supervisor.wait() == 0
        finally:
            supervisor.kill()


def test_a_lent_file_leaves_starts_and_opens_as_they_were(
    probe: Probe, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    starts: dict[str, list[float]] = {"nothing lent": [], "a file lent": []}
    opens: dict[str, list[list[int]]] = {"nothing lent": [], "a file lent": []}
    options = {"nothing lent": files.binds(), "a file lent": files.lent()}
    for _ in range(30):
        for name, words in options.items():
            began = time.perf_counter()
            assert _lent(probe, files, *words, "--", "open", "1").returncode == 0
            starts[name].append(time.perf_counter() - began)
    for _ in range(5):
        for name, words in options.items():
            done = _lent(probe, files, *words, "--", "time", SHARED, "300")
            opens[name].append([int(word) for word in done.stdout.split()])
    with capsys.disabled():
        for name in options:
            run = statistics.median(starts[name]) * 1e3
            before, after = (statistics.median(o[i] for o in opens[name]) / 1e3 for i in (0, 1))
            print(
                f"\n  {files.mode}, {name}: start to end {run:.2f} ms; opening /dev/null "
                f"{before:.1f} us before and {after:.1f} us after the file was opened",
                end="",
            )


def test_files_below_a_folder_of_roots_alone_can_be_in_the_room(probe: Probe) -> None:
    _need("root")
    with tempfile.TemporaryDirectory(prefix="nova-private-") as name:
        folder = Path(name)
        assert folder.stat().st_mode & 0o777 == 0o700
        program = Path(shutil.copy(probe.hostile, folder / "program"))
        done = subprocess.run(
            [
                *(str(probe.jail), "--uid", str(OWN_UID)),
                *("--bind-ro", str(program), "/program", "--", "/program", "exit", "7"),
            ],
            check=False,
        )
    assert done.returncode == 7


def test_a_device_that_only_root_may_open_can_be_given_away(probe: Probe) -> None:
    _need("root")
    device = Path("/dev/kvm")
    if not device.exists():
        pytest.skip("there is no /dev/kvm to give away")
    run = probe.jailed("root", "open", str(device))
    assert subprocess.run(run, check=False).returncode == errno.ENOENT
    run[1:1] = ["--device", str(device)]
    assert subprocess.run(run, check=False).returncode == 0
    run[1:1] = ["--device", "/dev/full"]
    assert subprocess.run(run, check=False).returncode == 0


def test_without_a_room_such_files_cost_the_own_uid(probe: Probe) -> None:
    _need("root")
    with tempfile.TemporaryDirectory(prefix="nova-private-") as name:
        program = str(shutil.copy(probe.hostile, Path(name, "program")))
        jail = [str(probe.jail), "--status-fd", "1", "--uid", str(OWN_UID)]
        run = [*jail, "--bind-ro", program, program, "--", program, "exit", "7"]
        weak, none = (
            subprocess.run(
                [str(probe.deny), host, *run], check=False, capture_output=True, text=True
            )
            for host in (CONTAINER, f"{CONTAINER},landlock=38")
        )
    assert weak.returncode == 7
    assert "reduced uid without a room" in weak.stdout
    assert none.returncode == 125
    assert "failed reach" in none.stdout


def _kernel() -> tuple[int, int]:
    major, minor, *_ = platform.release().split(".")
    return int(major), int(minor)


def _when(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)
    return found


def _ends(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        # A zombie has ended; its supervisor or init buries it.
        return bool(_when(lambda: jail_probe.status_of(pid)["State"][0] == "Z", 2.0))
    return True
