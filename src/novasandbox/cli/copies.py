"""`nova hibernate`, `wake`, `rollback`, `fork`: a sandbox elsewhere in time, or several times."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from novasandbox.cli.options import (
    box_argument,
    complete_snapshot,
    json_option,
    quiet_option,
)
from novasandbox.cli.output import print_json
from novasandbox.cli.sandboxes import change, info_data

if TYPE_CHECKING:
    from novasandbox.cli.loop import Interrupts
    from novasandbox.core.sandbox import Sandbox


async def _check_awake(box: str) -> None:
    """Raise IllegalTransition for one that sleeps: it shall not be woken for this."""
    from novasandbox.core import registry
    from novasandbox.core.hypervisor import SandboxState, require_state

    record = await asyncio.to_thread(registry.find, box)
    if record.state is SandboxState.HIBERNATED:
        awake = (SandboxState.RUNNING, SandboxState.PAUSED)
        require_state(record.state, awake, "hibernate", record.id)


async def _awake(sandbox: Sandbox) -> None:
    """Connecting has woken it."""


hibernate_command = change(
    "hibernate",
    lambda sandbox: sandbox.hibernate(),
    "Put the sandbox BOX to sleep on disk: memory, processes and files, but no process of this "
    "host. The next verb that uses it wakes it, also after a reboot; asleep, its time-to-live "
    "stands still.",
    before=_check_awake,
)
wake_command = change(
    "wake",
    _awake,
    "Wake the hibernated sandbox BOX, which goes on where it stood. Every verb that uses a "
    "sandbox does so by itself. One that is awake is left as it is.",
)


@click.command("rollback")
@json_option
@quiet_option
@box_argument
@click.argument("snapshot", shell_complete=complete_snapshot)
def rollback_command(box: str, snapshot: str, as_json: bool, quiet: bool) -> int:
    """Put the sandbox BOX back to where it, or another of its sizes, stood at SNAPSHOT.

    What it is now is lost. It keeps its id, its name and its time-to-live.
    """
    from novasandbox.cli import loop
    from novasandbox.cli.connect import connect

    async def work(_interrupts: Interrupts) -> int:
        async with await connect(box) as sandbox:
            await sandbox.rollback(snapshot)
            info = await sandbox.info()
        if as_json:
            print_json(info_data(info))
        elif not quiet:
            print(info.id)
        return 0

    return loop.run(work)


@click.command("fork")
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="How many; all are made, or none.",
)
@json_option
@quiet_option
@box_argument
def fork_command(box: str, count: int, as_json: bool, quiet: bool) -> int:
    """Make sandboxes that go on where BOX stands, and print their ids.

    They have its memory, processes and files; BOX itself goes on. Those of a sandbox that
    stays, stay, each with a time-to-live like its own; those of one that a program holds end
    with that program.
    """
    from novasandbox.cli import loop
    from novasandbox.cli.connect import connect

    del quiet  # The ids are the result.

    async def work(_interrupts: Interrupts) -> int:
        async with await connect(box) as sandbox:
            children = await sandbox.fork(count)
            found = [await child.info() for child in children]
            for child in children:
                await child.close()
        if as_json:
            print_json([info_data(info) for info in found])
        else:
            for info in found:
                print(info.id)
        return 0

    return loop.run(work)


VERBS = {
    "hibernate": hibernate_command,
    "wake": wake_command,
    "rollback": rollback_command,
    "fork": fork_command,
}
