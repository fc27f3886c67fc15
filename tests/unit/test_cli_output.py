"""What is printed: nothing of a guest's moves the cursor, and errors have their codes."""

from __future__ import annotations

import base64
import json
import re
import signal
import sys

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from novasandbox.cli import errors, logs, output
from novasandbox.core.hypervisor import SandboxState
from novasandbox.errors import (
    CommandNotStarted,
    FileError,
    IllegalTransition,
    NovaError,
    OperationTimeout,
    SandboxNotFound,
)

_HARMFUL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ☕ größe", "plain ☕ größe"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("caf\udce9", r"caf\xe9"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert output.escaped(text) == shown


def test_a_text_of_lines_keeps_its_lines() -> None:
    assert output.escaped("a\r\nb\tc\rd\x1b", lines=True) == "a\nb\tc\\rd\\x1b"


@given(st.text())
def test_nothing_harmful_is_left(text: str) -> None:
    assert _HARMFUL.search(output.escaped(text)) is None
    assert (
        _HARMFUL.search(output.escaped(text, lines=True).replace("\n", "").replace("\t", ""))
        is None
    )
    output.escaped(text).encode()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_carries_everything_and_shows_nothing(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        written: list[str] = []
        patch.setattr("builtins.print", lambda line, flush: written.append(line))
        output.print_json({"text": text})
    assert written[0].isascii()
    assert written[0].isprintable()
    assert json.loads(written[0]) == {"text": text}


def test_a_table_in_a_pipe_is_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("A", "LONG"), [("1\x1b", "x"), ("22", "")])
    assert capsys.readouterr().out == "A      LONG\n1\\x1b  x\n22\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (256 << 20, "256 MiB"),
        (3 << 40, "3072 GiB"),
    ],
)
def test_sizes_are_for_people(size: float | None, text: str) -> None:
    assert output.human_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-3, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (200, "3m20s"),
        (3600, "1h"),
        (7500, "2h5m"),
        (90_000, "1d1h"),
        (1e7, "115d17h"),
    ],
)
def test_times_are_for_people(seconds: float | None, text: str) -> None:
    assert output.human_time(seconds) == text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NovaError("x"), 125),
        (CommandNotStarted("x", errno=2, stage="exec"), 127),
        (CommandNotStarted("x", errno=13, stage="exec"), 126),
        (CommandNotStarted("x", errno=2, stage="cwd"), 126),
        (OperationTimeout("x"), 124),
        (FileError("x", errno=2, path="/x"), 125),
        (PermissionError(13, "no"), 125),
        (ZeroDivisionError(), 125),
        (click.UsageError("x"), 125),
        (click.Abort(), 130),
        (KeyboardInterrupt(), 130),
        (errors.Interrupted(signal.SIGTERM), 143),
        (SystemExit(4), 4),
    ],
)
def test_every_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert errors.conclude(error, []) == code


def test_an_error_is_one_harmless_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = SandboxNotFound("there is no sandbox '\x1b[2J'", fix="Look.")
    errors.conclude(error, [])
    assert capsys.readouterr().err == "nova: there is no sandbox '\\x1b[2J'. Look.\n"


def test_a_timeout_in_json_has_the_output_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    error = OperationTimeout("late", stdout=b"a\xff", stderr=b"b", sandbox_id="id")
    assert errors.conclude(error, ["exec", "--json"]) == 124
    told = json.loads(capsys.readouterr().err)["error"]
    assert told["stdout"] == "a\ufffd"
    assert base64.b64decode(told["stdout_base64"]) == b"a\xff"
    assert told["stderr"] == "b"
    assert "stderr_base64" not in told


def test_a_transition_in_json_has_both_states(capsys: pytest.CaptureFixture[str]) -> None:
    error = IllegalTransition(
        "cannot", current=SandboxState.PAUSED, required=(SandboxState.RUNNING,)
    )
    errors.conclude(error, ["--json"])
    told = json.loads(capsys.readouterr().err)["error"]
    assert (told["current"], told["required"]) == ("PAUSED", ["RUNNING"])


def test_a_fault_of_ours_shows_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError) as caught:
        sys.modules["no such module"]
    assert errors.conclude(caught.value, []) == 125
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "fresh"),
    [
        ("", "abc", "abc"),
        ("abc", "abc", ""),
        ("abc", "abcdef", "def"),
        ("x" * 600 + "end", "x" * 100 + "end more", "x" * 100 + "end more"),
        ("lost " + "y" * 600, "y" * 600 + "more", "more"),
        ("abc", "xyz", "xyz"),
    ],
)
def test_a_followed_log_tells_what_is_new(old: str, new: str, fresh: str) -> None:
    assert logs.news(old, new) == fresh
