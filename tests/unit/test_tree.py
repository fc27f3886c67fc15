"""What is committed works on any machine: it names none, and no server of one company's choice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ["src", "native", "tests", "scripts", "docs", "examples", ".github", ".ci"]
NOT_COMMITTED = {"__pycache__", "_native"}
# In pieces, so that this file does not hold them either.
FOREIGN = [
    "/ro" + "ot/.",
    "/wo" + "rk/main",
    "/wo" + "rk/shared",
    "deb.deb" + "ian.org",
    "security.deb" + "ian.org",
    "archive.ubu" + "ntu.com",
    "py" + "pi.org",
    "files.python" + "hosted.org",
]


def committed() -> Iterator[Path]:
    """The files of the source tree, without what was built or cached in it."""
    yield from (path for path in ROOT.iterdir() if path.is_file())
    for name in FOLDERS:
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and NOT_COMMITTED.isdisjoint(path.parts):
                yield path


@pytest.mark.parametrize("name", FOREIGN)
def test_no_file_names_one_machine_or_registry(name: str) -> None:
    guilty = [
        str(path.relative_to(ROOT)) for path in committed() if name.encode() in path.read_bytes()
    ]
    assert guilty == []
