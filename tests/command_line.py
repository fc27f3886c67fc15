"""The command line as a user has it: `nova` as a process, its streams and its exit code."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

NOVA = (sys.executable, "-m", "novasandbox")
# Makes the terminal on its stdin its controlling one, as a terminal emulator does.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@dataclass(frozen=True)
class Done:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Its output as JSON."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The error it printed as JSON."""
        return json.loads(self.err)["error"]


def nova(
    *words: str,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> Done:
    """Run `nova` to its end; without `stdin` it has no input."""
    process = subprocess.run(
        [*NOVA, *words],
        input=None if stdin is None else stdin.encode(),
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        env={**os.environ, **(env or {})},
        timeout=timeout,
        check=False,
    )
    out, err = (text.decode("utf-8", "replace") for text in (process.stdout, process.stderr))
    return Done(process.returncode, out, err)


def results(*words: str) -> str:
    """What a `nova` that succeeds prints, without the line's end."""
    done = nova(*words)
    assert done.code == 0, done
    return done.out.rstrip("\n")


def until_runs(box: str, program: str) -> None:
    """Wait until a program of that name runs in the guest."""
    script = f"until pgrep -x {program}; do sleep 0.1; done"
    assert nova("exec", "--timeout", "30", box, "--", "sh", "-c", script).code == 0


@contextmanager
def started(
    *words: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """A running `nova`, ended with the block."""
    with subprocess.Popen(
        [*NOVA, *words], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


class Terminal:
    """A `nova` on a terminal of its own, typed to and read from."""

    def __init__(self, *words: str, rows: int = 30, cols: int = 100) -> None:
        self._master, slave = pty.openpty()
        self.resize(rows, cols)
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.seen = ""
        command = [sys.executable, "-c", _TAKE_TERMINAL, *NOVA, *words]
        environment = {**os.environ, "TERM": "xterm"}
        for name in ("LINES", "COLUMNS"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment,
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def resize(self, rows: int, cols: int) -> None:
        """Give it another size, which its processes are told."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def expect(self, pattern: str, within: float = 60) -> str:
        """Read until something matches; what came before it is gone then."""
        end = time.monotonic() + within
        while (match := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            if not self._read(0.1) and self.process.poll() is not None:
                raise AssertionError(f"it ended before {pattern!r}: {self.seen!r}")
        self.seen = self.seen[match.end() :]
        return match[0]

    def wait(self, within: float = 60) -> int:
        """Its exit code; what it prints meanwhile is read, so that it is not held up."""
        end = time.monotonic() + within
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it does not end; it printed {self.seen!r}"
            self._read(0.05)
        while self._read(0):
            pass  # its last words
        return self.process.returncode

    def _read(self, patience: float) -> bool:
        """Take what was printed, if anything comes in time."""
        if not select.select([self._master], [], [], patience)[0]:
            return False
        self.seen += os.read(self._master, 65_536).decode("utf-8", "replace")
        return True

    @property
    def is_restored(self) -> bool:
        """Whether the terminal is set as it was before."""
        return termios.tcgetattr(self._slave) == self.before


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Press Ctrl-C, as far as a process can tell."""
    process.send_signal(signal.SIGINT)
