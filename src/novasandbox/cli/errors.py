"""How `nova` fails: the exit codes, and what is said of it on stderr.

The codes 0 to 123 belong to the guest's command. 124: it took too long; 125: we failed;
126, 127: it could not be started; 128 + n: signal n ended it; 130: Ctrl-C.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from novasandbox.cli.output import escaped, has_json_flag
from novasandbox.errors import CommandNotStarted, NovaError, OperationTimeout, OutputLimitExceeded

OURS = 125
TIMED_OUT = 124
INTERRUPTED = 130
_BROKEN_PIPE = 128 + 13


class Interrupted(Exception):
    """A signal ended us; everything was given back. number: of the signal."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def exit_code_of(error: NovaError) -> int:
    """The exit code that stands for an error."""
    if isinstance(error, CommandNotStarted):
        return error.exit_code
    return TIMED_OUT if isinstance(error, OperationTimeout) else OURS


def conclude(error: BaseException, arguments: Sequence[str]) -> int:
    """Say what went wrong, as text or as JSON; gives the exit code."""
    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else OURS
        case click.exceptions.Exit():
            return error.exit_code
        case Interrupted():
            return 128 + error.number
        case KeyboardInterrupt() | click.Abort():
            return INTERRUPTED
        case BrokenPipeError():
            _forget_stdout()
            return _BROKEN_PIPE
    as_json = has_json_flag(arguments)
    try:
        return _report(error, as_json)
    except BrokenPipeError:
        return _BROKEN_PIPE


def _report(error: BaseException, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": details(error)}), file=sys.stderr)
    elif isinstance(error, click.UsageError):
        if error.ctx is not None:
            print(error.ctx.get_usage(), file=sys.stderr)
        print(f"nova: {escaped(error.format_message())}", file=sys.stderr)
    elif isinstance(error, click.ClickException):
        print(f"nova: {escaped(error.format_message())}", file=sys.stderr)
    elif isinstance(error, NovaError | OSError):
        print(f"nova: {escaped(str(error), lines=True)}", file=sys.stderr)
    else:
        # A fault of ours: a guest's exit code must not be mistaken for it.
        traceback.print_exception(error)
    return exit_code_of(error) if isinstance(error, NovaError) else OURS


def details(error: BaseException) -> dict[str, Any]:
    """An error as JSON data, with what a command had printed until then."""
    if isinstance(error, OperationTimeout | OutputLimitExceeded):
        output = {
            "stdout": error.stdout,
            "stderr": error.stderr,
            **binary("stdout", error.stdout_bytes),
            **binary("stderr", error.stderr_bytes),
        }
        return error.details() | output
    if isinstance(error, NovaError):
        return error.details()
    if isinstance(error, click.ClickException):
        what = error.format_message()
        return {"type": "UsageError", "what": what, "why": None, "fix": None, "sandbox_id": None}
    what = str(error) or type(error).__name__
    return {
        "type": type(error).__name__,
        "what": what,
        "why": None,
        "fix": None,
        "sandbox_id": None,
    }


def binary(name: str, data: bytes) -> dict[str, str]:
    """The bytes in base64, as `NAME_base64`, where text cannot carry them."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}
    return {}


def _forget_stdout() -> None:
    """Nobody reads us any more: what is left in the buffer must not raise at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno() if sys.stdout is not None else 1)
    os.close(null)
