"""Run long commands one after another, and show what happens, how far it is and how long it took.

On a terminal each step has one line with a bar or a spinner; elsewhere (CI, a pipe) each step is
plain lines, with a sign of life now and then. What the commands print goes to a log, and to the
reader when one fails. Standard library only.
"""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    # What a line of output means: how much is done (0 to 1, if it says so), and what is being done.
    Reading = Callable[[str], "tuple[float | None, str]"]

BAR_WIDTH = 20
SIGN_OF_LIFE = 30.0
TAIL = 30


class StepFailed(Exception):
    """A step could not be done; the message is all that the reader needs."""


def plain(line: str) -> tuple[float | None, str]:
    """Show the line as it is."""
    return None, line


class Steps:
    """The steps of one run: their times, split into downloads and the rest."""

    def __init__(self, log: Path) -> None:
        self.began = time.monotonic()
        self.downloads = 0.0
        self.count = 0
        self._log = log
        self._tty = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        self._spinner = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏" if unicode else "|/-\\"
        self._done = "✓" if unicode else "done:"
        self._bar = "█░" if unicode else "#."

    def say(self, text: str) -> None:
        """One plain line."""
        print(text, flush=True)

    def run(
        self,
        title: str,
        command: Sequence[str],
        *,
        download: bool = False,
        reading: Reading = plain,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Run `command`; `download` counts its time as fetching. Raises StepFailed."""
        self.count += 1
        if not self._tty:
            self.say(f"==> {title}")
        began = time.monotonic()
        try:
            code, tail = self._follow(title, command, reading, environment)
        except OSError as error:
            raise StepFailed(f"{title}: cannot run {command[0]}: {error.strerror}") from error
        took = time.monotonic() - began
        self.downloads += took if download else 0.0
        if code != 0:
            self._clear()
            shown = "\n".join(f"    {line}" for line in tail)
            raise StepFailed(f"{title}: failed with {code}\n{shown}\n  all of it: {self._log}")
        self._clear()
        self.say(f"  {self._done} {title}  {took:.1f} s")

    def hand_over(self, command: Sequence[str]) -> int:
        """Run a command that speaks to the reader itself, and return its exit code."""
        self.say("")
        return subprocess.run(command, check=False).returncode

    def seconds(self) -> float:
        """How long it all took so far."""
        return time.monotonic() - self.began

    def summary(self) -> str:
        """How long it all took so far, and how much of that was downloading."""
        total = self.seconds()
        rest = total - self.downloads
        return f"{total:.1f} s: downloads {self.downloads:.1f} s, the rest {rest:.1f} s"

    def _follow(
        self,
        title: str,
        command: Sequence[str],
        reading: Reading,
        environment: Mapping[str, str] | None,
    ) -> tuple[int, list[str]]:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        # Into a pipe, Python would print its lines after the reason that it fails with.
        ordered = {"PYTHONUNBUFFERED": "1"}
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ordered, **(environment or {})},
        )
        with popen as process, self._log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n")
            try:
                tail = self._show_until_end(title, process, reading, log.write)
                return process.wait(), tail
            finally:
                if process.poll() is None:
                    process.terminate()

    def _show_until_end(
        self,
        title: str,
        process: subprocess.Popen[bytes],
        reading: Reading,
        write: Callable[[str], object],
    ) -> list[str]:
        assert process.stdout is not None
        tail: list[str] = []
        share: float | None = None
        doing, unfinished = "", b""
        began = spoke = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(0.1):
                    chunk = os.read(process.stdout.fileno(), 65536)
                    text = unfinished + (chunk or b"\n")
                    *lines, unfinished = text.replace(b"\r", b"\n").split(b"\n")
                    for line in filter(None, (raw.decode("utf-8", "replace") for raw in lines)):
                        write(line + "\n")
                        tail = [*tail[-TAIL + 1 :], line]
                        told, doing = reading(line)
                        share = share if told is None else told
                    if not chunk:
                        return tail
                now = time.monotonic()
                if self._tty:
                    self._draw(title, now - began, share, doing)
                elif now - spoke > SIGN_OF_LIFE:
                    spoke = now
                    self.say(f"    {now - began:.0f} s: {doing or 'still at it'}")

    def _draw(self, title: str, elapsed: float, share: float | None, doing: str) -> None:
        spin = self._spinner[int(elapsed * 10) % len(self._spinner)]
        bar = ""
        if share is not None:
            full = round(BAR_WIDTH * min(max(share, 0.0), 1.0))
            bar = f"{self._bar[0] * full}{self._bar[1] * (BAR_WIDTH - full)} {share:4.0%}  "
        printable = "".join(c for c in doing if c.isprintable())
        line = f"  {spin} {title}  {bar}{elapsed:.0f} s  {printable}"
        width = shutil.get_terminal_size().columns - 1
        sys.stdout.write(f"\r\x1b[2K{line[:width]}")
        sys.stdout.flush()

    def _clear(self) -> None:
        if self._tty:
            sys.stdout.write("\r\x1b[2K")
