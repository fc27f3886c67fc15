"""The package that runs in the guest needs an old Python only, and nothing but it."""

from __future__ import annotations

import ast
import io
import sys
import zipfile
from pathlib import Path

import pytest

from novasandbox.guest import interpreter
from novasandbox.guest.interpreter import display, failure, wire
from novasandbox.guest.python import archive

OWN = "novasandbox.guest.interpreter"
FILES = sorted(Path(interpreter.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_written_for_python_3_8(file: Path) -> None:
    tree = ast.parse(file.read_text(), feature_version=(3, 8))
    future = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert len(tree.body) == 1 or future[0].module == "__future__"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_imports_the_standard_library_and_itself(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            assert name.startswith(OWN) or name.split(".")[0] in sys.stdlib_module_names


def test_all_of_it_is_sent() -> None:
    with zipfile.ZipFile(io.BytesIO(archive())) as packed:
        names = set(packed.namelist())
    assert {f"novasandbox/guest/interpreter/{file.name}" for file in FILES} < names
    assert {"__main__.py", "novasandbox/__init__.py", "novasandbox/guest/__init__.py"} < names


def test_too_long_a_text_is_cut_in_its_middle_and_too_long_a_picture_left_out() -> None:
    budget = display.Budget()
    bundle = {"text/plain": "a" * wire.MOST_VALUE + "z", "image/png": b"x" * wire.MOST_VALUE}
    data = budget.encode(bundle)
    assert budget.exceeded
    assert len(data) < wire.MOST_VALUE
    assert data.startswith(b'{"text/plain":"aaa')
    assert data.endswith(b'z"}')


def test_all_that_a_cell_shows_is_bounded() -> None:
    budget = display.Budget()
    sizes = [len(budget.encode({"text/html": "x" * (10 << 20)})) for _ in range(10)]
    assert sum(sizes) <= wire.MOST_RESULTS
    assert sizes[-1] == 0
    assert budget.exceeded


def test_an_error_whose_own_text_fails_is_told_all_the_same() -> None:
    class Bad(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert b'"Bad"' in failure.describe(Bad())
