"""Cells that ruin what they can: they lose what is theirs at most, and the next call works."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from novasandbox import Context, Sandbox
from novasandbox.errors import (
    ContextLost,
    InvalidConfig,
    InvalidRequest,
    NovaError,
    OperationTimeout,
)
from waiting import until

pytestmark = pytest.mark.vm

DEEP = "deep = 1\nfor _ in range(150): deep = [deep]\n"
USE_UP_FILES = """
files = []
try:
    while True: files.append(open("/dev/null"))
except OSError as error:
    print(error.strerror)
"""
STUBBORN = """
import time
while True:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""
IMPOSTOR = """
import socket
listening = socket.socket(socket.AF_UNIX)
listening.bind("\\0nova/interpreter")
listening.listen()
while True: listening.accept()[0].close()
"""
FILL_THE_SERVER = """
import os, socket
held = []
for _ in range(100):
    one = socket.socket(socket.AF_UNIX)
    one.connect("\\0nova/interpreter")
    held.append(one)
print("filled", flush=True)
"""


@pytest.fixture
async def context(sandbox: Sandbox) -> AsyncIterator[Context]:
    """A context of the test's own in the shared sandbox."""
    own = await sandbox.contexts.create()
    yield own
    await sandbox.contexts.remove(own)


@pytest.mark.parametrize(
    "code",
    [
        DEEP + "display({'application/json': deep, 'text/plain': 'p'}, raw=True)",
        "display({'m' * 300: 'x'}, raw=True)",
        "display({'application/json': [[]] * 510_000}, raw=True)",
    ],
    ids=["deep", "long", "many"],
)
async def test_what_the_host_takes_of_no_result_is_left_out(
    sandbox: Sandbox, context: Context, code: str
) -> None:
    await sandbox.run_code("x = 41", context=context)
    assert "results" in (await sandbox.run_code(code, context=context)).truncated
    assert (await sandbox.run_code("x", context=context)).text == "41"


async def test_an_error_of_a_very_long_name_is_told(sandbox: Sandbox, context: Context) -> None:
    code = "raise type('X' * 9_000_000, (Exception,), {})"
    result = await sandbox.run_code(code, context=context)
    assert result.error is not None
    assert len(result.error.name) < 2_000


async def test_a_folder_may_have_modules_called_like_pythons_own(
    sandbox: Sandbox, context: Context
) -> None:
    place = "import os; os.makedirs('/tmp/own', exist_ok=True); os.chdir('/tmp/own')"
    await sandbox.run_code(place + "; open('ast.py', 'w').write('raise OSError')", context=context)
    assert (await sandbox.run_code("x = 1\nx + 1", context=context)).text == "2"


async def test_a_timeout_is_kept_while_long_code_waits_for_an_earlier_cell(
    sandbox: Sandbox, context: Context
) -> None:
    first = asyncio.create_task(
        sandbox.run_code("import time; time.sleep(12); x = 41", context=context)
    )
    await asyncio.sleep(0.5)
    start = time.monotonic()
    with pytest.raises(OperationTimeout, match="waiting for an earlier cell"):
        await sandbox.run_code(f"x = 0 # {'x' * 3_000_000}", context=context, timeout=1)
    assert time.monotonic() - start < 8
    assert (await first).error is None
    assert (await sandbox.run_code("x", context=context)).text == "41"


async def test_files_that_are_used_up_are_no_end_of_the_context(
    sandbox: Sandbox, context: Context
) -> None:
    result = await sandbox.run_code(USE_UP_FILES, context=context)
    assert result.stdout == "Too many open files\n"
    # Side by side they need connections of their own.
    counts = [sandbox.run_code("len(files) > 99", context=context) for _ in range(5)]
    assert [each.text for each in await asyncio.gather(*counts)] == ["True"] * 5
    result = await sandbox.run_code("open('/dev/null')", context=context)
    assert result.error is not None
    assert (await sandbox.run_code("del files; 1", context=context)).text == "1"


async def test_a_timer_that_a_cell_left_running_is_no_end_of_the_context(
    sandbox: Sandbox, context: Context
) -> None:
    code = """
import signal
def late(*_): raise TimeoutError("too late")
signal.signal(signal.SIGALRM, late)
signal.setitimer(signal.ITIMER_REAL, 0.2)
x = 41
"""
    await sandbox.run_code(code, context=context)
    await asyncio.sleep(0.6)
    result = await sandbox.run_code("x", context=context)
    assert result.text == "41"
    assert "TimeoutError: too late" in result.stderr


async def test_a_context_whose_folder_is_gone_goes_on_without_it(sandbox: Sandbox) -> None:
    await sandbox.exec("mkdir -p /tmp/gone")
    context = await sandbox.contexts.create(cwd="/tmp/gone")
    await sandbox.exec("rmdir /tmp/gone")
    await sandbox.contexts.restart(context)
    assert (await sandbox.run_code("1 + 1", context=context)).text == "2"
    result = await sandbox.run_code("open('f', 'w')", context=context)
    assert result.error is not None
    assert result.error.name == "FileNotFoundError"
    await sandbox.contexts.remove(context)


async def test_one_that_cannot_be_started_is_tried_again_by_each_call_only(
    sandbox: Sandbox, context: Context
) -> None:
    """The server cannot know a variable that no process could have; a guest may be older."""
    answer = await sandbox.contexts._interpreter.ask("create", cwd=None, env={"A": "\ud800"})
    broken = str(answer["id"])
    for _ in range(2):
        with pytest.raises(ContextLost, match="could not be started"):
            await sandbox.run_code("1", context=broken)
    count = "import os; int(os.popen('cut -d\" \" -f5 /proc/loadavg').read())"
    before = int(str((await sandbox.run_code(count, context=context)).text))
    await asyncio.sleep(1)
    assert int(str((await sandbox.run_code(count, context=context)).text)) < before + 20
    await sandbox.contexts.remove(broken)


async def test_what_no_context_can_start_with_is_refused(sandbox: Sandbox) -> None:
    for env in ({"A": "\ud800"}, {"\udfff": "a"}):
        with pytest.raises(InvalidConfig, match="surrogate"):
            await sandbox.contexts.create(env={"B": "\udcff", **env})
    with pytest.raises(InvalidRequest, match="too long"):
        await sandbox.contexts.create(env={"A": "x" * 2_000_000})
    with pytest.raises(InvalidRequest, match="too long"):
        await sandbox.contexts.create(cwd="x" * 2_000_000)


async def test_code_that_takes_all_of_the_servers_connections_can_be_ended(
    own_sandbox: Sandbox,
) -> None:
    other = await own_sandbox.contexts.create()
    filled = await own_sandbox.run_code(FILL_THE_SERVER, context=other)
    assert filled.stdout == "filled\n"
    with pytest.raises(OperationTimeout, match="state is lost"):
        await own_sandbox.run_code(STUBBORN, context=other, timeout=0.5)
    assert len(await own_sandbox.contexts.list()) == 2


async def test_a_server_that_does_not_answer_is_an_error_of_ours(own_sandbox: Sandbox) -> None:
    await own_sandbox.run_code("1")
    await own_sandbox.exec(["pkill", "-9", "-f", "interpreter.zip"])
    await own_sandbox.start(["python3", "-c", IMPOSTOR])
    await until(lambda: _is_refused(own_sandbox))


async def _is_refused(sandbox: Sandbox) -> bool:
    with pytest.raises(NovaError) as refused:
        await sandbox.contexts.list()
    return "does not answer" in str(refused.value)
