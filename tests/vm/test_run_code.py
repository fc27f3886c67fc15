"""Cells of Python that keep their state: what they give, how they end, what ends with them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from novasandbox import Context, Sandbox
from novasandbox.errors import (
    CommandNotStarted,
    ContextLost,
    ContextNotFound,
    InvalidConfig,
    InvalidRequest,
    NovaError,
    OperationTimeout,
)
from novasandbox.guest.python import ensure_interpreter
from waiting import until

pytestmark = pytest.mark.vm

SHOWN = """
class Shown:
    def __repr__(self): return "plain"
    def _repr_html_(self): return "<b>html</b>"
    def _repr_markdown_(self): return "*markdown*"
    def _repr_latex_(self): return "$latex$"
    def _repr_svg_(self): return "<svg/>"
    def _repr_png_(self): return b"\\x89PNG"
    def _repr_json_(self): return {"deep": [1, {"er": None}]}
"""
STUBBORN = """
import time
while True:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""


@pytest.fixture
async def context(sandbox: Sandbox) -> AsyncIterator[Context]:
    """A context of the test's own in the shared sandbox."""
    # Another test may have filled the shared sandbox's memory, at the interpreter's cost.
    with contextlib.suppress(ContextLost):
        await sandbox.run_code("")
    own = await sandbox.contexts.create()
    yield own
    await sandbox.contexts.remove(own)


async def _stdout(sandbox: Sandbox, code: str, context: Context | None = None) -> str:
    result = await sandbox.run_code(code, context=context)
    assert result.error is None, result.error.traceback
    return result.stdout


# What a cell gives.


async def test_what_a_cell_defines_is_there_in_the_next(sandbox: Sandbox, context: Context) -> None:
    first = await sandbox.run_code("import math\nx = 41", context=context)
    assert (first.text, first.results, first.error) == (None, [], None)
    second = await sandbox.run_code("print('now'); x + 1", context=context)
    assert (second.text, second.results) == ("42", [{"text/plain": "42"}])
    assert second.stdout == "now\n"
    assert (first.execution_count, second.execution_count) == (1, 2)


async def test_every_representation_of_a_value_is_given(sandbox: Sandbox, context: Context) -> None:
    result = await sandbox.run_code(SHOWN + "display(1, 'two')\nShown()", context=context)
    one, two, last = result.results
    assert (one, two) == ({"text/plain": "1"}, {"text/plain": "'two'"})
    assert result.text == "plain"
    assert last == {
        "text/plain": "plain",
        "text/html": "<b>html</b>",
        "text/markdown": "*markdown*",
        "text/latex": "$latex$",
        "image/svg+xml": "<svg/>",
        "image/png": base64.b64encode(b"\x89PNG").decode(),
        "application/json": {"deep": [1, {"er": None}]},
    }


async def test_a_mime_bundle_of_ones_own_is_given_and_a_broken_method_left_out(
    sandbox: Sandbox, context: Context
) -> None:
    code = """
class Own:
    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/html": "own", "application/vnd.x+json": [1]}, {}
    def _repr_png_(self): raise ValueError("no picture")
Own()
"""
    (bundle,) = (await sandbox.run_code(code, context=context)).results
    assert bundle["text/html"] == "own"
    assert bundle["application/vnd.x+json"] == [1]
    assert set(bundle) == {"text/html", "application/vnd.x+json", "text/plain"}


async def test_an_error_is_data_and_shows_the_cells_lines_only(
    sandbox: Sandbox, context: Context
) -> None:
    await sandbox.run_code("def half(x):\n    return 1 / x", context=context)
    result = await sandbox.run_code("print('so far')\nhalf(0)", context=context)
    assert result.stdout == "so far\n"
    error = result.error
    assert error is not None
    assert (error.name, error.value) == ("ZeroDivisionError", "division by zero")
    assert '  File "<cell 2>", line 2, in <module>\n    half(0)\n' in error.traceback
    assert '  File "<cell 1>", line 2, in half\n    return 1 / x\n' in error.traceback
    assert "novasandbox" not in error.traceback
    assert error.traceback.count("File") == 2


async def test_a_syntax_error_shows_its_line(sandbox: Sandbox, context: Context) -> None:
    error = (await sandbox.run_code("a = 1\nb = = 2", context=context)).error
    assert error is not None
    assert error.name == "SyntaxError"
    assert 'File "<cell 1>", line 2' in error.traceback
    assert "b = = 2" in error.traceback
    assert "novasandbox" not in error.traceback


async def test_an_exit_is_data_and_state_is_kept(sandbox: Sandbox, context: Context) -> None:
    result = await sandbox.run_code("kept = 1\nimport sys\nsys.exit(3)", context=context)
    assert result.error is not None
    assert (result.error.name, result.error.value) == ("SystemExit", "3")
    assert (await sandbox.run_code("kept", context=context)).text == "1"


async def test_input_is_at_its_end_at_once(sandbox: Sandbox, context: Context) -> None:
    result = await sandbox.run_code("input('name? ')", context=context, timeout=30)
    assert result.error is not None
    assert result.error.name == "EOFError"
    assert result.stdout == "name? "


async def test_await_works_at_the_top_and_tasks_go_on_in_later_cells(
    sandbox: Sandbox, context: Context
) -> None:
    code = "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    return 7\n"
    task = await sandbox.run_code(code + "task = asyncio.create_task(f())\n1", context=context)
    assert task.error is not None  # Nothing runs a loop where nothing is awaited.
    result = await sandbox.run_code("task = asyncio.ensure_future(f()); await f()", context=context)
    assert result.text == "7"
    assert (await sandbox.run_code("await task", context=context)).text == "7"
    assert (await sandbox.run_code("asyncio.run(f())", context=context)).text == "7"


# Output.


async def test_all_output_comes_in_order(sandbox: Sandbox, context: Context) -> None:
    code = """
import ctypes, os, subprocess, sys
print("one")
os.system("echo two")
print("three", end=" ", flush=True)
subprocess.run(["echo", "four"])
ctypes.CDLL(None).puts(b"five")
ctypes.CDLL(None).fflush(None)
os.write(1, b"six\\n")
print("seven")
print("wrong", file=sys.stderr)
"""
    result = await sandbox.run_code(code, context=context)
    assert result.error is None, result.error.traceback
    assert result.stdout == "one\ntwo\nthree four\nfive\nsix\nseven\n"
    assert result.stderr == "wrong\n"


async def test_output_arrives_while_the_cell_runs(sandbox: Sandbox, context: Context) -> None:
    seen: list[tuple[str, str]] = []
    code = (
        "import os, time\nprint('grüß dich')\nwhile not os.path.exists('/tmp/go'): time.sleep(.05)"
    )
    running = asyncio.create_task(
        sandbox.run_code(code, context=context, on_output=lambda *piece: seen.append(piece))
    )

    async def has_come() -> bool:
        return seen == [("stdout", "grüß dich\n")]

    await until(has_come)
    assert not running.done()
    await sandbox.files.write("/tmp/go", "")
    assert (await running).stdout == "grüß dich\n"


async def test_a_child_that_prints_much_is_not_held_up(sandbox: Sandbox, context: Context) -> None:
    code = "import os, subprocess\n{}\n'over'"
    for call in ("os.system('seq 300000')", "subprocess.run(['seq', '300000'])"):
        result = await sandbox.run_code(code.format(call), context=context, timeout=60)
        assert result.text == "'over'"
        assert result.stdout == "".join(f"{n}\n" for n in range(1, 300_001))


async def test_of_endless_output_the_end_is_kept(sandbox: Sandbox, context: Context) -> None:
    code = "line = 'x' * 99_999\nfor _ in range(200): print(line)\nprint('end')"
    result = await sandbox.run_code(code, context=context)
    assert result.truncated == {"stdout"}
    assert len(result.stdout) == 16 * 2**20
    assert result.stdout.endswith("x\nend\n")


async def test_of_too_many_results_some_are_left_out(sandbox: Sandbox, context: Context) -> None:
    result = await sandbox.run_code("for n in range(1500): display(n)", context=context)
    assert result.error is None
    assert len(result.results) == 1000
    assert result.truncated == {"results"}
    result = await sandbox.run_code("'y' * (20 << 20)", context=context)
    assert result.text is not None
    assert result.text.startswith("'yyy")
    assert result.text.endswith("yyy'")
    assert "left out" in result.text
    assert result.truncated == {"results"}


async def test_what_a_thread_prints_between_cells_comes_with_the_next(
    sandbox: Sandbox, context: Context
) -> None:
    code = """
import threading, os
def work():
    while not os.path.exists('/tmp/printed'): pass
    print('late'); os.system('echo later')
    os.mkdir('/tmp/both')
threading.Thread(target=work).start()
"""
    assert await _stdout(sandbox, code, context) == ""
    await sandbox.files.write("/tmp/printed", "")
    await until(lambda: sandbox.files.exists("/tmp/both"))
    assert await _stdout(sandbox, "print('now')", context) == "late\nlater\nnow\n"


async def test_a_fork_of_the_cells_own_runs_no_cell_twice(
    sandbox: Sandbox, context: Context
) -> None:
    code = """
import os, multiprocessing
pid = os.fork()
print('child' if pid == 0 else 'parent', flush=True)
if pid: os.waitpid(pid, 0)
"""
    assert sorted((await _stdout(sandbox, code, context)).split()) == ["child", "parent"]
    code = """
def work(n): print('work', n, flush=True); return n * n
with multiprocessing.get_context('fork').Pool(2) as pool: print(pool.map(work, [1, 2, 3]))
"""
    lines = (await _stdout(sandbox, code, context)).splitlines()
    assert lines[-1] == "[1, 4, 9]"
    assert sorted(lines[:-1]) == ["work 1", "work 2", "work 3"]
    assert (await sandbox.run_code("pid > 0", context=context)).text == "True"


# Ending a cell early.


async def test_after_a_timeout_the_context_goes_on(sandbox: Sandbox, context: Context) -> None:
    await sandbox.run_code("x = 41", context=context)
    with pytest.raises(OperationTimeout, match="goes on") as caught:
        await sandbox.run_code("print('so far')\nwhile True: pass", context=context, timeout=2)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.stdout == "so far\n"
    assert (await sandbox.run_code("x + 1", context=context)).text == "42"


@pytest.mark.parametrize(
    "waits",
    [
        "import time; time.sleep(100)",
        "import subprocess; subprocess.run(['sleep', '100'])",
        "import os; os.system('sleep 100')",
        "import asyncio; await asyncio.sleep(100)",
        "import threading; threading.Event().wait()",
        "import socket; one, two = socket.socketpair(); one.recv(1)",
        "while True: print('y' * 1000)",
    ],
)
async def test_whatever_a_cell_waits_for_it_can_be_interrupted(
    sandbox: Sandbox, context: Context, waits: str
) -> None:
    await sandbox.run_code("x = 41", context=context)
    start = time.monotonic()
    with pytest.raises(OperationTimeout, match="goes on"):
        await sandbox.run_code(waits, context=context, timeout=1)
    assert time.monotonic() - start < 5
    assert (await sandbox.run_code("x + 1", context=context)).text == "42"


async def test_a_cancelled_call_interrupts_the_cell(sandbox: Sandbox, context: Context) -> None:
    code = "x = 41\nimport time\ntry: time.sleep(100)\nfinally: ended = True"
    running = asyncio.create_task(sandbox.run_code(code, context=context))
    await asyncio.sleep(0.5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    result = await sandbox.run_code("x + ended", context=context, timeout=30)
    assert result.text == "42"


async def test_a_cell_that_does_not_end_is_ended_with_its_context(
    sandbox: Sandbox, context: Context
) -> None:
    await sandbox.run_code("x = 41", context=context)
    with pytest.raises(OperationTimeout, match="state is lost"):
        await sandbox.run_code(STUBBORN, context=context, timeout=0.5)
    result = await sandbox.run_code("x", context=context)
    assert result.error is not None
    assert result.error.name == "NameError"
    assert result.execution_count == 1


async def test_the_loss_by_a_cancelled_call_is_told_to_the_next(
    sandbox: Sandbox, context: Context
) -> None:
    running = asyncio.create_task(sandbox.run_code(STUBBORN, context=context))
    await asyncio.sleep(0.5)
    running.cancel()
    with pytest.raises(ContextLost, match="not run"):
        await sandbox.run_code("1", context=context, timeout=30)
    assert (await sandbox.run_code("1", context=context)).text == "1"


async def test_a_call_that_waits_for_another_can_time_out_and_is_not_run(
    sandbox: Sandbox, context: Context
) -> None:
    first = asyncio.create_task(
        sandbox.run_code("import time; time.sleep(4); ran = ['first']", context=context)
    )
    await asyncio.sleep(0.5)
    with pytest.raises(OperationTimeout, match="waiting for an earlier cell"):
        await sandbox.run_code("ran.append('second')", context=context, timeout=0.5)
    assert (await first).error is None
    assert (await sandbox.run_code("ran", context=context)).text == "['first']"


# Contexts that end.


@pytest.mark.parametrize(
    ("crash", "cause"),
    [
        ("import os; os._exit(3)", "exit code 3"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os; os.closerange(3, 100)", "closed the connection"),
    ],
)
async def test_a_crash_is_told_with_its_cause_and_the_context_made_anew(
    sandbox: Sandbox, context: Context, crash: str, cause: str
) -> None:
    await sandbox.run_code("x = 41", context=context)
    with pytest.raises(ContextLost, match=cause) as caught:
        await sandbox.run_code(f"print('last words')\n{crash}\n1", context=context, timeout=30)
    assert caught.value.stdout == "last words\n"
    assert "made anew" in str(caught.value)
    again = await sandbox.run_code("'x' in globals()", context=context)
    assert (again.text, again.execution_count) == ("False", 1)


async def test_out_of_memory_is_told_and_other_contexts_live(own_sandbox: Sandbox) -> None:
    other = await own_sandbox.contexts.create()
    await own_sandbox.run_code("x = 41", context=other)
    with pytest.raises(ContextLost, match="memory ran out"):
        await own_sandbox.run_code("hog = []\nwhile True: hog.append(b'x' * (1 << 20))")
    assert (await own_sandbox.run_code("x + 1", context=other)).text == "42"
    assert (await own_sandbox.run_code("1")).text == "1"


async def test_a_context_that_ends_between_cells_is_told_to_the_next(
    sandbox: Sandbox, context: Context
) -> None:
    code = "import os, threading; os.getpid(), threading.Timer(0.2, lambda: os._exit(5)).start()"
    pid = (await sandbox.run_code(code, context=context)).text
    assert pid is not None
    number = pid.strip("()").split(",")[0]

    async def is_gone() -> bool:
        return not (await sandbox.exec(["test", "-e", f"/proc/{number}"])).ok

    await until(is_gone)
    with pytest.raises(ContextLost, match=r"exit code 5.*not run"):
        await sandbox.run_code("1", context=context)
    assert (await sandbox.run_code("1", context=context)).text == "1"


async def test_a_killed_interpreter_is_started_again_and_that_is_told(
    own_sandbox: Sandbox,
) -> None:
    await own_sandbox.run_code("x = 41")
    other = await own_sandbox.contexts.create()
    with pytest.raises(ContextLost):
        await own_sandbox.run_code("import os, time; os.kill(os.getppid(), 9); time.sleep(30)")
    assert (await own_sandbox.run_code("'x' in globals()")).text == "False"
    # Lost, where its process had not quite ended when it was asked.
    with pytest.raises((ContextNotFound, ContextLost)):
        await own_sandbox.run_code("1", context=other)
    await own_sandbox.exec(["pkill", "-9", "-f", "interpreter.zip"])
    with pytest.raises(ContextLost, match="interpreter was ended"):
        await own_sandbox.run_code("1")
    assert (await own_sandbox.run_code("1")).text == "1"


async def test_bytes_that_are_no_answer_cost_the_context_and_nothing_else(
    sandbox: Sandbox, context: Context
) -> None:
    code = """
import os, stat
for n in map(int, os.listdir('/proc/self/fd')):
    try:
        if stat.S_ISSOCK(os.fstat(n).st_mode): os.write(n, b'\\xff' * 100)
    except OSError: pass
"""
    with pytest.raises(ContextLost, match="no answer"):
        await sandbox.run_code(code, context=context)
    assert (await sandbox.run_code("1", context=context)).text == "1"
    assert (await sandbox.exec("echo on")).stdout == "on\n"


# Contexts.


async def test_contexts_are_apart_and_run_side_by_side(sandbox: Sandbox) -> None:
    made = [
        await sandbox.contexts.create(cwd="/tmp", env={"WHICH": str(number)}) for number in range(3)
    ]
    wait = "import os, time\nopen(f'/tmp/here{os.environ[\"WHICH\"]}', 'w')\n"
    wait += "while not all(os.path.exists(f'/tmp/here{n}') for n in range(3)): time.sleep(.02)\n"
    wait += "mine = os.environ['WHICH'], os.getcwd()\nmine"
    results = await asyncio.gather(
        *(sandbox.run_code(wait, context=each, timeout=60) for each in made)
    )
    assert [result.text for result in results] == [f"('{n}', '/tmp')" for n in range(3)]
    listed = await sandbox.contexts.list()
    assert listed[0].id == "default"
    assert [each for each in listed if each in made] == made
    await sandbox.contexts.restart(made[0])
    assert (await sandbox.run_code("'mine' in globals()", context=made[0])).text == "False"
    assert (await sandbox.run_code("mine[0]", context=made[1].id)).text == "'1'"
    for each in made:
        await sandbox.contexts.remove(each)
    assert not set(made) & set(await sandbox.contexts.list())
    with pytest.raises(ContextNotFound):
        await sandbox.run_code("1", context=made[0])
    with pytest.raises(ContextNotFound):
        await sandbox.contexts.restart(made[0])


async def test_what_no_context_can_be_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(CommandNotStarted, match="nowhere") as caught:
        await sandbox.contexts.create(cwd="/nowhere")
    assert caught.value.stage == "cwd"
    with pytest.raises(InvalidConfig):
        await sandbox.contexts.create(env={"A=B": "c"})
    with pytest.raises(InvalidRequest):
        await sandbox.contexts.remove("default")
    with pytest.raises(ContextNotFound):
        await sandbox.run_code("1", context="../etc")
    with pytest.raises(InvalidConfig):
        await sandbox.run_code("1", timeout=0)


async def test_a_restart_ends_what_runs_with_all_its_children(
    sandbox: Sandbox, context: Context
) -> None:
    code = "import subprocess, time\nsubprocess.Popen(['setsid', 'sleep', '987'])\ntime.sleep(60)"
    running = asyncio.create_task(sandbox.run_code(code, context=context))

    async def sleeps() -> bool:
        return (await sandbox.exec(["pgrep", "-f", "sleep 987"])).ok

    await until(sleeps)
    await sandbox.contexts.restart(context)
    with pytest.raises(ContextLost, match="restarted"):
        await running
    assert not await sleeps()
    assert (await sandbox.run_code("1", context=context)).text == "1"


async def test_code_sees_what_commands_see(sandbox: Sandbox) -> None:
    async with Sandbox.create(env={"OF": "the box"}, cwd="/opt", timeout=600) as box:
        code = "import os\nprint(os.getcwd(), os.getuid(), os.environ['HOME'], os.environ['PATH'])"
        code += "\nprint(os.environ['OF'])"
        theirs = await box.exec(["python3", "-c", code])
        assert await _stdout(box, code) == theirs.stdout
        assert theirs.stdout.endswith("the box\n")


async def test_nothing_of_ours_is_seen_in_the_sandbox(sandbox: Sandbox) -> None:
    await sandbox.run_code("1")
    assert all(info.name != "nova-interpreter" for info in await sandbox.processes())
    code = "import sys; [name for name in sys.modules if 'nova' in name], __name__, sys.argv"
    assert (await sandbox.run_code(code)).text == "([], '__main__', [''])"
    with pytest.raises(InvalidConfig):
        await sandbox.start("true", name="nova-interpreter")


async def test_another_process_finds_the_same_contexts(sandbox: Sandbox) -> None:
    await sandbox.run_code("shared = 41")
    remote = await Sandbox.connect(sandbox.id)
    try:
        assert (await remote.run_code("shared + 1")).text == "42"
        own = await remote.contexts.create()
        assert own in await sandbox.contexts.list()
        with pytest.raises(OperationTimeout):
            await remote.run_code("while True: pass", context=own, timeout=0.5)
        with pytest.raises(ContextLost, match="exit code 4"):
            await remote.run_code("import os; os._exit(4)", context=own)
        await remote.contexts.remove(own)
    finally:
        await remote.close()


async def test_a_cell_ends_with_the_handle_that_waits_for_it(
    sandbox: Sandbox, context: Context
) -> None:
    remote = await Sandbox.connect(sandbox.id)
    code = "x = 1\nimport time\nwhile True:\n    time.sleep(1)"
    running = asyncio.create_task(remote.run_code(code, context=context))
    await asyncio.sleep(0.5)
    await remote.close()
    with pytest.raises(NovaError):
        await running
    assert (await sandbox.run_code("x", context=context, timeout=20)).text == "1"


async def test_long_code_is_run_whole(sandbox: Sandbox, context: Context) -> None:
    code = f"text = {'z' * 1_000_000!r}\nlen(text)"
    assert (await sandbox.run_code(code, context=context)).text == "1000000"
    code = "# " + "ä" * 9_000_000
    with pytest.raises(InvalidRequest, match="at most"):
        await sandbox.run_code(code, context=context)


async def test_a_paused_sandbox_takes_no_cell(own_sandbox: Sandbox) -> None:
    await own_sandbox.run_code("x = 41")
    await own_sandbox.pause()
    with pytest.raises(InvalidRequest, match="PAUSED"):
        await own_sandbox.run_code("x = 0")
    await own_sandbox.resume()
    assert (await own_sandbox.run_code("x + 1")).text == "42"


async def _become_another(sandbox: Sandbox, generation: bytes, settings: bytes) -> None:
    """As the agent does it: the settings first, then the generation, in the file that is there."""
    await sandbox.files.as_user("root").write("/run/nova/environment", settings)
    code = f"import os; f = os.open('/run/nova/generation', 65, 0o644); os.write(f, {generation!r})"
    await sandbox.exec(["python3", "-c", code], user="root", check=True)


async def test_a_guest_that_became_another_has_other_randomness_and_its_own_settings(
    own_sandbox: Sandbox,
) -> None:
    await _become_another(own_sandbox, b"1" * 8, b"PWD=/home/user\0A=old\0B=old\0")
    await own_sandbox.run_code("import os, random\nos.environ['B'] = 'mine'\nrandom.seed(1)")
    own = await own_sandbox.contexts.create(cwd="/usr", env={"A": "own"})
    await _become_another(own_sandbox, b"2" * 8, b"PWD=/opt\0A=new\0B=old\0C=more\0")
    assert (await own_sandbox.run_code("os.environ['B']")).text == "'mine'"
    seeded = await own_sandbox.exec(
        ["python3", "-c", "import random; random.seed(1); print(random.random())"]
    )
    assert (await own_sandbox.run_code("random.random()")).text != seeded.stdout.strip()
    state = "import os\n(os.environ['A'], os.environ.get('C'), os.getcwd())"
    fresh = await own_sandbox.contexts.create()
    for context in (None, fresh):
        found = await own_sandbox.run_code(state, context=context)
        assert found.text == "('new', 'more', '/opt')"
    assert (await own_sandbox.run_code(state, context=own)).text == "('own', None, '/usr')"


async def test_it_can_be_warmed_before_it_is_used(own_sandbox: Sandbox) -> None:
    session = own_sandbox._session
    await own_sandbox.exec(["pkill", "-9", "-f", "interpreter.zip"])  # It may be warm already.
    arguments = session.channel, own_sandbox._processes, own_sandbox.files
    for _ in range(2):
        await ensure_interpreter(*arguments, modules=["decimal", "no_such_module"])
    assert [each.id for each in await own_sandbox.contexts.list()] == ["default"]
    result = await own_sandbox.run_code("import sys; 'decimal' in sys.modules")
    assert (result.text, result.execution_count) == ("True", 1)


async def test_a_guest_without_python_says_so(own_sandbox: Sandbox) -> None:
    await own_sandbox.exec(["pkill", "-9", "-f", "interpreter.zip"])  # It may be warm already.
    await own_sandbox.exec("rm -f /usr/bin/python3*", user="root", check=True)
    with pytest.raises(CommandNotStarted, match="this template has none"):
        await own_sandbox.run_code("1")
