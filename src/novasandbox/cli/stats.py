"""`nova stats`: what a sandbox uses, inside and of this host."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from novasandbox.cli.options import box_argument, json_option, quiet_option
from novasandbox.cli.output import human_size, human_time, print_json, print_table

if TYPE_CHECKING:
    from novasandbox.core.info import Metrics


@click.command("stats")
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Seconds between, with --watch.",
)
@json_option
@quiet_option
@box_argument
def stats_command(box: str, watch: bool, interval: float, as_json: bool, quiet: bool) -> int:
    """Show what the sandbox BOX uses: CPU, memory, disk, as it sees them and on this host.

    With --watch --json each measurement is one line.
    """
    from novasandbox.cli import loop
    from novasandbox.cli.connect import connect

    del quiet

    async def work(_interrupts: loop.Interrupts) -> int:
        async with await connect(box) as sandbox:
            previous: tuple[float, Metrics] | None = None
            while True:
                metrics = await sandbox.metrics()
                now = time.monotonic()
                load = _cpu_share(previous, (now, metrics))
                if as_json:
                    print_json(_as_data(sandbox.id, metrics))
                else:
                    _show(metrics, load, again=previous is not None)
                if not watch:
                    return 0
                previous = now, metrics
                await asyncio.sleep(interval)

    return loop.run(work)


def _as_data(identity: str, metrics: Metrics) -> dict[str, Any]:
    return {
        "id": identity,
        "time": time.time(),
        "guest": asdict(metrics.guest),
        "machine": dict(metrics.machine),
    }


def _cpu_share(before: tuple[float, Metrics] | None, after: tuple[float, Metrics]) -> float | None:
    """CPUs in use between two measurements, in per cent of one."""
    if before is None or after[0] <= before[0]:
        return None
    used = after[1].guest.cpu_seconds - before[1].guest.cpu_seconds
    return max(0.0, 100 * used / (after[0] - before[0]))


def _show(metrics: Metrics, load: float | None, *, again: bool) -> None:
    guest, machine = metrics.guest, metrics.machine
    used = guest.memory_total - guest.memory_available
    rows = [
        (
            "guest",
            f"{load:.0f} %" if load is not None else f"{guest.cpu_seconds:.1f} s",
            f"{human_size(used)} / {human_size(guest.memory_total)}",
            f"{human_size(guest.disk_used)} / {human_size(guest.disk_total)}",
            str(guest.processes),
            human_time(guest.uptime),
        ),
        (
            "host",
            f"{machine['cpu_seconds'] or 0:.1f} s",
            f"{human_size(machine['rss_bytes'])} ({human_size(machine['pss_bytes'])} own)",
            f"{human_size(machine['written_bytes'])} written",
            "-",
            "-",
        ),
    ]
    if again and sys.stdout.isatty():
        # Over the last table: up by its lines, then everything below is cleared.
        print(f"\x1b[{len(rows) + 1}A\x1b[J", end="")
    print_table(("SIDE", "CPU", "MEMORY", "DISK", "PROCESSES", "UPTIME"), rows)
    sys.stdout.flush()


VERBS = {"stats": stats_command}
