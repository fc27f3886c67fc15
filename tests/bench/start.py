"""Measures of starting: the import, and the command line's help."""

from __future__ import annotations

import subprocess
import sys
import time

from bench.floor import milliseconds
from bench.result import Result, Target


def imports(n: int) -> list[Result]:
    """`import novasandbox` in a fresh interpreter, less what the interpreter itself takes."""
    bare, more = [], []
    _run("import novasandbox")
    for _ in range(n):
        floor = _run("pass")
        bare.append(floor)
        more.append(_run("import novasandbox") - floor)
    return [Result("import", "ms", more, bare, Target("p50", "<=", 60))]


def nova_help(n: int) -> list[Result]:
    """`nova --help`, from the start of its process to its end."""
    bare, ours = [], []
    _run("from novasandbox.cli import main; main()", "--help")
    for _ in range(n):
        bare.append(_run("pass"))
        ours.append(_run("from novasandbox.cli import main; main()", "--help"))
    return [Result("nova-help", "ms", ours, bare, Target("p50", "<=", 250))]


def _run(code: str, *arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, check=True, timeout=60
    )
    return milliseconds(start)
