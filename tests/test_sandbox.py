"""The core, from outside: a real machine is made, used, and gone."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil
import pytest

import novasandbox
from novasandbox import Sandbox, SandboxState
from novasandbox.errors import (
    CommandFailed,
    CommandNotStarted,
    IllegalTransition,
    InvalidConfig,
    InvalidRequest,
    NameTaken,
    OperationTimeout,
    OutputLimitExceeded,
    SandboxExpired,
    SandboxNotFound,
    TemplateNotFound,
)
from waiting import is_gone, until

pytestmark = pytest.mark.vm


async def test_code_runs_and_its_output_comes_back(sandbox: Sandbox) -> None:
    result = await sandbox.exec(["python3", "-c", "print(6*7)"])
    assert result.stdout == "42\n"
    assert result.exit_code == 0
    assert result.signal is None
    assert result.ok


async def test_a_string_goes_through_the_shell(sandbox: Sandbox) -> None:
    result = await sandbox.exec("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)


async def test_commands_run_as_the_ordinary_user_in_its_home(sandbox: Sandbox) -> None:
    result = await sandbox.exec("id -u; pwd; echo $HOME $USER")
    assert result.stdout.split() == ["1000", "/home/user", "/home/user", "user"]
    assert (await sandbox.exec("id -u", user="root")).stdout == "0\n"


async def test_input_is_given_and_closed(sandbox: Sandbox) -> None:
    assert (await sandbox.exec("cat", stdin="hello")).stdout == "hello"
    assert (await sandbox.exec("cat")).stdout == ""


async def test_environment_and_folder_are_the_calls(sandbox: Sandbox) -> None:
    result = await sandbox.exec("echo $A; pwd", env={"A": "1 2"}, cwd="/tmp")
    assert result.stdout == "1 2\n/tmp\n"


async def test_nothing_of_the_hosts_environment_enters(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOVA_TEST_SECRET", "hush-1234")
    assert "hush-1234" not in (await sandbox.exec("env")).stdout


async def test_a_failing_command_raises_only_when_asked(sandbox: Sandbox) -> None:
    with pytest.raises(CommandFailed) as caught:
        await sandbox.exec("echo why >&2; exit 7", check=True)
    assert caught.value.result.exit_code == 7
    assert "why" in str(caught.value)


async def test_what_cannot_start_differs_from_what_failed(sandbox: Sandbox) -> None:
    with pytest.raises(CommandNotStarted) as missing:
        await sandbox.exec(["no-such-program"])
    assert missing.value.exit_code == 127
    with pytest.raises(CommandNotStarted) as plain:
        await sandbox.exec(["/etc/passwd"])
    assert plain.value.exit_code == 126
    with pytest.raises(CommandNotStarted) as folder:
        await sandbox.exec("true", cwd="/no/such/folder")
    assert folder.value.stage == "cwd"
    assert "/no/such/folder" in str(folder.value)


async def test_a_signal_is_named(sandbox: Sandbox) -> None:
    result = await sandbox.exec("kill -9 $$")
    assert (result.signal, result.exit_code) == ("SIGKILL", 137)


async def test_a_timeout_ends_the_whole_tree_and_keeps_the_output(sandbox: Sandbox) -> None:
    command = "echo begun; setsid sleep 971 & sleep 971"
    with pytest.raises(OperationTimeout) as caught:
        await sandbox.exec(command, timeout=1)
    assert caught.value.stdout == "begun\n"
    assert isinstance(caught.value, TimeoutError)
    assert (await sandbox.exec("pgrep -f 'sleep 971' | grep -v $$")).stdout == ""


async def test_a_cancelled_call_ends_its_command(sandbox: Sandbox) -> None:
    running = asyncio.create_task(sandbox.exec("sleep 972"))
    while not (await sandbox.exec("pgrep -x sleep -a | grep 972")).stdout:
        await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    while (await sandbox.exec("pgrep -x sleep -a | grep 972")).stdout:
        await asyncio.sleep(0.05)


async def test_output_beyond_the_limit_is_cut_at_its_beginning(sandbox: Sandbox) -> None:
    result = await sandbox.exec("seq 1 100000", output_limit=1000)
    assert len(result.stdout_bytes) == 1000
    assert result.stdout.endswith("99999\n100000\n")
    assert result.truncated == {"stdout"}


async def test_a_command_that_prints_without_end_can_be_ended(sandbox: Sandbox) -> None:
    with pytest.raises(OutputLimitExceeded) as caught:
        await sandbox.exec("yes", output_limit=100_000, on_limit="error")
    assert len(caught.value.stdout_bytes) == 100_000


async def test_a_process_streams_and_lives_on_in_the_background(sandbox: Sandbox) -> None:
    process = await sandbox.start("read line; echo got $line; sleep 973", name="reader")
    await process.stdin.write("a line\n")
    async for output in process:
        assert output.text == "got a line\n"
        break
    listed = {info.pid: info for info in await sandbox.processes()}
    assert listed[process.pid].name == "reader"
    assert listed[process.pid].exit_code is None
    await process.kill()
    assert (await process.wait()).signal == "SIGKILL"


async def test_files_go_in_and_out(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 1000
    await sandbox.files.write("deep/down/data.bin", data)
    assert await sandbox.files.read("deep/down/data.bin") == data
    assert [entry.name for entry in await sandbox.files.list("deep/down")] == ["data.bin"]
    assert (await sandbox.exec("echo more >> deep/down/data.bin")).ok


async def test_trees_keep_modes_and_links(sandbox: Sandbox, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (source / "sub" / "run.sh").chmod(0o755)
    (source / "link").symlink_to("sub/run.sh")
    (source / "dead").symlink_to("nowhere")
    assert await sandbox.upload(source, "tree") == []
    assert (await sandbox.exec("tree/link")).stdout == "ran\n"
    assert await sandbox.download("tree", tmp_path / "back") == []
    back = tmp_path / "back"
    assert (back / "sub" / "run.sh").stat().st_mode & 0o777 == 0o755
    assert os.readlink(back / "link") == "sub/run.sh"
    assert os.readlink(back / "dead") == "nowhere"


async def test_another_handle_reaches_the_same_machine(sandbox: Sandbox) -> None:
    await sandbox.files.write("/tmp/mark", "here")
    other = await Sandbox.connect("shared")
    assert other.id == sandbox.id
    assert await other.files.read_text("/tmp/mark") == "here"
    assert (await other.exec("echo through the holder")).stdout == "through the holder\n"
    await other.close()
    assert (await sandbox.exec("true")).ok


async def test_an_id_a_part_of_it_or_a_name_finds_it(sandbox: Sandbox) -> None:
    for way in (sandbox.id, sandbox.id[:7], "shared"):
        found = await Sandbox.connect(way)
        assert found.id == sandbox.id
        await found.close()
    with pytest.raises(SandboxNotFound):
        await Sandbox.connect("nobody")


async def test_lists_filter_by_label_and_state(sandbox: Sandbox) -> None:
    assert [info.id for info in await Sandbox.list(state=SandboxState.RUNNING)] == [sandbox.id]
    assert await Sandbox.list(metadata={"team": "none"}) == []


async def test_metrics_logs_and_events_say_something(sandbox: Sandbox) -> None:
    metrics = await sandbox.metrics()
    assert 0 < metrics.guest.memory_available < metrics.guest.memory_total <= 256 << 20
    assert metrics.machine["cpu_seconds"]
    kinds = [event.kind for event in await sandbox.events()]
    assert kinds[:2] == ["created", "running"]


async def test_pause_stands_still_and_resume_goes_on(own_sandbox: Sandbox) -> None:
    await own_sandbox.pause()
    assert own_sandbox.state is SandboxState.PAUSED
    with pytest.raises(IllegalTransition) as caught:
        await own_sandbox.pause()
    assert caught.value.current is SandboxState.PAUSED
    await own_sandbox.resume()
    assert (await own_sandbox.exec("echo on")).stdout == "on\n"


async def test_a_time_to_live_ends_it_and_says_so(qemu: str) -> None:
    sandbox = await Sandbox.create(timeout=600, name="short")
    pid = (await sandbox.info()).pid
    await sandbox.set_timeout(0.2)
    with pytest.raises(SandboxExpired):
        await sandbox.exec("sleep 60")
    with pytest.raises(SandboxExpired):
        await Sandbox.connect("short")
    assert pid is not None
    await until(lambda: is_gone(pid), within=5)


async def test_killing_gives_everything_back(qemu: str, nova_home: Path) -> None:
    sandbox = await Sandbox.create(name="brief")
    pid = (await sandbox.info()).pid
    with pytest.raises(NameTaken):
        await Sandbox.create(name="brief")
    await sandbox.kill()
    await sandbox.kill()
    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert not (nova_home / "run" / sandbox.id).exists()
    assert sandbox.state is SandboxState.STOPPED


async def test_sizes_are_what_was_asked_for(qemu: str) -> None:
    async with Sandbox.create(vcpus=2, memory_mib=768, disk_mib=3072) as sandbox:
        metrics = (await sandbox.metrics()).guest
        assert metrics.cpus == 2
        assert 680 << 20 < metrics.memory_total <= 768 << 20
        assert 2900 << 20 < metrics.disk_total <= 3072 << 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"vcpus": 0},
        {"memory_mib": 63},
        {"memory_mib": 256.5},
        {"disk_mib": 0},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"name": "../x"},
        {"name": ""},
        {"env": {"A=B": "c"}},
        {"template": "debian-python", "image": "x"},
        {"cwd": "relative"},
        {"provider": "no-such"},
    ],
)
async def test_an_illegal_setting_is_refused(wrong: dict[str, object], nova_home: Path) -> None:
    with pytest.raises(InvalidConfig):
        await Sandbox.create(**wrong)  # type: ignore[arg-type]  # that is the point


async def test_an_unknown_template_names_the_nearest(nova_home: Path) -> None:
    with pytest.raises(TemplateNotFound, match="debian-python"):
        await Sandbox.create("debian-pyton")
    assert issubclass(TemplateNotFound, InvalidRequest)


def test_one_line_runs_code(qemu: str) -> None:
    assert novasandbox.run("print(6*7)").stdout == "42\n"
