"""`nova shell` and `nova exec -t`: a real terminal, given back however it ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import Terminal, nova, results, until_runs

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def box(nova_home: Path, qemu: str) -> Iterator[str]:
    """A sandbox that stays."""
    identity = results("start", "--timeout", "30m")
    yield identity
    nova("kill", identity)


def test_a_shell_is_a_real_terminal(box: str) -> None:
    with Terminal("shell", box, rows=31, cols=101) as terminal:
        terminal.expect(r"\$ ")
        assert not terminal.is_restored
        terminal.type("tty; stty size; echo $TERM; echo done-$((6*7))\r")
        terminal.expect(r"/dev/pts/\d+\r\n31 101\r\nxterm\r\ndone-42")
        terminal.resize(41, 121)
        terminal.type("\r")
        terminal.type("until [ \"$(stty size)\" = '41 121' ]; do :; done; echo re''sized\r")
        terminal.expect("resized")
        terminal.type("exit 5\r")
        assert terminal.wait() == 5
        assert terminal.is_restored


def test_ctrl_c_reaches_the_guest_and_not_us(box: str) -> None:
    with Terminal("shell", box) as terminal:
        terminal.expect(r"\$ ")
        terminal.type("sh -c 'sleep 74; echo no'\r")
        until_runs(box, "sleep")
        terminal.type("\x03")
        terminal.expect(r"\$ ")
        terminal.type("echo still-$((40+2))\r")
        terminal.expect("still-42")
        terminal.expect(r"\$ ")
        terminal.type("\x04")
        assert terminal.wait() == 0
        assert terminal.is_restored


def test_a_shell_without_a_box_is_in_a_fresh_one_that_is_gone_after(qemu: str) -> None:
    before = results("ps", "-q")
    with Terminal("shell", "--quiet") as terminal:
        terminal.expect(r"\$ ")
        assert results("ps", "-q") != before
        terminal.type("exit\r")
        assert terminal.wait() == 0
        assert terminal.is_restored
    assert results("ps", "-q") == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_given_back_when_a_signal_ends_us(box: str, number: signal.Signals) -> None:
    with Terminal("shell", box) as terminal:
        terminal.expect(r"\$ ")
        terminal.process.send_signal(number)
        assert terminal.wait() == 128 + number
        assert terminal.is_restored


def test_the_terminal_is_given_back_when_the_sandbox_ends(qemu: str) -> None:
    identity = results("start")
    with Terminal("shell", identity) as terminal:
        terminal.expect(r"\$ ")
        assert nova("kill", identity).code == 0
        assert terminal.wait() == 125
        assert "the sandbox was ended" in terminal.seen
        assert terminal.is_restored


def test_the_way_out_works_though_the_guest_ignores_everything(box: str) -> None:
    with Terminal("exec", "-t", box, "--", "sh", "-c", "stty raw -echo; echo up; sleep 75") as it:
        it.expect("up")
        it.type("\x1d\x1d\x1d")
        assert it.wait() == 130
        assert it.is_restored
    assert nova("exec", box, "--", "pgrep", "-f", "sleep 75").code == 1


def test_a_command_on_a_terminal_has_its_own_exit_code(box: str) -> None:
    with Terminal(
        "exec", "-t", box, "--", "sh", "-c", "test -t 0 && test -t 1; exit 7"
    ) as terminal:
        assert terminal.wait() == 7


def test_without_asking_for_one_a_command_has_no_terminal_and_no_input(box: str) -> None:
    with Terminal("exec", box, "--", "sh", "-c", "test -t 1 || echo none; cat") as terminal:
        terminal.expect("none")
        assert terminal.wait() == 0


def test_a_terminal_s_lines_are_passed_on_when_asked(box: str) -> None:
    with Terminal("exec", "-i", box, "--", "sh", "-c", "read x; echo got-$x") as terminal:
        terminal.type("word\n")
        terminal.expect("got-word")
        assert terminal.wait() == 0


def test_a_terminal_in_the_guest_needs_none_here(box: str) -> None:
    done = nova("exec", "-t", box, "--", "sh", "-c", "test -t 0 && cat", stdin="typed\n")
    assert done.code == 0
    assert "typed\r\n" in done.out


def test_a_shell_without_a_terminal_says_what_to_do(box: str) -> None:
    done = nova("shell", box, stdin="")
    assert done.code == 125
    assert "needs a terminal" in done.err
    assert "nova exec" in done.err


def test_a_table_on_a_terminal_is_drawn(box: str) -> None:
    with Terminal("ps", cols=120) as terminal:
        terminal.expect(box)
        assert terminal.wait() == 0
    with Terminal("template", "ls", cols=60) as terminal:
        terminal.expect("debian-python")
        terminal.expect("…")  # what does not fit is cut
        assert terminal.wait() == 0
