"""`nova snapshot`: moments of sandboxes, kept under a name."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from novasandbox.cli.options import (
    box_argument,
    complete_box,
    complete_snapshot,
    json_option,
    quiet_option,
)
from novasandbox.cli.output import human_size, human_time, print_json, print_table
from novasandbox.errors import InvalidRequest

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from novasandbox.cli.loop import Interrupts
    from novasandbox.core.snapshots import Snapshot

_TAKE = "take"


class _TakesByDefault(click.Group):
    """`nova snapshot BOX` is `nova snapshot take BOX`, unless BOX is one of the other words."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the word in that was left out."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [_TAKE, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the other words, and what may follow the one that was left out."""
        found = super().shell_complete(ctx, incomplete)
        take = self.commands[_TAKE]
        if incomplete.startswith("-"):
            with take.make_context(_TAKE, [], parent=ctx, resilient_parsing=True) as taking:
                more = take.shell_complete(taking, incomplete)
        else:
            more = complete_box(ctx, take.params[-1], incomplete)
        known = {item.value for item in found}
        return [*found, *(item for item in more if item.value not in known)]


@click.group(
    "snapshot",
    cls=_TakesByDefault,
    invoke_without_command=True,
    subcommand_metavar="BOX | ls | rm NAME...",
)
@click.pass_context
def snapshot_group(ctx: click.Context) -> None:
    """Keep a moment of the sandbox BOX, list those that are kept, or remove some.

    \b
    nova snapshot box --name clean
    nova rollback box clean
    nova start --snapshot clean
    nova snapshot rm clean

    A sandbox whose name is ls or rm is given as in nova snapshot take ls.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@snapshot_group.command(_TAKE)
@click.option("--name", help="A name, unique among snapshots.")
@json_option
@quiet_option
@box_argument
def take_command(box: str, name: str | None, as_json: bool, quiet: bool) -> int:
    """Keep this moment of the sandbox BOX, and print the snapshot's id.

    Memory, processes and disk are kept; BOX runs on. The word take may be left out.
    """
    from novasandbox.cli import loop
    from novasandbox.cli.connect import connect

    del quiet  # The id is the result.

    async def work(_interrupts: Interrupts) -> int:
        async with await connect(box) as sandbox:
            taken = await sandbox.snapshot(name)
        if as_json:
            print_json(asdict(taken))
        else:
            print(taken.id)
        return 0

    return loop.run(work)


@snapshot_group.command("ls")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
def ls_command(as_json: bool, quiet: bool) -> int:
    """List this user's snapshots, the oldest first."""
    from novasandbox.core.sandbox import Sandbox

    found = asyncio.run(Sandbox.snapshots())
    if as_json:
        print_json([asdict(each) for each in found])
    elif quiet:
        for each in found:
            print(each.id)
    else:
        columns = ("ID", "NAME", "AGE", "SIZE", "SANDBOX", "PARENT", "TEMPLATE")
        print_table(columns, [_row(each) for each in found])
    return 0


def _row(snapshot: Snapshot) -> tuple[str, ...]:
    return (
        snapshot.id,
        snapshot.name or "-",
        human_time(time.time() - snapshot.created),
        human_size(snapshot.size),
        snapshot.sandbox,
        snapshot.parent or "-",
        snapshot.template,
    )


@snapshot_group.command("rm")
@json_option
@quiet_option
@click.argument(
    "names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_snapshot
)
def rm_command(names: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """Remove the snapshots of these names or ids; sandboxes that came from them live on."""
    from novasandbox.cli.sandboxes import tell
    from novasandbox.core import registry, snapshots

    removed: list[str] = []
    failures: list[InvalidRequest] = []
    for name in names:
        try:
            kept = snapshots.find(name)
            registry.remove_snapshot(kept.id)
            removed.append(kept.id)
        except InvalidRequest as error:
            failures.append(error)
    return tell("removed", removed, failures, as_json=as_json, quiet=quiet)


VERBS = {"snapshot": snapshot_group}
