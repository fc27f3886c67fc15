"""Every promise of SPECIFICATION.md names tests and figures that exist."""

from __future__ import annotations

import re
from pathlib import Path

import benchmark

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SPECIFICATION.md").read_text()


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"def (test_\w+)\(", sources))
    assert named
    assert named <= defined
    for path in re.findall(r"`(tests/\S+\.py)`", TEXT):
        assert (ROOT / path).is_file()


def test_every_figure_that_is_named_is_measured() -> None:
    figures = {name for measure in benchmark.MEASURES for name in measure.names}
    named = set(re.findall(r"benchmark\.py --only ([\w-]+)", TEXT))
    assert named
    assert named <= figures


def test_every_promise_names_what_holds_it() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and "---" not in line]
    promises = [row for row in rows if not row.startswith("| promise")]
    assert promises
    assert all("`test" in row.split(" | ")[-1] for row in promises)
