"""`nova exec`: a command in a sandbox, as if it ran here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from novasandbox.cli.options import (
    box_argument,
    command_options,
    duration,
    environment,
    json_option,
    limit,
)

if TYPE_CHECKING:
    from novasandbox.cli.loop import Interrupts


@click.command(
    "exec", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False}
)
@command_options
@click.option("-i", "--interactive", is_flag=True, help="Pass input on from a terminal as well.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option(
    "--timeout", type=duration, help="End the command, and all it started, after this long."
)
@json_option
@box_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_command(
    box: str,
    command: tuple[str, ...],
    env: tuple[str, ...],
    env_files: tuple[Path, ...],
    user: str | None,
    cwd: str | None,
    interactive: bool,
    tty: bool,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Run COMMAND in the sandbox BOX, as it is, without a shell.

    Input that is not a terminal is passed on, output comes as it is made. The exit code is the
    command's own; 124: --timeout was over; 125: nova failed; 126, 127: the command could not
    be started; 128+n: signal n ended it; 130: Ctrl-C, which ends the command (twice: kills it).

    \b
    nova exec box -- ls -l /
    tar c src | nova exec box -- tar x -C /tmp
    nova exec -t box -- top
    """
    from novasandbox.cli import loop
    from novasandbox.cli.command import Job, perform
    from novasandbox.cli.connect import connect

    words = command[1:] if command[0] == "--" else command
    if not words:
        raise click.UsageError("the command is missing.")
    job = Job(
        words,
        cwd=cwd,
        env=environment(env, env_files),
        user=user,
        timeout=limit(timeout),
        stdin=tty or interactive or not os.isatty(0),
        pty=tty,
    )

    async def work(interrupts: Interrupts) -> int:
        async with await connect(box) as sandbox:
            return await perform(sandbox, job, interrupts, as_json)

    return loop.run(work)


VERBS = {"exec": exec_command}
