"""The snippets of a Markdown document: find them, run them, compare what they print.

A `python` block is a program. A `console` block holds commands after `$ ` (`> ` goes on with one)
and what they print. A `text` block right after a `python` block is what that one prints. In what is
printed, `…` stands for anything, line breaks included; spaces at line ends do not count.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(?P<tag>\w+)[^\n]*\n(?P<body>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_TIMEOUT = 300


@dataclass(frozen=True)
class Snippet:
    """One block of a document, or one command of it."""

    language: str
    code: str
    expected: str | None
    line: int


@dataclass(frozen=True)
class Outcome:
    """What a snippet did: standard output and error as one text, and the exit code."""

    output: str
    exit_code: int


def find(document: str) -> list[Snippet]:
    """The snippets that can be run, in their order."""
    found: list[Snippet] = []
    end_of_last = -1
    for match in _BLOCK.finditer(document):
        tag, body = match["tag"], match["body"]
        line = document.count("\n", 0, match.start()) + 1
        follows = not document[end_of_last : match.start()].strip() and end_of_last >= 0
        if tag == "python":
            found.append(Snippet("python", body, None, line))
        elif tag == "console":
            found.extend(_commands(body, line + 1))
        elif tag == "text" and follows and found and found[-1].language == "python":
            program = found.pop()
            found.append(Snippet("python", program.code, body, program.line))
        end_of_last = match.end()
    return found


def _commands(body: str, first_line: int) -> list[Snippet]:
    found: list[Snippet] = []
    for number, line in enumerate(body.splitlines(), first_line):
        if line.startswith("$ "):
            found.append(Snippet("console", line[2:], "", number))
            continue
        if not found:
            raise ValueError(f"line {number}: a console block begins with a command after `$ `")
        last = found.pop()
        if line.startswith("> ") and not last.expected:
            found.append(Snippet("console", f"{last.code}\n{line[2:]}", "", last.line))
        else:
            found.append(Snippet("console", last.code, f"{last.expected}{line}\n", last.line))
    return found


def run(snippet: Snippet, folder: Path) -> Outcome:
    """Run a snippet in `folder`, with this interpreter's commands first on PATH."""
    if snippet.language == "python":
        command = [sys.executable, "-c", snippet.code]
    else:
        command = ["bash", "-eu", "-o", "pipefail", "-c", snippet.code]
    programs = str(Path(sys.executable).parent)
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_TIMEOUT,
        check=False,
    )
    return Outcome(done.stdout.decode("utf-8", "replace"), done.returncode)


def agrees(expected: str, output: str) -> bool:
    """Whether a program printed what the document shows."""
    pieces = [re.escape(piece) for piece in _trimmed(expected).split("…")]
    return re.fullmatch(".*?".join(pieces), _trimmed(output), re.DOTALL) is not None


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
