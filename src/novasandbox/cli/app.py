"""The root of `nova`: its verbs, loaded when they are called, and how it ends.

`nova --help` has to come at once, so the verbs' one-line helps stand here and no verb's
module is imported for it.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from novasandbox.cli import errors

# Verb: the module of this package that has it under the same name, and its line of help.
_VERBS: dict[str, dict[str, tuple[str, str]]] = {
    "Running": {
        "run": ("run", "Run code in a sandbox of its own, which is gone afterwards."),
        "exec": ("exec", "Run a command in a sandbox."),
        "shell": ("shell", "Open a shell in a sandbox, or in a fresh one."),
    },
    "Sandboxes": {
        "start": ("sandboxes", "Make a sandbox that stays, and print its id."),
        "ps": ("sandboxes", "List sandboxes."),
        "kill": ("sandboxes", "End sandboxes."),
        "pause": ("sandboxes", "Stop a sandbox's CPUs; its memory is kept."),
        "resume": ("sandboxes", "Let a paused sandbox run again."),
        "pool": ("pools", "Keep sandboxes ready to be taken; list and end such pools."),
        "expose": ("sandboxes", "Open a port of this host that reaches the guest's."),
        "stats": ("stats", "Show what a sandbox uses."),
        "logs": ("logs", "Show a sandbox's console and its machine's log."),
    },
    "Copies": {
        "hibernate": ("copies", "Put a sandbox to sleep on disk."),
        "wake": ("copies", "Wake a hibernated sandbox."),
        "snapshot": ("snapshots", "Keep a moment of a sandbox; list and remove such moments."),
        "rollback": ("copies", "Put a sandbox back to a snapshot."),
        "fork": ("copies", "Make sandboxes that go on where another one stands."),
        "tree": ("tree", "Show the snapshots, and the sandboxes that hang on them."),
    },
    "Files": {
        "ls": ("files", "List files of a sandbox."),
        "cp": ("files", "Copy files into a sandbox or out of it."),
    },
    "This host": {
        "template": ("templates", "List, show, check, build and remove templates."),
        "doctor": ("doctor", "Say what this host can do, and how to mend what it cannot."),
        "clean": ("clean", "Remove what dead processes have left behind."),
        "completion": ("completion", "Print a shell's completion script."),
    },
}
VERBS = {name: entry for group in _VERBS.values() for name, entry in group.items()}
_EPILOG = "NOVA_HOME, NOVA_PROVIDER, NOVA_KERNEL and NOVA_LOG in the environment are obeyed."


class Verbs(click.Group):
    """The verbs, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (the base class names it)
        """All verbs, in the order of the help."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  (the base class names it)
        """Import a verb. None for one that does not exist."""
        if cmd_name not in VERBS:
            return None
        module = import_module(f"novasandbox.cli.{VERBS[cmd_name][0]}")
        command: click.Command = module.VERBS[cmd_name]
        command.short_help = VERBS[cmd_name][1]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; an unknown one is told its nearest."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], VERBS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"there is no verb {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  (the base class names it)
        """Write the verbs by group, from the table alone."""
        for title, verbs in _VERBS.items():
            with formatter.section(title):
                formatter.write_dl([(name, line) for name, (_, line) in verbs.items()])


def _print_version(ctx: click.Context, _param: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from novasandbox import __version__

        click.echo(f"nova {__version__}")
        ctx.exit()


@click.group(
    cls=Verbs,
    epilog=_EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
@click.pass_context
def nova(ctx: click.Context) -> None:
    """Run code that nobody trusts, each in a microVM of its own."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run a command line; gives the exit code."""
    _open_standard_descriptors()
    _set_up_logging()
    try:
        result = _invoke(arguments)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001  (each kind has its exit code)
        return errors.conclude(error, arguments)
    return result if isinstance(result, int) else 0


def _invoke(arguments: Sequence[str]) -> object:
    """What click's `main` does, apart from the exit codes, which are ours."""
    asked = os.environ.get("_NOVA_COMPLETE")
    if asked:
        from click.shell_completion import shell_complete

        return shell_complete(nova, {}, "nova", "_NOVA_COMPLETE", asked)
    with nova.make_context("nova", list(arguments)) as context:
        return nova.invoke(context)


def _open_standard_descriptors() -> None:
    """Give the standard descriptors that are closed /dev/null.

    Else the next socket would be number 1, and a guest's output would go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken, which is this one.
            os.open(os.devnull, os.O_RDWR)
    # Open as long as the program runs, as the ones they stand for.
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115  (open to the end)
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115  (open to the end)
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115  (open to the end)


def _set_up_logging() -> None:
    level = os.environ.get("NOVA_LOG")
    if level:
        import logging

        known = level.upper() if level.upper() in logging.getLevelNamesMapping() else "INFO"
        logging.basicConfig(level=known, format="%(levelname)s %(name)s: %(message)s")
