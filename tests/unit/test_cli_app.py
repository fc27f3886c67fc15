"""`nova` itself: its help, its verbs, what a wrong command line gets, and how fast it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from command_line import NOVA, nova
from novasandbox.cli import app

Run = Callable[..., tuple[int, str, str]]
GROUPS = ("pool", "snapshot", "template")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`nova` in this process: exit code, output, errors."""

    def call(*words: str) -> tuple[int, str, str]:
        code = app.run(words)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_the_help_names_every_verb(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for verb, (_, line) in app.VERBS.items():
        assert verb in out
        assert line in out


@pytest.mark.parametrize("verb", app.VERBS)
def test_every_verb_has_help_and_speaks_json(run: Run, verb: str) -> None:
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert out.startswith(f"Usage: nova {verb}")
    assert "--json" in out or verb in GROUPS


@pytest.mark.parametrize("verb", GROUPS)
def test_every_verb_of_a_group_speaks_json(run: Run, verb: str) -> None:
    group = app.nova.get_command(click.Context(app.nova), verb)
    assert isinstance(group, click.Group)
    for name in group.commands:
        code, out, _ = run(verb, name, "--help")
        assert code == 0
        assert "--json" in out


def test_without_a_verb_it_helps(run: Run) -> None:
    assert run()[:2] == run("--help")[:2]


def test_the_version_is_the_package_s(run: Run) -> None:
    import novasandbox

    assert run("--version")[1] == f"nova {novasandbox.__version__}\n"


def test_an_unknown_verb_is_told_its_nearest(run: Run) -> None:
    code, _, err = run("exce", "box")
    assert code == 125
    assert "Did you mean 'exec'?" in err


@pytest.mark.parametrize(
    "words",
    [
        ("exec",),
        ("exec", "box"),
        ("exec", "--no-such", "box", "--", "true"),
        ("run", "/no/such/file.py"),
        ("run", "/"),
        ("start", "--memory", "much"),
        ("start", "--memory", "1K"),
        ("start", "--env", "=value"),
        ("kill",),
        ("kill", "box", "--all"),
        ("cp", "here", "there"),
        ("cp", "a:here", "b:there"),
        ("expose", "box", "http"),
        ("shell", "box", "--memory", "1G"),
        ("shell", "box"),
        ("template", "no-such-verb"),
        ("start", "--snapshot", "one", "--template", "another"),
        ("run", "--snapshot", "", "-c", "pass"),
        ("hibernate",),
        ("rollback", "box"),
        ("fork", "box", "-n", "0"),
        ("fork", "box", "-n", "many"),
        ("snapshot", "--name"),
        ("snapshot", "box", "other"),
        ("snapshot", "take"),
        ("snapshot", "rm"),
        ("completion", "tcsh"),
        ("start", "--on-idle", "pause"),
        ("start", "--idle-timeout", "0"),
        ("start", "--on-timeout", "sleep"),
    ],
)
def test_a_wrong_command_line_gives_125_and_no_traceback(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert code == 125
    assert out == ""
    assert "nova: " in err
    assert "Traceback" not in err


def test_a_wrong_command_line_is_told_in_json_where_that_is_asked(run: Run) -> None:
    code, out, err = run("ps", "--json", "--no-such")
    assert (code, out) == (125, "")
    assert json.loads(err)["error"]["type"] == "UsageError"


def test_the_guest_s_own_json_option_is_not_ours(run: Run) -> None:
    _, _, err = run("exec", "no-such-box", "--", "program", "--json")
    assert err.startswith("nova: ")


@pytest.mark.parametrize("name", ["a b", "-x", "a/b", "\x1b[31m", "n" * 64, ""])
def test_a_bad_name_is_refused_at_creation(run: Run, name: str) -> None:
    code, out, err = run("start", f"--name={name}")
    assert (code, out) == (125, "")
    assert "a name has" in err
    assert "\x1b" not in err


def test_a_box_that_does_not_exist_differs_from_a_command_that_failed(run: Run) -> None:
    code, _, err = run("exec", "no-such-box", "--", "true")
    assert code == 125
    assert "there is no sandbox 'no-such-box'" in err


def test_an_error_in_json_carries_what_why_and_fix(run: Run) -> None:
    code, _, err = run("exec", "--json", "no-such-box", "--", "true")
    assert code == 125
    error = json.loads(err)["error"]
    assert error["type"] == "SandboxNotFound"
    assert error["fix"] == "nova ps lists those that run."


def test_an_empty_host_lists_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOVA_HOME", str(tmp_path))
    assert run("ps", "--json")[1] == "[]\n"
    assert run("ps", "-q")[1] == ""
    assert run("kill", "--all")[:2] == (0, "")
    assert run("snapshot", "ls", "--json")[1] == "[]\n"
    assert run("snapshot", "ls", "-q")[1] == ""
    assert run("tree")[:2] == (0, "")
    assert json.loads(run("tree", "--json")[1]) == {"snapshots": [], "sandboxes": []}


@pytest.mark.parametrize(
    ("words", "box"),
    [
        (("no-such",), "no-such"),
        (("take", "no-such"), "no-such"),
        (("--name", "base", "no-such"), "no-such"),
        (("no-such", "--name", "base"), "no-such"),
        (("no-such", "--name", "ls"), "no-such"),
        (("--", "ls"), "ls"),
        (("take", "rm"), "rm"),
    ],
)
def test_a_snapshot_is_of_a_box_unless_the_word_is_one_of_its_own(
    run: Run, own_home: Path, words: tuple[str, ...], box: str
) -> None:
    code, out, err = run("snapshot", *words)
    assert (code, out) == (125, "")
    assert f"there is no sandbox '{box}'" in err


def test_what_is_said_of_snapshots_is_true(run: Run, own_home: Path) -> None:
    code, _, err = run("snapshot", "rm", "no-such")
    assert code == 125
    assert "there is no snapshot 'no-such'. nova snapshot ls shows" in err
    assert run("snapshot", "ls")[0] == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed(run: Run, shell: str) -> None:
    code, out, _ = run("completion", shell)
    assert code == 0
    assert "_NOVA_COMPLETE" in out


def test_verbs_and_options_are_completed() -> None:
    def completed(words: str, at: int) -> list[str]:
        env = {"COMP_WORDS": words, "COMP_CWORD": str(at), "_NOVA_COMPLETE": "bash_complete"}
        return [line.partition(",")[2] for line in nova(env=env).out.splitlines()]

    assert completed("nova ex", 1) == ["exec", "expose"]
    assert completed("nova start --mem", 2) == ["--memory"]
    assert completed("nova run --sna", 2) == ["--snapshot"]
    assert completed("nova snapshot ", 2) == ["ls", "rm", "take"]
    assert completed("nova snapshot --n", 2) == ["--name"]
    assert completed("nova snapshot box --n", 3) == ["--name"]


def test_a_warning_of_the_library_moves_no_cursor() -> None:
    script = (
        "import logging; from novasandbox.cli import loop\n"
        "async def work(_): logging.getLogger('novasandbox.core').warning('said \\x1b[31m')\n"
        "loop.run(work); loop.run(work)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.stderr == b"nova: said \\x1b[31m\n" * 2


def test_nobody_reading_ends_it_quietly() -> None:
    with subprocess.Popen(
        [*NOVA, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 128 + 13


def test_closed_standard_descriptors_are_no_fault() -> None:
    for closed in ("<&-", ">&-", "2>&-"):
        command = f'exec "{sys.executable}" -m novasandbox ps {closed}'
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, timeout=60)
        assert done.returncode == 0, (closed, done)
        assert done.stderr == b""


def test_help_loads_no_verb_and_nothing_heavy() -> None:
    heavy = ["asyncio", "rich", "pydantic", "psutil", "aiofiles", "novasandbox.core"]
    heavy += [f"novasandbox.cli.{module}" for module, _ in app.VERBS.values()]
    script = (
        "import sys; from novasandbox.cli.app import run; run(['--help'])\n"
        f"print('LOADED', *[name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_help_comes_within_a_quarter_of_a_second(tmp_path: Path) -> None:
    # Bytecode as an installed package has it; the best of several, since others work here too.
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    took = []
    for _ in range(8):
        began = time.perf_counter()
        subprocess.run([*NOVA, "--help"], stdout=subprocess.DEVNULL, env=env, check=True)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.25
