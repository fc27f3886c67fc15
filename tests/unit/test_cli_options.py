"""Values on the command line: sizes, durations, variables, places, programs."""

from __future__ import annotations

import math
from pathlib import Path

import click
import pytest

from novasandbox.cli import options, run
from novasandbox.cli.files import Place, place
from novasandbox.cli.sandboxes import labels, start_command
from novasandbox.core.hypervisor import SandboxConfig
from novasandbox.core.reaching import settled


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("512", 512),
        ("512M", 512),
        ("512m", 512),
        ("512MiB", 512),
        ("1G", 1024),
        ("1.5g", 1536),
        ("2GB", 2048),
        ("1T", 1 << 20),
        ("2048K", 2),
    ],
)
def test_a_size_is_read_as_mib(text: str, mib: int) -> None:
    assert options.size(text) == mib


@pytest.mark.parametrize("text", ["", "x", "-1", "1P", "1K", "0", "0.3", "1 2", "1e3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        options.size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("0.5", 0.5),
        ("250ms", 0.25),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
    ],
)
def test_a_duration_is_read_as_seconds(text: str, seconds: float) -> None:
    assert options.duration(text) == seconds


def test_no_end_is_a_duration() -> None:
    assert options.duration("none") == math.inf
    assert options.limit(options.duration("none")) is None
    assert options.limit(None) is None
    assert options.limit(3.0) == 3.0


@pytest.mark.parametrize("text", ["", "0", "0s", "-5", "5w", "1:30", "nan", "inf"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        options.duration(text)


def test_a_bare_variable_takes_its_value_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "a b=c")
    assert options.environment(("HERE", "X=1", "EMPTY="), ()) == {
        "HERE": "a b=c",
        "X": "1",
        "EMPTY": "",
    }


def test_a_variable_that_is_not_here_is_an_error() -> None:
    with pytest.raises(click.UsageError, match="NOT_HERE_AT_ALL is not set here"):
        options.environment(("NOT_HERE_AT_ALL",), ())


def test_a_file_s_variables_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "from here")
    file = tmp_path / "env"
    file.write_text('# a comment\n\nA=1\nB=two words # kept\n  HERE\nQ="quoted"\n')
    found = options.environment(("A=2",), (file,))
    assert found == {"A": "2", "B": "two words # kept", "HERE": "from here", "Q": '"quoted"'}


def test_no_message_shows_a_value(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("GOOD=1\n=hush-1234\n")
    with pytest.raises(click.UsageError) as caught:
        options.environment((), (file,))
    assert "line 2" in caught.value.format_message()
    assert "hush" not in caught.value.format_message()
    with pytest.raises(click.UsageError) as caught:
        options.environment(("=hush-1234",), ())
    assert "hush" not in caught.value.format_message()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("box:/a/b", Place("box", "/a/b")),
        ("box:", Place("box", ".")),
        ("box:a:b", Place("box", "a:b")),
        ("file", Place(None, "file")),
        ("./a:b", Place(None, "./a:b")),
        ("/a:b", Place(None, "/a:b")),
        ("dir/a:b", Place(None, "dir/a:b")),
        (":x", Place(None, ":x")),
    ],
)
def test_a_place_is_here_or_in_a_box(text: str, expected: Place) -> None:
    assert place(text) == expected


def test_only_what_was_given_is_asked_for() -> None:
    def settings(*words: str) -> dict[str, object]:
        context = start_command.make_context("start", list(words))
        return options.machine_settings(context.params)

    assert settings() == {}
    assert settings("--cold", "--memory", "1G") == {"cold": True, "memory_mib": 1024}
    assert settings("--snapshot", "base", "--name", "n") == {"snapshot": "base", "name": "n"}


def test_labels_are_pairs() -> None:
    assert labels(("a=b", "c=d=e", "f=")) == {"a": "b", "c": "d=e", "f": ""}
    with pytest.raises(click.UsageError):
        labels(("a",))


@pytest.mark.parametrize(
    ("name", "content", "shell", "interpreter"),
    [
        ("job.py", "print()", False, ["python3"]),
        ("job.py", "#!/opt/python\n", False, ["python3"]),
        ("job", "print()", False, ["python3"]),
        ("job.sh", "ls", False, ["/bin/sh"]),
        ("job.sh", "#!/bin/bash\n", False, []),
        ("job", "#!/usr/bin/perl\n", False, []),
        ("job.txt", "ls", True, ["/bin/sh"]),
        ("job", "", False, ["python3"]),
    ],
)
def test_a_file_says_what_runs_it(
    tmp_path: Path, name: str, content: str, shell: bool, interpreter: list[str]
) -> None:
    file = tmp_path / name
    file.write_text(content)
    assert run._interpreter(file, shell) == interpreter


def test_what_depends_on_this_process_is_settled_before_the_keeper_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOVA_PROVIDER", "qemu")
    monkeypatch.delenv("NOVA_KERNEL", raising=False)
    told = settled(SandboxConfig(template="./own.json", kernel="vmlinux", env={"A": "1"}))
    assert told["template"] == str(tmp_path / "own.json")
    assert told["kernel"] == str(tmp_path / "vmlinux")
    assert (told["provider"], told["env"]) == ("qemu", {"A": "1"})
    monkeypatch.setenv("NOVA_KERNEL", "mine")
    assert settled(SandboxConfig())["kernel"] == str(tmp_path / "mine")
    assert settled(SandboxConfig(provider="other"))["provider"] == "other"
