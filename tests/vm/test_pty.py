"""Terminals: one stream in order, control characters, sizes."""

from __future__ import annotations

import pytest

from novasandbox import Process, PtySize, Sandbox
from waiting import until

pytestmark = pytest.mark.vm


async def _read_until(process: Process, wanted: str) -> str:
    """All output up to the piece that holds `wanted`."""
    seen = ""
    async for output in process:
        assert output.stream == "stdout"
        seen += output.text
        if wanted in seen:
            return seen
    raise AssertionError(f"it ended without {wanted!r}: {seen!r}")


async def test_both_streams_come_as_one_in_order(sandbox: Sandbox) -> None:
    code = (
        "import sys\n"
        "for n in range(2000):\n"
        "    print(n, file=sys.stderr if n % 2 else sys.stdout, flush=True)\n"
    )
    process = await sandbox.start(["python3", "-c", code], pty=True)
    text = "".join([output.text async for output in process])
    assert text.split("\r\n") == [*map(str, range(2000)), ""]
    assert (await process.wait()).exit_code == 0


async def _sleeps(sandbox: Sandbox, seconds: str) -> bool:
    """Whether a sleep of that length is in the foreground of its terminal."""
    state = await sandbox.exec(["ps", "-o", "stat=", "-C", "sleep", "-o", "args="])
    return any("+" in line.split()[0] for line in state.stdout.splitlines() if seconds in line)


async def test_control_c_ends_the_command(sandbox: Sandbox) -> None:
    process = await sandbox.start(["sleep", "60.1"], pty=True)
    await until(lambda: _sleeps(sandbox, "60.1"))
    await process.stdin.write(b"\x03")
    assert (await process.wait()).signal == "SIGINT"


async def test_control_c_ends_a_command_in_a_nested_shell_only(sandbox: Sandbox) -> None:
    process = await sandbox.start(["sh"], pty=True, env={"PS1": ""})
    await process.stdin.write("sh\nsleep 60.2\n")
    await until(lambda: _sleeps(sandbox, "60.2"))
    await process.stdin.write(b"\x03")
    await until(lambda: _is_gone(sandbox, "sleep 60[.]2"))
    await process.stdin.write("echo depth $((40 + 2))\nexit 5\n")
    await _read_until(process, "depth 42")
    await process.stdin.write("echo outer $((50 + 2)) $?\nexit 6\n")
    await _read_until(process, "outer 52 5")
    assert (await process.wait()).exit_code == 6


async def _is_gone(sandbox: Sandbox, pattern: str) -> bool:
    return not (await sandbox.exec(["pgrep", "-f", pattern])).ok


async def test_a_callers_ignored_interrupt_is_not_handed_on(sandbox: Sandbox) -> None:
    result = await sandbox.exec("grep SigIgn /proc/self/status")
    assert int(result.stdout.split()[1], 16) == 0


async def test_it_is_a_controlling_terminal_of_the_size_asked_for(sandbox: Sandbox) -> None:
    command = (
        "tty; stty size; echo through >/dev/tty; echo $TERM; ps -o tty= -p $$;"
        "echo named > $(tty); echo again > /dev/stdout"
    )
    process = await sandbox.start(command, pty=PtySize(rows=33, cols=101))
    lines = (await process.wait()).stdout.split("\r\n")
    assert lines[0].startswith("/dev/pts/")
    assert lines[1] == "33 101"
    assert lines[2] == "through"
    assert lines[3]
    assert f"/dev/{lines[4].strip()}" == lines[0]
    assert lines[5:] == ["named", "again", ""]


async def test_a_new_size_is_told_to_the_program(sandbox: Sandbox) -> None:
    command = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done"
    process = await sandbox.start(command, pty=(24, 80))
    await _read_until(process, "ready")
    await process.resize(50, 132)
    assert "50 132" in await _read_until(process, "50 132")
    assert (await process.wait()).exit_code == 0


async def test_control_d_is_the_end_of_input(sandbox: Sandbox) -> None:
    process = await sandbox.start(["cat"], pty=True)
    await process.stdin.write("a line\n")
    await _read_until(process, "a line\r\na line\r\n")
    await process.stdin.write(b"\x04")
    assert (await process.wait()).exit_code == 0


async def test_killing_it_takes_what_runs_in_the_foreground_too(sandbox: Sandbox) -> None:
    process = await sandbox.start(["sh"], pty=True)
    await process.stdin.write("sleep 60.3\n")
    await until(lambda: _sleeps(sandbox, "60.3"))
    await process.kill()
    assert (await process.wait()).signal == "SIGKILL"
    assert await _is_gone(sandbox, "sleep 60[.]3")
