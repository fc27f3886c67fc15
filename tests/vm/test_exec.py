"""Commands: what they are given, what they print, how they end, and what they leave."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os

import psutil
import pytest

from novasandbox import Sandbox
from novasandbox.errors import (
    CommandNotStarted,
    InvalidConfig,
    OperationTimeout,
    OutputLimitExceeded,
)
from waiting import until

pytestmark = pytest.mark.vm

# A server on port 8000 behind a shell that waits for it.
SERVER = "echo begun; python3 -m http.server 8000 & wait"
LISTENING = r"grep -q ':1F40 00000000:0000 0A' /proc/net/tcp"


async def _listens(sandbox: Sandbox) -> bool:
    return (await sandbox.exec(LISTENING)).ok


async def _runs(sandbox: Sandbox, pattern: str) -> bool:
    return (await sandbox.exec(["pgrep", "-f", pattern])).ok


async def test_at_its_timeout_a_server_and_its_shell_are_gone(sandbox: Sandbox) -> None:
    running = asyncio.create_task(sandbox.exec(SERVER, timeout=8))
    while not running.done() and not await _listens(sandbox):
        await asyncio.sleep(0.1)
    with pytest.raises(OperationTimeout) as caught:
        await running
    assert caught.value.stdout == "begun\n"
    assert not await _listens(sandbox)
    assert not await _runs(sandbox, "http[.]server")


async def test_a_killed_handle_takes_the_whole_tree(sandbox: Sandbox) -> None:
    process = await sandbox.start(SERVER)
    await until(lambda: _listens(sandbox))
    await process.kill()
    result = await process.wait()
    assert result.signal == "SIGKILL"
    assert "begun\n" in result.stdout
    await until(lambda: _is_free(sandbox), within=5)


async def test_a_kill_ends_nothing_that_starts_after_it(sandbox: Sandbox) -> None:
    with pytest.raises(OperationTimeout):
        await sandbox.exec("sleep 61", timeout=0.2)
    for _ in range(3):
        results = await asyncio.gather(*(sandbox.exec("sleep 0.1") for _ in range(8)))
        assert [result.exit_code for result in results] == [0] * 8


async def _is_free(sandbox: Sandbox) -> bool:
    return not await _listens(sandbox) and not await _runs(sandbox, "http[.]server")


async def test_a_child_left_behind_does_not_hold_up_the_call(sandbox: Sandbox) -> None:
    async with asyncio.timeout(10):
        result = await sandbox.exec("sleep 30.7 & echo started")
    assert (result.stdout, result.exit_code) == ("started\n", 0)
    assert await _runs(sandbox, "sleep 30[.]7")
    await sandbox.exec(["pkill", "-f", "sleep 30[.]7"])


async def test_every_character_of_both_streams_arrives(sandbox: Sandbox) -> None:
    code = "import sys; sys.stdout.write('☕' * 100_000); sys.stderr.write('e' * (2 << 20))"
    result = await sandbox.exec(["python3", "-c", code])
    assert result.stdout == "☕" * 100_000
    assert result.stderr == "e" * (2 << 20)
    assert result.truncated == frozenset()


async def test_a_limit_flags_each_cut_stream_and_keeps_its_end(sandbox: Sandbox) -> None:
    command = "seq 1 20000 >&2; echo 'the reason' >&2; echo short"
    result = await sandbox.exec(command, output_limit=1000)
    assert result.truncated == {"stderr"}
    assert len(result.stderr_bytes) == 1000
    assert result.stderr.endswith("20000\nthe reason\n")
    assert result.stdout == "short\n"
    both = await sandbox.exec("seq 1 20000; seq 1 20000 >&2", output_limit=1000)
    assert both.truncated == {"stdout", "stderr"}


async def test_streamed_text_never_splits_a_character(sandbox: Sandbox) -> None:
    code = (
        "import os, time\n"
        "for byte in '☕é😀'.encode() * 20:\n"
        "    os.write(1, bytes([byte])); time.sleep(0.001)"
    )
    process = await sandbox.start(["python3", "-c", code])
    text = "".join([output.text async for output in process])
    assert text == "☕é😀" * 20
    assert (await process.wait()).exit_code == 0


async def test_binary_output_is_kept_as_it_is(sandbox: Sandbox) -> None:
    everything = bytes(range(256)) * 64
    result = await sandbox.exec("cat; cat /dev/null >&2", stdin=everything)
    assert result.stdout_bytes == everything
    assert "\N{REPLACEMENT CHARACTER}" in result.stdout


async def test_one_argument_that_is_too_long_is_named_so(sandbox: Sandbox) -> None:
    with pytest.raises(CommandNotStarted, match="131,071") as caught:
        await sandbox.exec(["echo", "x" * 300_000])
    assert caught.value.errno == errno.E2BIG
    assert (await sandbox.exec("true")).ok


async def test_many_long_arguments_work(sandbox: Sandbox) -> None:
    arguments = ["x" * 100_000, "y" * 100_000, "z" * 100_000]
    code = "import sys; print([len(word) for word in sys.argv[1:]])"
    result = await sandbox.exec(["python3", "-c", code, *arguments], env={"LONG": "e" * 100_000})
    assert result.stdout == "[100000, 100000, 100000]\n"


async def test_five_mebibytes_of_input_arrive(sandbox: Sandbox) -> None:
    data = os.urandom(5 << 20)
    result = await sandbox.exec("sha256sum", stdin=data)
    assert result.stdout.split()[0] == hashlib.sha256(data).hexdigest()


async def test_input_that_nobody_reads_holds_nothing_up(sandbox: Sandbox) -> None:
    async with asyncio.timeout(30):
        assert (await sandbox.exec("exec <&-; echo on", stdin=bytes(5 << 20))).stdout == "on\n"
        assert (await sandbox.exec("head -c 3", stdin=b"abc" * 1_000_000)).stdout == "abc"


async def test_writing_to_an_ended_process_is_a_broken_pipe(sandbox: Sandbox) -> None:
    process = await sandbox.start("exit 3")
    assert (await process.wait()).exit_code == 3
    with pytest.raises(BrokenPipeError):
        await process.stdin.write(b"too late")
    await process.stdin.close()


async def test_a_process_that_closes_its_input_stops_the_writer(sandbox: Sandbox) -> None:
    process = await sandbox.start("exec <&-; echo closed; exec sleep 981")
    async for output in process:
        assert output.text == "closed\n"
        break
    try:
        async with asyncio.timeout(20):
            for _ in range(64):
                await process.stdin.write(bytes(65_536))
    except (BrokenPipeError, TimeoutError):
        pass
    await process.kill()
    assert (await process.wait()).signal == "SIGKILL"


@pytest.mark.parametrize("on_limit", ["tail", "error"])
async def test_endless_output_costs_the_host_bounded_memory(
    sandbox: Sandbox, on_limit: str
) -> None:
    before = psutil.Process().memory_info().rss
    with pytest.raises(OperationTimeout if on_limit == "tail" else OutputLimitExceeded) as caught:
        await sandbox.exec(
            "yes 'a line of output that never ends'",
            timeout=3,
            output_limit=1 << 20,
            on_limit=on_limit,  # type: ignore[arg-type]  # a parameter of the test
        )
    assert caught.value.stdout_bytes.endswith(b"never ends\n") or on_limit == "error"
    assert len(caught.value.stdout_bytes) == 1 << 20
    assert psutil.Process().memory_info().rss - before < 64 << 20
    assert not await _runs(sandbox, "yes 'a line")


async def test_output_that_nobody_reads_stops_its_own_command_only(sandbox: Sandbox) -> None:
    process = await sandbox.start("yes unread")
    for _ in range(5):
        assert (await sandbox.exec("echo on")).stdout == "on\n"
    await process.kill()
    assert (await process.wait()).signal == "SIGKILL"


async def test_all_output_comes_before_the_exit_code(sandbox: Sandbox) -> None:
    results = await asyncio.gather(
        *(sandbox.exec(f"seq 1 {1000 + n}; exit {n}") for n in range(10))
    )
    assert [result.exit_code for result in results] == list(range(10))
    for n, result in enumerate(results):
        assert result.stdout.endswith(f"\n{1000 + n}\n")


async def test_calls_cancelled_at_any_moment_leave_no_process(sandbox: Sandbox) -> None:
    before = (await sandbox.metrics()).guest.processes
    known = await sandbox.processes()
    for pause in (0.0, 0.001, 0.005, 0.02, 0.05, 0.1):
        calls = [asyncio.create_task(sandbox.exec("sleep 982 & sleep 982")) for _ in range(4)]
        await asyncio.sleep(pause)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert all(call.cancelled() for call in calls)

    async def is_quiet() -> bool:
        return (await sandbox.metrics()).guest.processes <= before

    await until(is_quiet)
    assert not await _runs(sandbox, "sleep 982")
    assert await sandbox.processes() == known


async def test_a_signal_reaches_the_process_or_its_tree(sandbox: Sandbox) -> None:
    process = await sandbox.start("trap 'echo caught; exit 9' TERM; sleep 983 & echo ready; wait")
    seen = ""
    async for output in process:
        seen += output.text
        if seen == "ready\n":
            await process.signal("TERM")
    assert seen == "ready\ncaught\n"
    assert (await process.wait()).exit_code == 9
    assert await _runs(sandbox, "sleep 983")
    await sandbox.exec(["pkill", "-f", "sleep 983"])


async def test_a_descendant_that_hides_is_found_all_the_same(sandbox: Sandbox) -> None:
    hide = (
        "import os\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.execvp('sleep', ['sleep', '984'])\n"
        "    os._exit(0)\n"
        "os.wait(); print('hidden', flush=True); os.execvp('sleep', ['sleep', '985'])\n"
    )
    process = await sandbox.start(["python3", "-c", hide])
    async for output in process:
        assert output.text == "hidden\n"
        break
    await process.kill()
    await process.wait()
    assert not await _runs(sandbox, "sleep 98[45]")


@pytest.mark.parametrize("command", ["", [], [""], "echo \0", ["echo", "a\0b"]])
async def test_what_no_command_can_be_is_refused(
    sandbox: Sandbox, command: str | list[str]
) -> None:
    if command == "":
        assert (await sandbox.exec(command)).exit_code == 0
        return
    with pytest.raises(InvalidConfig):
        await sandbox.exec(command)


async def test_an_unknown_user_is_named(sandbox: Sandbox) -> None:
    with pytest.raises(CommandNotStarted, match="nobody-here") as caught:
        await sandbox.exec("true", user="nobody-here")
    assert caught.value.stage == "user"


async def test_a_shell_answers_for_what_it_cannot_find(sandbox: Sandbox) -> None:
    assert (await sandbox.exec("no-such-program")).exit_code == 127
    assert (await sandbox.exec("/etc/passwd")).exit_code == 126


async def test_a_wrong_timeout_or_limit_is_refused(sandbox: Sandbox) -> None:
    for wrong in ({"timeout": 0}, {"timeout": float("nan")}, {"output_limit": 0}):
        with pytest.raises(InvalidConfig):
            await sandbox.exec("true", **wrong)
