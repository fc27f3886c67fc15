"""Other processes of the same user, which use sandboxes of the same data directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from novasandbox.core.registry import Record

_HEAD = """
import asyncio, os, sys
from novasandbox import Sandbox

async def main():
"""


def program(body: str) -> str:
    """A program that runs `body` in a coroutine."""
    return _HEAD + textwrap.indent(textwrap.dedent(body), "    ") + "\nasyncio.run(main())\n"


@contextlib.asynccontextmanager
async def started(
    body: str, *arguments: str, stdin: int = asyncio.subprocess.DEVNULL
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that runs `body` in a coroutine, its output a pipe; killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program(body),
        *arguments,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.communicate()


async def run(body: str, *arguments: str) -> str:
    """What `body` prints; fails unless it ends well."""
    async with started(body, *arguments) as process:
        output, _ = await process.communicate()
        assert process.returncode == 0
    return output.decode()


def pids(record: Record) -> list[int]:
    """The processes of a sandbox's machine: the hypervisor and its supervisor."""
    machine = record.machine or {}
    return [machine["pid"], machine["supervisor"]["pid"]] if machine else []


def keepers(nova_home: Path) -> list[psutil.Process]:
    """The keepers of this data directory; there is at most one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                "novasandbox.core.keeper" in process.cmdline()
                and process.environ().get("NOVA_HOME") == str(nova_home)
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
    return found


def end_keeper(nova_home: Path, number: signal.Signals = signal.SIGTERM) -> None:
    """End the keeper, if there is one, and wait for it."""
    for process in keepers(nova_home):
        process.send_signal(number)
        with contextlib.suppress(psutil.TimeoutExpired, ChildProcessError):
            process.wait(timeout=30)


def living(nova_home: Path) -> set[str]:
    """The directories of sandboxes."""
    run = nova_home / "run"
    if not run.is_dir():
        return set()
    return {name for name in os.listdir(run) if not name.startswith(".")}


def descriptors() -> set[str]:
    """What this process has open, each with what it leads to."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return found
