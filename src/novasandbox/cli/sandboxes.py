"""`nova start`, `ps`, `kill`, `pause`, `resume`, `expose`: sandboxes that stay."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from novasandbox.cli.options import (
    box_argument,
    command_options,
    complete_box,
    duration,
    environment,
    json_option,
    limit,
    machine_options,
    machine_settings,
    pool_option,
    quiet_option,
    rest_options,
)
from novasandbox.cli.output import human_size, human_time, note, print_json, print_table
from novasandbox.errors import NovaError, SandboxFailed, SandboxNotFound

if TYPE_CHECKING:
    from novasandbox.core.hypervisor import OnTimeout
    from novasandbox.core.info import SandboxInfo
    from novasandbox.core.sandbox import Sandbox


def info_data(info: SandboxInfo) -> dict[str, Any]:
    """A sandbox as JSON data."""
    return asdict(info) | {"state": info.state.value, "env": list(info.env)}


@click.command("start")
@click.option(
    "--timeout",
    type=duration,
    default="5m",
    show_default=True,
    help="How long it lives; none: until it is killed.",
)
@rest_options
@click.option("--detach", is_flag=True, help="It stays when this command ends; always so here.")
@click.option("--metadata", multiple=True, metavar="K=V", help="A label of your own.")
@pool_option
@machine_options
@command_options
@json_option
@quiet_option
def start_command(
    timeout: float,
    on_timeout: OnTimeout,
    idle_timeout: float | None,
    on_idle: OnTimeout | None,
    detach: bool,
    metadata: tuple[str, ...],
    pool: bool,
    env: tuple[str, ...],
    env_files: tuple[Path, ...],
    user: str | None,
    cwd: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Make a sandbox that stays, and print its id.

    It is used with nova exec, shell and cp, and ends with nova kill or after --timeout. One
    that is paused or hibernated by --on-timeout or --on-idle is woken by whatever uses it next.
    --env, --user and --cwd hold for all of its commands.
    """
    from novasandbox.cli import loop
    from novasandbox.cli.fresh import make

    del detach
    if on_idle is not None and idle_timeout is None:
        raise click.UsageError("--on-idle needs --idle-timeout, which says when it is idle.")
    settings = machine_settings(options) | {
        "timeout": limit(timeout),
        "on_timeout": on_timeout,
        "idle_timeout": idle_timeout,
        "on_idle": on_idle or "hibernate",
        "detach": True,
        "metadata": labels(metadata),
        "env": environment(env, env_files),
        "user": user,
        "cwd": cwd,
    }

    async def work(_interrupts: loop.Interrupts) -> int:
        async with await make(settings, quiet=quiet, pool=pool) as sandbox:
            if as_json:
                print_json(info_data(await sandbox.info()))
            else:
                print(sandbox.id, flush=True)
        return 0

    return loop.run(work)


def labels(words: tuple[str, ...]) -> dict[str, str]:
    """The values of `--metadata`."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise click.UsageError(f"--metadata {word!r}: give K=V.")
        found[key] = value
    return found


@click.command("ps")
@click.option("--metadata", multiple=True, metavar="K=V", help="Only those with this label.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
def ps_command(metadata: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """List this user's sandboxes, the oldest first."""
    from novasandbox.core.sandbox import Sandbox

    found = asyncio.run(Sandbox.list(metadata=labels(metadata)))
    if as_json:
        print_json([info_data(info) for info in found])
    elif quiet:
        for info in found:
            print(info.id)
    else:
        columns = ("ID", "NAME", "STATE", "TEMPLATE", "AGE", "LEFT", "MEMORY", "RUNS ON")
        print_table(columns, [_row(info) for info in found])
    return 0


def _row(info: SandboxInfo) -> tuple[str, ...]:
    now = time.time()
    return (
        info.id,
        info.name or "-",
        info.state.value,
        info.template,
        human_time(now - info.created),
        human_time(None if info.deadline is None else info.deadline - now),
        human_size(info.memory_mib << 20),
        "/".join(part for part in (info.provider, info.accelerator) if part) or "-",
    )


@click.command("kill")
@click.option("--all", "everything", is_flag=True, help="All of this user's sandboxes.")
@json_option
@quiet_option
@click.argument("boxes", metavar="[BOX]...", nargs=-1, shell_complete=complete_box)
def kill_command(boxes: tuple[str, ...], everything: bool, as_json: bool, quiet: bool) -> int:
    """End sandboxes and give back all that they held."""
    from novasandbox.cli import loop
    from novasandbox.core.reaching import end
    from novasandbox.core.sandbox import Sandbox

    if bool(boxes) == everything:
        raise click.UsageError("give one BOX or more, or --all.")

    async def work(_interrupts: loop.Interrupts) -> int:
        wanted = [info.id for info in await Sandbox.list()] if everything else list(boxes)
        ended: list[str] = []
        failures: list[NovaError] = []
        for box in wanted:
            try:
                ended.append(await end(box))
            except (SandboxNotFound, SandboxFailed) as error:
                if not everything:  # else it ended by itself meanwhile
                    failures.append(error)
        return tell("killed", ended, failures, as_json=as_json, quiet=quiet)

    return loop.run(work)


def tell(
    what: str, ended: list[str], failures: Sequence[NovaError], *, as_json: bool, quiet: bool
) -> int:
    """Name all that is gone, then fail with the first that is not. what: its name in JSON."""
    if as_json:
        print_json({what: ended})
    elif not quiet:
        for identity in ended:
            print(identity)
    for error in failures[1:]:
        note(f"nova: {error}")
    if failures:
        raise failures[0]
    return 0


def change(
    name: str,
    verb: Callable[[Sandbox], Awaitable[None]],
    text: str,
    *,
    before: Callable[[str], Awaitable[None]] | None = None,
) -> click.Command:
    """A verb that changes a sandbox's state and prints its id.

    before: sees BOX before it is connected to.
    """

    @click.command(name, help=text)
    @json_option
    @quiet_option
    @box_argument
    def command(box: str, as_json: bool, quiet: bool) -> int:
        from novasandbox.cli import loop
        from novasandbox.cli.connect import connect

        async def work(_interrupts: loop.Interrupts) -> int:
            if before is not None:
                await before(box)
            async with await connect(box) as sandbox:
                await verb(sandbox)
                info = await sandbox.info()
            if as_json:
                print_json(info_data(info))
            elif not quiet:
                print(info.id)
            return 0

        return loop.run(work)

    return command


pause_command = change(
    "pause",
    lambda sandbox: sandbox.pause(),
    "Stop the CPUs of the sandbox BOX. Its memory is kept, and its time-to-live goes on.",
)
resume_command = change(
    "resume",
    lambda sandbox: sandbox.resume(),
    "Let the paused sandbox BOX run again, its clock set right.",
)


@click.command("expose")
@click.option("--host-port", type=int, default=0, help="The port here.  [default: a free one]")
@json_option
@quiet_option
@box_argument
@click.argument("port", type=int)
def expose_command(box: str, port: int, host_port: int, as_json: bool, quiet: bool) -> int:
    """Open a port of this host's loopback that reaches PORT in the sandbox BOX.

    Prints its address. It is open as long as the sandbox lives.
    """
    from novasandbox.cli import loop
    from novasandbox.cli.connect import connect

    del quiet  # The address is the result.

    async def work(_interrupts: loop.Interrupts) -> int:
        async with await connect(box) as sandbox:
            address = await sandbox.expose(port, host_port)
        if as_json:
            print_json({"address": address, "port": port})
        else:
            print(address)
        return 0

    return loop.run(work)


VERBS = {
    "start": start_command,
    "ps": ps_command,
    "kill": kill_command,
    "pause": pause_command,
    "resume": resume_command,
    "expose": expose_command,
}
