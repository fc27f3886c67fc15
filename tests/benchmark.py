"""How fast it is, each figure beside its floor in the same run.

    benchmark.py [--only NAME] [--json FILE] [--plot FILE] [-n N]

A floor is what the same machine does with nothing of this library around it (bench/floor.py).
Floor and figure take turns, so that a busy host slows both; compare ratios, not milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "native"))

from bench import (
    blocks,
    boot,
    clone,
    copies,
    forks,
    many,
    phases,
    plot,
    pool,
    quicksand,
    report,
    sleeping,
    start,
    warm,
)
from bench.floor import Floor, prepare
from bench.result import Result
from novasandbox.core.home import home
from novasandbox.errors import NovaError

_FAILURES = (NovaError, OSError, RuntimeError, AssertionError, subprocess.SubprocessError)
Outcome = list[Result] | Awaitable[list[Result]]


@dataclass(frozen=True, slots=True)
class Measure:
    """Some figures that are taken together. n: how often. extra: only when it is named."""

    names: Sequence[str]
    take: Callable[..., Outcome]
    n: int
    needs_floor: bool = True
    extra: bool = False


MEASURES = (
    Measure(["import"], start.imports, 20, needs_floor=False),
    Measure(["nova-help"], start.nova_help, 20, needs_floor=False),
    Measure(["jail"], boot.jail, 20),
    Measure(["cold"], boot.cold, 9),
    Measure(["copy"], copies.copy, 30),
    Measure(["pool"], pool.taken, 30),
    Measure(["run-code", "run-code-tail"], copies.run_code, 300),
    Measure(["fork", "fork-pause"], forks.fork, 15),
    Measure(["fork-10g", "fork-10g-pause"], forks.fork_large, 15),
    Measure(["hibernate", "wake"], sleeping.sleep, 15),
    Measure(["hibernate-bytes"], sleeping.written, 3, needs_floor=False),
    Measure(["row"], many.row, 300, needs_floor=False),
    Measure(["alive"], many.alive, 50),
    Measure(["at-once"], many.at_once, 3, needs_floor=False),
    Measure(["quicksand-boot"], quicksand.boot, 3, needs_floor=False),
    Measure(["ping"], warm.ping, 500),
    Measure(["exec-true-list", "exec-true-shell"], warm.execs, 200),
    Measure(["files-up", "files-down"], warm.files, 7),
    Measure(["blocks"], blocks.blocks, 5, extra=True),
    Measure(["phases-copy"], phases.copy, 15, needs_floor=False, extra=True),
    Measure(["phases-fork"], phases.fork, 15, needs_floor=False, extra=True),
    Measure(["phases-hibernate", "phases-wake"], phases.sleep, 15, needs_floor=False, extra=True),
    Measure(["fresh-clone"], clone.fresh_clone, 1, needs_floor=False, extra=True),
)


def chosen(only: Sequence[str]) -> list[Measure]:
    """The measures that take the named figures; all but the extra ones where none is named."""
    if not only:
        return [each for each in MEASURES if not each.extra]
    return [each for each in MEASURES if set(only) & set(each.names)]


async def take(
    measures: Sequence[Measure], n: int | None, folder: Path, beside: Path
) -> tuple[list[Result], list[str]]:
    """One measure after the other, and the names of those that failed."""
    floor: Floor | None = None
    results: list[Result] = []
    failed: list[str] = []
    for measure in measures:
        load = os.getloadavg()[0]
        print(f"{', '.join(measure.names)} (load {load:.1f}) …", file=sys.stderr, flush=True)
        arguments: list[Any] = [n or measure.n]
        if measure.needs_floor:
            floor = floor or await prepare(folder, beside)
            arguments.insert(0, floor)
        try:
            outcome = measure.take(*arguments)
            results += await outcome if inspect.isawaitable(outcome) else outcome
        except _FAILURES as error:
            # The others are worth having all the same.
            print(f"{measure.names[0]} could not be measured: {error!r}", file=sys.stderr)
            failed.append(measure.names[0])
    return results, failed


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure, each figure beside its floor.")
    names = [name for each in MEASURES for name in each.names]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", default=[],
                        help=f"one of {', '.join(names)}; may be repeated")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("-n", type=int, help="samples of each figure")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the distributions as SVG")
    return parser.parse_args()


def main() -> int:
    """Measure, print, write."""
    options = parse()
    facts = report.host()
    with (
        tempfile.TemporaryDirectory(prefix="nova-bench-", dir=_in_memory()) as folder,
        tempfile.TemporaryDirectory(prefix=".bench-", dir=home()) as beside,
    ):
        measures = chosen(options.only)
        results, failed = asyncio.run(take(measures, options.n, Path(folder), Path(beside)))
    if options.only:
        results = [each for each in results if _is_named(each, options.only)]
    print(report.host_line(facts))
    report.print_results(results)
    if options.json is not None:
        report.write_json(options.json, facts, results)
    if options.plot is not None:
        count = plot.write_svg(options.plot, report.host_line(facts), results)
        print(f"{count} distributions are drawn in {options.plot}")
    return 1 if failed else 0


def _in_memory() -> str | None:
    """A folder in memory where there is one; what a sandbox keeps on a disk goes to its own."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _is_named(result: Result, names: Sequence[str]) -> bool:
    return any(result.name == name or result.name.startswith(f"{name}-") for name in names)


if __name__ == "__main__":
    sys.exit(main())
