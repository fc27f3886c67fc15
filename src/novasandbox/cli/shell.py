"""`nova shell`: a shell on a real terminal in a sandbox."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from novasandbox.cli.options import (
    command_options,
    complete_box,
    environment,
    json_option,
    machine_options,
    machine_settings,
    quiet_option,
)

if TYPE_CHECKING:
    from novasandbox.cli.loop import Interrupts

_SHELL = ("/bin/sh", "-c", 'exec "$(command -v bash || command -v sh)" -l')


@click.command("shell")
@machine_options
@command_options
@json_option
@quiet_option
@click.argument("box", required=False, shell_complete=complete_box)
def shell_command(
    box: str | None,
    env: tuple[str, ...],
    env_files: tuple[Path, ...],
    user: str | None,
    cwd: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Open a shell in the sandbox BOX, or in a fresh one that is gone afterwards.

    The exit code is the shell's. Ctrl-] three times within a second leaves a guest that no
    longer answers.
    """
    from novasandbox.cli import loop
    from novasandbox.cli.command import Job, perform
    from novasandbox.cli.connect import connect
    from novasandbox.cli.fresh import fresh

    del as_json  # It says how errors are told.
    given = [name for name, value in options.items() if value is not None]
    if box is not None and given:
        raise click.UsageError(f"--{given[0]} is for a fresh sandbox, and {box} is there already.")
    if not (os.isatty(0) and os.isatty(1)):
        raise click.UsageError("a shell needs a terminal; without one: nova exec BOX -- sh")
    job = Job(_SHELL, cwd=cwd, env=environment(env, env_files), user=user, stdin=True, pty=True)
    settings = machine_settings(options)

    async def work(interrupts: Interrupts) -> int:
        if box is not None:
            async with await connect(box) as sandbox:
                return await perform(sandbox, job, interrupts, False)
        async with fresh(settings, detach=False, quiet=quiet) as sandbox:
            return await perform(sandbox, job, interrupts, False)

    return loop.run(work)


VERBS = {"shell": shell_command}
