"""`nova pool`: sandboxes that are ready before somebody asks for one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from novasandbox.cli.options import (
    json_option,
    kind_options,
    machine_settings,
    quiet_option,
)
from novasandbox.cli.output import human_size, print_json, print_table
from novasandbox.errors import InvalidRequest

if TYPE_CHECKING:
    from novasandbox.cli.loop import Interrupts


@click.group("pool", invoke_without_command=True)
@click.pass_context
def pool_group(ctx: click.Context) -> None:
    """Keep sandboxes ready, so that nova run --pool and nova start --pool need not make one.

    \b
    nova pool start --size 4
    nova run --pool -c 'print(6*7)'
    nova pool stop debian-python

    Each is taken once, and gets its name, variables and identity then. A pool fills up again
    as the host's memory and processors allow. It is one of this user's, and ends with nova pool
    stop, or with the keeper that holds it.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@pool_group.command("start")
@click.option(
    "--size",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="How many are kept ready.",
)
@click.option("--name", help="The pool's name.  [default: its template's or snapshot's]")
@kind_options
@json_option
@quiet_option
def start_command(size: int, name: str | None, as_json: bool, quiet: bool, **options: Any) -> int:
    """Start a pool of sandboxes with these options, and print its name once one is ready."""
    from novasandbox.cli import loop
    from novasandbox.cli.progress import build
    from novasandbox.core import standing
    from novasandbox.core.hypervisor import DEFAULT_TEMPLATE, SandboxConfig

    config = SandboxConfig(**machine_settings(options))
    chosen = name or config.snapshot or config.template or DEFAULT_TEMPLATE

    async def work(_interrupts: Interrupts) -> int:
        if config.snapshot is None:
            await build(config.template, kernel=config.kernel, quiet=quiet)
        await standing.start(chosen, size, config)
        if as_json:
            pools = await standing.all_pools()
            print_json(next((each for each in pools if each["name"] == chosen), None))
        elif not quiet:
            print(chosen)
        return 0

    return loop.run(work)


@pool_group.command("ls")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
def ls_command(as_json: bool, quiet: bool) -> int:
    """List this user's pools, the oldest first."""
    from novasandbox.core import standing

    found = asyncio.run(standing.all_pools())
    if as_json:
        print_json(found)
    elif quiet:
        for each in found:
            print(each["name"])
    else:
        columns = ("NAME", "READY", "SIZE", "TEMPLATE", "MEMORY", "CPUS", "DISK")
        print_table(columns, [_row(each) for each in found])
    return 0


def _row(pool: dict[str, Any]) -> tuple[str, ...]:
    return (
        pool["name"],
        str(pool["ready"]),
        str(pool["size"]),
        pool["template"] or f"snapshot {pool['snapshot']}",
        human_size(pool["memory_mib"] << 20),
        str(pool["vcpus"]),
        human_size(pool["disk_mib"] << 20),
    )


@pool_group.command("stop")
@json_option
@quiet_option
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def stop_command(names: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """End the pools of these names; sandboxes that were taken from them live on."""
    from novasandbox.cli import loop
    from novasandbox.cli.sandboxes import tell
    from novasandbox.core import standing

    async def work(_interrupts: Interrupts) -> int:
        stopped: list[str] = []
        failures: list[InvalidRequest] = []
        for name in names:
            try:
                await standing.stop(name)
                stopped.append(name)
            except InvalidRequest as error:
                failures.append(error)
        return tell("stopped", stopped, failures, as_json=as_json, quiet=quiet)

    return loop.run(work)


VERBS = {"pool": pool_group}
