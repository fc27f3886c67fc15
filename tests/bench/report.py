"""What the benchmark prints: a table for people, JSON for programs, and the host beside it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.result import Result
from novasandbox import __version__
from novasandbox.cli.output import print_table

_COLUMNS = ("measure", "unit", "n", "p50", "p95", "p99", "floor", "ratio", "target", "")
_MARKS = {True: "met", False: "MISSED", None: ""}


def host() -> dict[str, Any]:
    """What the figures depend on, as JSON data."""
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "memory_mib": psutil.virtual_memory().total >> 20,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "novasandbox": __version__,
        "load": [round(each, 2) for each in os.getloadavg()],
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def host_line(facts: dict[str, Any]) -> str:
    """The host in one line."""
    load = " ".join(f"{each:g}" for each in facts["load"])
    return f"{facts['cpu']}, {facts['cpus']} CPUs, {facts['system']}; load {load}"


def print_results(results: Sequence[Result]) -> None:
    """The table."""
    print_table(_COLUMNS, [_row(each) for each in results])


def _row(result: Result) -> list[str]:
    return [
        result.name,
        result.unit,
        str(len(result.samples)),
        _number(result.p50),
        _number(result.quantile(0.95)),
        _number(result.quantile(0.99)),
        _number(result.floor_p50),
        "" if result.ratio is None else f"{result.ratio:.2f}",
        "" if result.target is None else str(result.target),
        _MARKS[result.verdict],
    ]


def _number(value: float | None) -> str:
    """Three digits that count: `0.412`, `4.12`, `41.2`, `412`."""
    if value is None:
        return ""
    return f"{value:.{max(0, 3 - len(str(int(abs(value)))))}f}" if value >= 1 else f"{value:.3f}"


def write_json(path: Path, facts: dict[str, Any], results: Sequence[Result]) -> None:
    """The same as JSON."""
    data = {"host": facts, "results": [each.as_data() for each in results]}
    path.write_text(json.dumps(data, indent=1) + "\n")
