"""What a command, a signal, a path and a limit may be, before anything is sent."""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novasandbox.errors import InvalidConfig, PathError
from novasandbox.guest.launch import Launch, Tail, argv, check_env
from novasandbox.guest.paths import encode_path, shown
from novasandbox.guest.protocol import Tag
from novasandbox.guest.signals import signal_name, signal_number

# Output that is kept.


@given(st.lists(st.binary(max_size=30), max_size=30), st.integers(1, 40))
def test_a_tail_is_the_end_of_all_that_was_added(pieces: list[bytes], limit: int) -> None:
    tail = Tail(limit)
    for piece in pieces:
        tail.add(piece)
    everything = b"".join(pieces)
    assert tail.get() == everything[-limit:]
    assert tail.cut == (len(everything) > limit)


def test_a_tail_keeps_about_its_limit_however_small_the_pieces_are() -> None:
    tail = Tail(1_000)
    for _ in range(100_000):
        tail.add(b"x")
    assert sys.getsizeof(tail._data) < 5_000
    assert tail.get() == b"x" * 1_000


# Signals.


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("sigkill", 9),
        ("USR1", 10),
        ("chld", 17),
        ("SIGPOLL", 29),
        ("SIGRTMIN", 34),
        ("rtmin+3", 37),
        (1, 1),
        (64, 64),
    ],
)
def test_a_signal_has_a_name_or_a_number(name: str | int, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize("name", ["", "SIG", "NOPE", "RTMIN+31", "RTMIN+x", "DFL", 0, -1, 65])
def test_what_is_no_signal_is_the_callers_mistake(name: str | int) -> None:
    with pytest.raises(InvalidConfig, match="is not a signal"):
        signal_number(name)


@pytest.mark.skipif(sys.platform != "linux", reason="the guest's signals are Linux's")
def test_the_names_are_those_of_linux() -> None:
    for each in signal.Signals:
        assert signal_number(each.name if each.name != "SIGRTMAX" else 64) == each.value
        if each < signal.SIGRTMIN:
            assert signal_name(each.value) == each.name


@given(st.integers(0, 2**64 - 1))
def test_every_number_has_a_name(number: int) -> None:
    assert signal_name(number).startswith("SIG")


@given(st.integers(1, 64).filter(lambda n: n not in (32, 33)))
def test_a_name_leads_back_to_its_number(number: int) -> None:
    assert signal_number(signal_name(number)) == number


# Commands.


def test_text_goes_through_a_shell_and_a_list_as_it_is() -> None:
    assert argv("ls | wc") == ("/bin/sh", "-c", "ls | wc")
    assert argv(["ls", PurePosixPath("/tmp"), ""]) == ("ls", "/tmp", "")


@pytest.mark.parametrize("command", [[], [""], "a\0b", ["a", "\0"]])
def test_what_is_no_command_is_the_callers_mistake(command: Any) -> None:
    with pytest.raises(InvalidConfig):
        argv(command)


def test_an_environment_is_a_field_for_each_variable() -> None:
    assert check_env({"A": "1", "B": "x=y"}) == [(Tag.ENV, "A=1"), (Tag.ENV, "B=x=y")]
    assert check_env(None) == []


@pytest.mark.parametrize("env", [{"": "x"}, {"A=": "x"}, {"A\0": "x"}, {"A": "\0"}])
def test_what_is_no_environment_is_the_callers_mistake(env: dict[str, str]) -> None:
    with pytest.raises(InvalidConfig, match="environment"):
        check_env(env)


def test_a_launch_says_all_that_was_asked_for() -> None:
    launch = Launch(
        ("a", "b"), cwd="/w", env={"A": "1"}, user="u", timeout=0.5, stdin=True, name="n"
    )
    assert launch.fields() == [
        (Tag.ARG, "a"),
        (Tag.ARG, "b"),
        (Tag.ENV, "A=1"),
        (Tag.CWD, "/w"),
        (Tag.USER, "u"),
        (Tag.TIMEOUT, 500),
        (Tag.STDIN, 1),
        (Tag.NAME, "n"),
    ]
    assert Launch(("a",)).fields() == [(Tag.ARG, "a")]


def test_the_shortest_timeout_is_not_none_at_all() -> None:
    assert (Tag.TIMEOUT, 1) in Launch(("a",), timeout=1e-9).fields()


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": math.nan},
        {"timeout": math.inf},
        {"output_limit": 0},
        {"on_limit": "wrap"},
    ],
    ids=str,
)
def test_an_illegal_launch_cannot_exist(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig):
        Launch(("a",), **settings)


# Paths.


@pytest.mark.parametrize(
    ("path", "raw"),
    [
        ("a/b", b"a/b"),
        (b"\xff", b"\xff"),
        ("caf\xe9", "café".encode()),
        ("\udcff", b"\xff"),
        (PurePosixPath("/x/y"), b"/x/y"),
        ("/" + "/".join(["x" * 255] * 15), ("/" + "/".join(["x" * 255] * 15)).encode()),
        (" \n", b" \n"),
    ],
)
def test_a_path_is_the_bytes_that_the_kernel_takes(path: Any, raw: bytes) -> None:
    assert encode_path(path) == raw


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "empty"),
        (b"", "empty"),
        ("a\0b", "NUL"),
        (b"\0", "NUL"),
        ("\ud800", "surrogate"),
        ("x" * 256, "too long"),
        ("ä" * 128, "too long"),
        ("x/" * 2_048, "4096 bytes"),
    ],
)
def test_a_path_that_no_guest_could_have_is_refused(path: Any, words: str) -> None:
    with pytest.raises(PathError, match=words):
        encode_path(path)


@given(st.one_of(st.text(max_size=300), st.binary(max_size=300)))
def test_any_path_is_encoded_or_refused_and_can_be_shown(path: str | bytes) -> None:
    text = shown(path)
    assert text.isprintable()
    assert len(text) <= 121
    try:
        raw = encode_path(path)
    except PathError:
        return
    assert raw == os.fsencode(path)
