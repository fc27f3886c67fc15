"""`nova` on real machines, as a user types it: streams, exit codes, files, sandboxes that stay."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from command_line import NOVA, interrupt, nova, results, started, until_runs

pytestmark = pytest.mark.vm

LONG = 40  # seconds that nothing here may really wait for


@pytest.fixture(scope="module")
def box(nova_home: Path, qemu: str) -> Iterator[str]:
    """A sandbox that stays, with a secret of its own."""
    os.environ["NOVA_TEST_SECRET"] = "hush-1234"
    identity = results(
        "start", "--name", "clibox", "--timeout", "30m", "--env", "NOVA_TEST_SECRET",
        "--metadata", "for=tests",
    )  # fmt: skip
    del os.environ["NOVA_TEST_SECRET"]
    yield identity
    nova("kill", identity)


def test_code_is_run_in_a_sandbox_of_its_own(qemu: str) -> None:
    done = nova("run", "-c", "import sys; print(6*7, sys.argv[1:]); sys.exit(3)", "a", "--json")
    assert (done.code, done.out, done.err) == (3, "42 ['a', '--json']\n", "")
    assert results("ps", "-q", "--metadata", "for=nobody") == ""


def test_a_file_is_run_with_its_arguments_and_our_input(qemu: str, tmp_path: Path) -> None:
    file = tmp_path / "a job.py"
    file.write_text("import sys\nprint(sys.argv, sys.stdin.read())\nprint('e', file=sys.stderr)")
    done = nova("run", "--quiet", str(file), "-x", "--", "y", stdin="input")
    assert done == type(done)(0, "['/tmp/a job.py', '-x', '--', 'y'] input\n", "e\n")


def test_what_is_piped_in_is_run_in_a_sandbox_that_is_kept(qemu: str) -> None:
    done = nova("run", "--detach", "--json", "--name", "kept", "--shell", "-", "x", stdin="echo $1")
    assert (done.code, done.data["stdout"]) == (0, "x\n")
    kept = nova("ps", "--json").data
    assert [info["name"] for info in kept if info["id"] == done.data["sandbox_id"]] == ["kept"]
    assert kept[-1]["detached"]
    assert results("kill", "kept") == done.data["sandbox_id"]


def test_a_program_that_takes_too_long_is_ended(qemu: str) -> None:
    done = nova("run", "--timeout", "2s", "--shell", "-c", "echo so far; sleep 60")
    assert (done.code, done.out) == (124, "so far\n")
    assert "did not end within 2 s" in done.err


# exec: how it ends.


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 3"], 3),
        (["grep", "-q", "x", "/dev/null"], 1),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["/no/such/program"], 127),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
        (["/etc"], 126),
    ],
)
def test_the_exit_code_is_the_command_s_own_or_a_shell_s(
    box: str, command: list[str], code: int
) -> None:
    done = nova("exec", box, "--", *command)
    assert done.code == code
    assert bool(done.err) == (code in (126, 127))


def test_a_folder_that_is_missing_is_named(box: str) -> None:
    done = nova("exec", "--cwd", "/no/such/folder", box, "--", "true")
    assert done.code == 126
    assert "/no/such/folder" in done.err


def test_a_timeout_ends_the_whole_tree(box: str) -> None:
    began = time.monotonic()
    done = nova("exec", "--timeout", "2", box, "--", "sh", "-c", "echo so far; sleep 71 & sleep 71")
    assert time.monotonic() - began < LONG / 2
    assert (done.code, done.out) == (124, "so far\n")
    assert nova("exec", box, "--", "pgrep", "-f", "sleep 71").code == 1


def test_a_timeout_fires_though_nobody_reads_the_output(box: str) -> None:
    began = time.monotonic()
    with started("exec", "--timeout", "1", box, "--", "yes") as process:
        assert process.wait(timeout=LONG) == 124
    assert time.monotonic() - began < LONG / 2


def test_a_timeout_in_json_has_the_output_so_far(box: str) -> None:
    done = nova("exec", "--json", "--timeout", "2", box, "--", "sh", "-c", "echo so far; sleep 60")
    assert (done.code, done.out) == (124, "")
    assert done.error["type"] == "OperationTimeout"
    assert done.error["stdout"] == "so far\n"


def test_a_result_in_json_is_one_document(box: str) -> None:
    done = nova("exec", "--json", box, "--", "sh", "-c", r"echo a; printf '\377' >&2; exit 4")
    assert (done.code, done.err) == (4, "")
    data = done.data
    assert (data["exit_code"], data["signal"], data["stdout"]) == (4, None, "a\n")
    assert (data["stderr"], data["stderr_base64"]) == ("\ufffd", "/w==")
    assert data["sandbox_id"] == box


# exec: streams.


def test_bytes_pass_through_as_they_are(box: str) -> None:
    done = subprocess.run(
        [*NOVA, "exec", box, "--", "sh", "-c", r"cat; printf 'e\033[0m\000\377' >&2"],
        input=bytes(range(256)),
        capture_output=True,
        timeout=60,
    )
    assert done.stdout == bytes(range(256))
    assert done.stderr == b"e\x1b[0m\0\xff"


def test_much_input_arrives_whole(box: str) -> None:
    data = os.urandom(1 << 20) * 5
    done = subprocess.run(
        [*NOVA, "exec", box, "--", "sha256sum"], input=data, capture_output=True, timeout=60
    )
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_much_output_arrives_whole(box: str) -> None:
    code = "import sys; sys.stdout.write('☕' * 100_000); sys.stderr.write('e' * (2 << 20))"
    done = nova("exec", box, "--", "python3", "-c", code)
    assert done.out == "☕" * 100_000
    assert done.err == "e" * (2 << 20)


def test_input_that_never_ends_holds_nobody_up(box: str) -> None:
    reader, writer = os.pipe()
    began = time.monotonic()
    with started("exec", box, "--", "echo", "hi", stdin=reader) as process:
        out, err = process.communicate(timeout=LONG)
    assert (process.returncode, out, err) == (0, b"hi\n", b"")
    assert time.monotonic() - began < LONG / 2
    os.close(reader)
    os.close(writer)


def test_without_input_a_command_sees_its_end_at_once(box: str) -> None:
    assert nova("exec", box, "--", "cat").out == ""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *NOVA, "exec", box, "--", "cat"],
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, b"")


def test_output_comes_as_it_is_made(box: str) -> None:
    reader, writer = os.pipe()
    with started(
        "exec", box, "--", "sh", "-c", "echo first; read x; echo $x", stdin=reader
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        os.write(writer, b"second\n")
        assert process.stdout.readline() == b"second\n"
        assert process.wait(timeout=LONG) == 0
    os.close(reader)
    os.close(writer)


def test_nobody_reading_ends_the_command_and_is_no_fault(box: str) -> None:
    with started(
        "exec", box, "--", "sh", "-c", "while :; do echo line; sleep 0.01; done"
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=LONG) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""
    assert nova("exec", box, "--", "pgrep", "-f", "echo line").code == 1


# exec: Ctrl-C.


def test_ctrl_c_ends_the_command_and_gives_130(box: str) -> None:
    with started("exec", box, "--", "sh", "-c", "echo up; sleep 72; echo no") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        # A shell that is just starting its program may lose the signal; so on any terminal.
        until_runs(box, "sleep")
        interrupt(process)
        out, err = process.communicate(timeout=LONG)
    assert (process.returncode, out, err) == (130, b"", b"")
    assert nova("exec", box, "--", "pgrep", "-f", "sleep 72").code == 1


def test_the_second_ctrl_c_ends_what_ignored_the_first(box: str) -> None:
    script = "trap 'echo no' INT; echo up; while :; do sleep 0.2; done"
    with started("exec", box, "--", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        interrupt(process)
        assert process.stdout.readline() == b"no\n"
        interrupt(process)
        assert process.wait(timeout=LONG) == 130
    assert nova("exec", box, "--", "pgrep", "-f", "trap 'echo no'").code == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_ends_with_the_one_who_waits_for_it(box: str, number: signal.Signals) -> None:
    with started("exec", box, "--", "sh", "-c", "echo up; sleep 73") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.wait(timeout=LONG) in (128 + number, -number)
    gone = nova(
        "exec", "--timeout", "20", box, "--", "sh", "-c", "while pgrep -x sleep; do :; done"
    )
    assert gone.code == 0


# exec: environment.


def test_a_command_gets_what_it_was_given_and_nothing_else(box: str) -> None:
    env = {"BARE": "from here", "OTHER": "hush-5678"}
    words = ("exec", "--env", "BARE", "--env", "A=1 2", "--cwd", "/tmp", "--user", "root", box)
    done = nova(*words, "--", "sh", "-c", 'echo "$BARE|$A|$(pwd)|$(id -u)"; env', env=env)
    assert done.out.splitlines()[0] == "from here|1 2|/tmp|0"
    assert "hush-5678" not in done.out


def test_a_sandbox_s_secret_is_in_the_guest_and_nowhere_else(box: str, nova_home: Path) -> None:
    assert results("exec", box, "--", "printenv", "NOVA_TEST_SECRET") == "hush-1234"
    shown = [nova("ps", "--json"), nova("logs", box), nova("logs", "--only", "events", box)]
    assert "NOVA_TEST_SECRET" in shown[0].out
    processes = [str(each.info) for each in psutil.process_iter(["cmdline", "environ"])]
    state = [
        path.read_bytes().decode("utf-8", "replace")
        for path in (nova_home / "run").rglob("*")
        if path.is_file()
    ]
    for text in (*(each.out + each.err for each in shown), *processes, *state):
        assert "hush-1234" not in text


# Files.


def test_files_and_trees_go_in_and_come_out_as_they_were(box: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "run me.sh").write_text("#!/bin/sh\n")
    (tree / "run me.sh").chmod(0o755)
    (tree / "below" / "☕ 'q' %#").write_bytes(bytes(range(256)))
    (tree / "link").symlink_to("below")
    (tree / "dead").symlink_to("nothing")
    assert nova("cp", str(tree), f"{box}:/tmp/tree").code == 0
    assert nova("cp", str(tree), f"{box}:/tmp/tree").code == 0  # into it: it is there now
    listed = results("exec", box, "--", "ls", "/tmp/tree/tree").split()
    assert "below" in listed
    out = tmp_path / "out"
    assert nova("cp", f"{box}:/tmp/tree/tree", str(out)).code == 0
    assert (out / "below" / "☕ 'q' %#").read_bytes() == bytes(range(256))
    assert stat.S_IMODE((out / "run me.sh").stat().st_mode) == 0o755
    assert os.readlink(out / "link") == "below"
    assert os.readlink(out / "dead") == "nothing"


def test_what_leads_outside_is_refused_named_and_gives_1(box: str, tmp_path: Path) -> None:
    script = "mkdir -p /tmp/evil; cd /tmp/evil; ln -sfn /etc out; mkfifo pipe; echo x > good"
    assert nova("exec", box, "--", "sh", "-c", script).code == 0
    done = nova("cp", f"{box}:/tmp/evil", str(tmp_path / "evil"))
    assert done.code == 1
    assert "not copied: out: the link leads outside the tree" in done.err
    assert "not copied: pipe: " in done.err
    assert os.listdir(tmp_path / "evil") == ["good"]
    told = nova("cp", "--json", f"{box}:/tmp/evil", str(tmp_path / "evil"))
    assert sorted(entry["path"] for entry in told.data["refused"]) == ["out", "pipe"]


def test_a_guest_s_names_move_no_cursor(box: str) -> None:
    script = (
        r'mkdir -p /tmp/names; cd /tmp/names; touch -- "$(printf "\033[31mred\nnext")" "-rf" ☕'
    )
    assert nova("exec", box, "--", "bash", "-c", script).code == 0
    assert results("ls", f"{box}:/tmp/names").split("\n") == ["\\x1b[31mred\\nnext", "-rf", "☕"]
    entries = nova("ls", "--json", f"{box}:/tmp/names").data
    assert entries[0]["name"] == "\x1b[31mred\nnext"
    assert "\\x1b[31mred\\nnext" in results("ls", "-l", f"{box}:/tmp/names")
    missing = nova("ls", f"{box}:/tmp/\x1b[2J")
    assert missing.code == 125
    assert "\x1b" not in missing.err


def test_a_file_is_listed_as_itself_and_a_home_without_a_path(box: str) -> None:
    assert results("ls", f"{box}:/etc/hostname") == "hostname"
    assert nova("exec", box, "--", "touch", "in-home").code == 0
    assert "in-home" in results("ls", box).split("\n")


# Sandboxes that stay.


def test_a_sandbox_outlives_its_maker_and_is_found_by_the_next(box: str) -> None:
    info = next(info for info in nova("ps", "--json").data if info["id"] == box)
    assert (info["name"], info["state"], info["template"]) == ("clibox", "running", "debian-python")
    assert info["metadata"] == {"for": "tests"}
    assert info["detached"]
    assert info["env"] == ["NOVA_TEST_SECRET"]
    assert results("ps", "-q", "--metadata", "for=tests") == box
    line = next(line for line in results("ps").split("\n") if line.startswith(box))
    assert re.search(r"clibox +running +debian-python +\S+ +2?\dm\S* +256 MiB +qemu/\w+", line)
    for name in (box, box[:6], "clibox"):
        assert nova("exec", name, "--", "true").code == 0


def test_looking_changes_no_lifetime(box: str) -> None:
    def deadline() -> float:
        return float(
            next(info["deadline"] for info in nova("ps", "--json").data if info["id"] == box)
        )

    before = deadline()
    nova("exec", box, "--", "true")
    assert deadline() == before


def test_a_name_is_taken_once(box: str) -> None:
    done = nova("start", "--json", "--name", "clibox")
    assert done.code == 125
    assert done.error["type"] == "NameTaken"


def test_a_paused_sandbox_takes_no_command_and_goes_on(box: str) -> None:
    assert results("pause", box) == box
    refused = nova("exec", "--json", box, "--", "true")
    assert (refused.code, refused.error["type"]) == (125, "IllegalTransition")
    assert nova("pause", box).code == 125
    assert nova("resume", "--json", box).data["state"] == "running"
    assert nova("exec", box, "--", "true").code == 0


def test_a_port_is_reached_from_here(box: str) -> None:
    serve = "cd /etc && exec python3 -m http.server --bind 127.0.0.1 8321 >/dev/null 2>&1"
    assert nova("exec", box, "--", "sh", "-c", f"({serve}) & sleep 0.1").code == 0
    address = results("expose", box, "8321")
    assert nova("expose", "--json", box, "8321").data == {"address": address, "port": 8321}
    for _ in range(100):
        try:
            text = urllib.request.urlopen(f"http://{address}/hostname", timeout=10).read()
            break
        except OSError:
            time.sleep(0.2)  # the server is not up yet
    else:
        raise AssertionError("the port never answered")
    assert text
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = nova("expose", box, "8322", "--host-port", port)
    assert done.code == 125
    assert port in done.err


def test_what_it_uses_is_shown(box: str) -> None:
    data = nova("stats", "--json", box).data
    assert data["guest"]["memory_total"] > 100 << 20
    assert data["machine"]["rss_bytes"] > 10 << 20
    assert "guest" in results("stats", box)
    with started("stats", "--watch", "--json", "--interval", "0.2", box) as process:
        assert process.stdout is not None
        for _ in range(2):
            assert json.loads(process.stdout.readline())["id"] == box
        interrupt(process)
        assert process.wait(timeout=LONG) == 130


def test_its_console_is_followed_and_moves_no_cursor(box: str) -> None:
    with started("logs", "--follow", "--only", "console", box) as process:
        assert process.stdout is not None
        # A kernel message of this weight goes to the console whatever the guest's settings.
        words = r"printf '<2>said\033[31m by the guest\n' > /dev/kmsg"
        assert nova("exec", "--user", "root", box, "--", "sh", "-c", words).code == 0
        while b"said" not in (line := process.stdout.readline()):
            assert line
        assert line.endswith(b"said\\x1b[31m by the guest\n")
        interrupt(process)
        assert process.wait(timeout=LONG) == 130
    assert "said" in nova("logs", "--json", box).data["console"]


def test_killing_is_for_one_some_or_all_and_says_how_it_went(qemu: str) -> None:
    done = nova("start", "--json", "--name", "shortlived", "--memory", "192M", "--timeout", "none")
    info = done.data
    assert (info["memory_mib"], info["deadline"]) == (192, None)
    both = nova("kill", "no-such-box", "shortlived")
    assert (both.code, both.out) == (125, f"{info['id']}\n")
    assert "no-such-box" in both.err
    again = nova("exec", "--json", info["id"], "--", "true")
    assert again.code == 125
    assert again.error["why"] == "it was killed"


def test_a_sandbox_that_is_being_made_goes_with_ctrl_c(qemu: str, nova_home: Path) -> None:
    def boxes() -> set[str]:
        return set(results("ps", "-q").split())

    before = boxes()
    with started("run", "-c", "print(1)") as process:
        while not boxes() - before:
            assert process.poll() is None
        interrupt(process)
        assert process.wait(timeout=LONG) == 130
    assert boxes() == before
    assert nova("clean", "--json").data["sandboxes"] == []
