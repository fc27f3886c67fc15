"""`nova run`: code in a sandbox of its own."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from novasandbox.cli.options import (
    command_options,
    duration,
    environment,
    json_option,
    limit,
    machine_options,
    machine_settings,
    pool_option,
    quiet_option,
)

if TYPE_CHECKING:
    from novasandbox.cli.loop import Interrupts
    from novasandbox.core.sandbox import Sandbox


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option("-c", "code", metavar="CODE", help="The code itself.")
@click.option("--shell", is_flag=True, help="The code is for /bin/sh, not for Python.")
@click.option("--timeout", type=duration, help="End the code, and all it started, after this long.")
@click.option("--detach", is_flag=True, help="Keep the sandbox for 5 minutes after the code ended.")
@pool_option
@machine_options
@command_options
@json_option
@quiet_option
@click.argument("words", metavar="[FILE|-] [ARGS]...", nargs=-1, type=click.UNPROCESSED)
def run_command(
    words: tuple[str, ...],
    code: str | None,
    shell: bool,
    timeout: float | None,
    detach: bool,
    pool: bool,
    env: tuple[str, ...],
    env_files: tuple[Path, ...],
    user: str | None,
    cwd: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Run a program in a sandbox of its own, which is gone afterwards.

    The program is FILE, CODE, or what standard input holds (-). It is Python, unless FILE ends
    in .sh or begins with #!. ARGS are the program's. Input and output are passed on, and the
    exit code is the program's own: see nova exec --help.

    \b
    nova run -c 'print(6*7)'
    nova run job.py --input data.csv < data.csv
    curl https://example.org/script.sh | nova run --shell -
    """
    from novasandbox.cli import loop
    from novasandbox.cli.command import Job, perform
    from novasandbox.cli.fresh import fresh

    program = _program(words, code, shell)
    settings = machine_settings(options)
    variables = environment(env, env_files)

    async def work(interrupts: Interrupts) -> int:
        async with fresh(settings, detach=detach, quiet=quiet, pool=pool) as sandbox:
            job = Job(
                await program.put_into(sandbox),
                cwd=cwd,
                env=variables,
                user=user,
                timeout=limit(timeout),
                stdin=not os.isatty(0),
            )
            return await perform(sandbox, job, interrupts, as_json)

    return loop.run(work)


class _Program:
    """A command line, and the file that it needs in the guest."""

    def __init__(self, command: list[str], source: Path | None = None) -> None:
        self._command = command
        self._source = source

    async def put_into(self, sandbox: Sandbox) -> list[str]:
        """Copy the file, if any; gives the command line."""
        if self._source is not None:
            data = self._source.read_bytes()
            await sandbox.files.write(_place(self._source), data, mode=0o755)
        return self._command


def _place(source: Path) -> str:
    return f"/tmp/{source.name}"  # noqa: S108  (the guest's)


def _program(words: tuple[str, ...], code: str | None, shell: bool) -> _Program:
    if code is not None:
        before = ["/bin/sh", "-c", code, "sh"] if shell else ["python3", "-c", code]
        return _Program([*before, *words])
    if not words and os.isatty(0):
        raise click.UsageError("give a FILE, -c CODE, or - for standard input.")
    name, *arguments = words or ("-",)
    if name == "-":
        before = ["/bin/sh", "-s", "--"] if shell else ["python3", "-"]
        return _Program([*before, *arguments])
    source = Path(name)
    _check(source)
    return _Program([*_interpreter(source, shell), _place(source), *arguments], source)


def _check(source: Path) -> None:
    try:
        mode = source.stat().st_mode
    except OSError as error:
        raise click.UsageError(f"{source} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(mode):
        raise click.UsageError(f"{source} is not a file; give - to run what is piped in.")
    if not os.access(source, os.R_OK):
        raise click.UsageError(f"{source} cannot be read by this user.")


def _interpreter(source: Path, shell: bool) -> list[str]:
    """What runs the file: nothing where it says so itself."""
    if shell:
        return ["/bin/sh"]
    if source.suffix == ".py":
        return ["python3"]
    with source.open("rb") as file:
        if file.read(2) == b"#!":
            return []
    return ["/bin/sh"] if source.suffix == ".sh" else ["python3"]


VERBS = {"run": run_command}
