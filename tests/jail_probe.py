"""A hostile program, what it may look for on the host, and the jail it is put in.

The ordinary user's jail is tried as `nobody` when the tests run as root, so that both are.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import build as native_build
from novasandbox import native

SOURCES = Path(__file__).resolve().parent.parent / "native" / "jail" / "probe"
NOBODY = 65534
OWN_UID = 2_065_000
"""Of the range that uids are leased from, but not through a lease: it is only looked at."""

ATTEMPTS = re.findall(r"\bAP?\((\w+)[,)]", SOURCES.joinpath("hostile.c").read_text())[2:]

_SHM_KEY = 0x6E6F7661


@dataclass(frozen=True)
class Attempt:
    """got: whether the kernel let it through. errno: what it answered."""

    got: bool
    errno: int


class Probe:
    """The compiled programs, in a folder that every user may enter."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        self.folder = folder
        self.jail = self._copy(native.path("nova-jail"))
        self.hostile = self._compile("hostile")
        self.deny = self._compile("deny")
        self.lent = self._compile("lent")

    def _copy(self, binary: Path) -> Path:
        copy = self.folder / "nova-jail"
        copy.write_bytes(binary.read_bytes())
        copy.chmod(0o755)
        return copy

    def _compile(self, name: str) -> Path:
        binary = self.folder / name
        target = f"{native.host_arch()}-linux-musl"
        native_build.zig(
            ["cc", "-target", target, *native_build.FLAGS, "-o", binary, SOURCES / f"{name}.c"]
        )
        binary.chmod(0o755)
        return binary

    def jailed(
        self,
        mode: str,
        *arguments: str,
        options: tuple[str, ...] = (),
        keep_stdout: bool = True,
    ) -> list[str]:
        """The command that runs the hostile program in the jail."""
        stdout = ("--keep-fd", "1") if keep_stdout else ()
        uid = ("--uid", str(OWN_UID)) if mode == "root" else ()
        # At its host's path, so that it is found where no room can be built.
        path = str(self.hostile)
        return [
            *(str(self.jail), *uid, *stdout, "--bind-ro", path, path),
            *("--rlimit", "nofile=64", *options, "--", path, *arguments),
        ]


def identity(mode: str) -> dict[str, Any]:
    """What `subprocess` needs to start a program as this mode's user."""
    if mode == "root" or os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


@contextlib.contextmanager
def bait(mode: str) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """What lies about on the host: arguments for `hostile try`, and how it is to be started."""
    libc = ctypes.CDLL(None, use_errno=True)
    who = identity(mode)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nova-bait-")))
        folder.chmod(0o755)
        secret = folder / "secret"
        secret.write_text("secret")
        secret.chmod(0o644)
        inherited = os.open(secret, os.O_RDONLY)
        stack.callback(os.close, inherited)
        # Of the very uid that the jailed program has: it is not only the uid that parts them.
        same = who or ({"user": OWN_UID, "group": OWN_UID} if os.geteuid() == 0 else {})
        victim = stack.enter_context(subprocess.Popen(["sleep", "600"], **same))
        stack.callback(victim.kill)
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        name = f"nova-bait-{os.getpid()}-{time.monotonic_ns()}"
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0{name}")
        abstract.listen()
        shm = libc.shmget(_SHM_KEY, 4096, 0o1666)
        assert shm >= 0, os.strerror(ctypes.get_errno())
        stack.callback(libc.shmctl, shm, 0, None)
        yield (
            [
                *("try", str(secret), str(victim.pid), str(server.getsockname()[1]), name),
                *(str(_SHM_KEY), socket.gethostname()),
            ],
            {
                **who,
                "pass_fds": [inherited],
                "env": {"NOVA_HOST_SECRET": "secret"},
                "stdout": subprocess.PIPE,
                "text": True,
                "timeout": 60,
                "cwd": "/",
            },
        )


def try_all(command: list[str], started: dict[str, Any]) -> dict[str, Attempt]:
    """Run it and read what it got."""
    done = subprocess.run(command, check=True, **started)
    return {name: Attempt(**found) for name, found in json.loads(done.stdout).items()}


def status_of(pid: int) -> dict[str, list[str]]:
    """A process as the host sees it: the fields of /proc/PID/status, split into words."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: rest.split() for key, _, rest in (line.partition(":") for line in lines)}
