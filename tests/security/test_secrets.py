"""Secrets: the guest sees what it was given, and nobody else sees that."""

from __future__ import annotations

import asyncio
import contextlib
import os
import traceback
from pathlib import Path

import psutil
import pytest

import elsewhere
import novasandbox
from novasandbox import Sandbox
from novasandbox.errors import CommandFailed, NovaError, OperationTimeout

pytestmark = [pytest.mark.vm, pytest.mark.security]

SECRET = "given-5f0c1d2e9a"
HOSTS = "hosts-8b7a6c5d4e"


def _command_lines_with(text: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found += [word for word in process.cmdline() if text in word]
    return found


def _environments_with(text: str) -> list[int]:
    """Processes other than this one whose environment holds it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and text in str(process.environ()):
                found.append(process.pid)
    return found


def _files_with(folder: Path, text: str) -> list[str]:
    found = []
    for path in (folder / "run").rglob("*"):
        if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes():
            found.append(str(path.relative_to(folder)))
    return found


async def _shown_everywhere(sandbox: Sandbox) -> str:
    """Everything about a sandbox that is ever shown to anybody."""
    shown = [repr(sandbox), repr(sandbox.config), str(await sandbox.info())]
    shown += [repr(await sandbox.events()), repr(await sandbox.logs())]
    shown += [repr(await Sandbox.list()), repr(await sandbox.metrics())]
    shown += [repr(vars(sandbox)), repr(await sandbox.processes())]
    for call in (
        sandbox.exec("echo failed >&2; exit 3", check=True),
        sandbox.exec(["no-such-program"]),
        sandbox.exec("sleep 60", timeout=0.2),
        sandbox.files.read("/missing"),
        sandbox.exec("true", user="nobody-here"),
    ):
        try:
            await call
        except NovaError as error:
            shown += [str(error), repr(error), repr(error.details()), *traceback.format_exc()]
    return "\n".join(shown)


async def test_nothing_of_a_boxs_secrets_is_shown(
    qemu: str, nova_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with Sandbox.create(env={"TOKEN": SECRET}, name="secretive") as sandbox:
        assert (await sandbox.exec("echo $TOKEN")).stdout == f"{SECRET}\n"
        own = await sandbox.exec("echo $OWN", env={"OWN": f"call-{SECRET}"})
        assert own.stdout == f"call-{SECRET}\n"
        assert (await sandbox.info()).env == ("TOKEN",)
        assert sandbox.config.env == {"TOKEN": "***"}
        assert SECRET not in await _shown_everywhere(sandbox)
        assert _command_lines_with(SECRET) == []
        assert _environments_with(SECRET) == []
        assert _files_with(nova_home, SECRET) == []
    assert _files_with(nova_home, SECRET) == []
    assert SECRET not in caplog.text


async def test_a_detached_boxs_secrets_pass_through_the_keeper_unseen(
    qemu: str, nova_home: Path
) -> None:
    sandbox = await Sandbox.create(env={"TOKEN": SECRET}, detach=True)
    try:
        assert (await sandbox.exec("echo $TOKEN")).stdout == f"{SECRET}\n"
        assert SECRET not in await _shown_everywhere(sandbox)
        assert _command_lines_with(SECRET) == []
        assert _environments_with(SECRET) == []
        assert _files_with(nova_home, SECRET) == []
    finally:
        await sandbox.kill()
    assert _files_with(nova_home, SECRET) == []


async def test_nothing_of_the_hosts_environment_leaves_it(
    nova_home: Path, qemu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", HOSTS)
    await asyncio.to_thread(elsewhere.end_keeper, nova_home)
    sandbox = await Sandbox.create(detach=True)
    try:
        machine = elsewhere.pids(novasandbox.core.registry.get(sandbox.id))
        everywhere = "cat /proc/[0-9]*/environ /proc/cmdline; env"
        assert HOSTS not in (await sandbox.exec(everywhere, user="root")).stdout
        assert _environments_with(HOSTS) == [], machine
        assert _command_lines_with(HOSTS) == []
        assert _files_with(nova_home, HOSTS) == []
    finally:
        await sandbox.kill()


async def test_the_hypervisor_has_no_environment_of_the_hosts(sandbox: Sandbox) -> None:
    pid = (await sandbox.info()).pid
    assert pid is not None
    environment = psutil.Process(pid).environ()
    assert set(environment) <= {"LD_LIBRARY_PATH", "PATH", "HOME", "TMPDIR"}
    assert os.environ["PATH"] not in environment.values()


async def test_an_error_shows_the_command_but_not_its_environment(sandbox: Sandbox) -> None:
    with pytest.raises(CommandFailed) as failed:
        await sandbox.exec("exit 4", env={"KEY": SECRET}, check=True)
    assert SECRET not in str(failed.value) + repr(failed.value.details())
    with pytest.raises(OperationTimeout) as late:
        await sandbox.exec("sleep 60", env={"KEY": SECRET}, timeout=0.2)
    assert SECRET not in str(late.value) + repr(late.value.details())


async def test_records_and_sockets_are_the_users_alone(sandbox: Sandbox, nova_home: Path) -> None:
    for path in (nova_home / "run").rglob("*"):
        mode = path.lstat().st_mode & 0o777
        assert mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0, (path, oct(mode))
    assert (nova_home / "run").stat().st_mode & 0o777 == 0o700
