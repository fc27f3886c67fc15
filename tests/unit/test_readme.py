"""The README shows the example that `make run` runs, as it is."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_first_example_is_the_file() -> None:
    example = (ROOT / "examples" / "basic_usage.py").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"<!-- examples/basic_usage.py -->\n```python\n{example}```\n" in readme, (
        "copy examples/basic_usage.py into the README"
    )
