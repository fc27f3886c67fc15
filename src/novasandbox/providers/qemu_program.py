"""Finding QEMU and its version; remembered until the file changes."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from novasandbox.errors import ProviderUnavailable
from novasandbox.native import host_arch

OLDEST = (7, 2)
_VERSION = re.compile(rb"version (\d+)\.(\d+)(\.\d+)?")
_known: dict[tuple[str, int, int], str] = {}


@dataclass(frozen=True, slots=True)
class Program:
    """A QEMU that is new enough. version: as `7.2.22`."""

    path: Path
    version: str


def install_command() -> str:
    """The line that installs QEMU on this host."""
    if sys.platform == "darwin":
        return "brew install qemu"
    package = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}.get(
        host_arch(), "qemu-system"
    )
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install --no-install-recommends {package}"


async def find_program() -> Program:
    """QEMU for this host's architecture: NOVA_QEMU, else the one on PATH.

    Raises ProviderUnavailable when it is missing or older than 7.2.
    """
    name = os.environ.get("NOVA_QEMU") or f"qemu-system-{host_arch()}"
    found = shutil.which(name)
    if found is None:
        raise ProviderUnavailable(
            "QEMU is missing", why=f"{name} is not on PATH", fix=install_command()
        )
    path = Path(found).resolve()
    state = path.stat()
    key = (str(path), state.st_mtime_ns, state.st_size)
    if key not in _known:
        _known[key] = await _version(path)
    return Program(path, _known[key])


async def _version(path: Path) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            path,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(10):
            output, _ = await process.communicate()
    except (OSError, TimeoutError) as error:
        raise ProviderUnavailable(
            "QEMU cannot be started", why=f"{path}: {error}", fix=install_command()
        ) from error
    match = _VERSION.search(output)
    if match is None:
        raise ProviderUnavailable(
            "QEMU does not say its version", why=f"{path} --version", fix=install_command()
        )
    number = (int(match[1]), int(match[2]))
    if number < OLDEST:
        raise ProviderUnavailable(
            f"QEMU {number[0]}.{number[1]} is too old",
            why=f"{path}; {OLDEST[0]}.{OLDEST[1]} or later is needed",
            fix="Install a newer one, and name it with NOVA_QEMU where it is not on PATH.",
        )
    return b"".join(part or b"" for part in (match[1], b".", match[2], match[3])).decode()
