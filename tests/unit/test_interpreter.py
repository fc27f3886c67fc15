"""The package that runs in the guest needs an old Python only, and nothing but it."""

from __future__ import annotations

import ast
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from novasandbox.guest import interpreter
from novasandbox.guest.interpreter import display, failure, wire
from novasandbox.guest.python import archive
from novasandbox.guest.results import Cell

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


@pytest.mark.parametrize("levels", [50, 97, 98, 99, 100, 101, 150])
@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_the_host_takes_what_is_shown_however_deep_it_is(levels: int, kind: type) -> None:
    deep: Any = kind()
    for _ in range(levels):
        deep = {"a": deep} if kind is dict else kind((deep,))
    budget = display.Budget()
    data = budget.encode({"application/json": deep, "text/plain": "deep"})
    cell = Cell(None)
    cell.feed(wire.EVENT.pack(wire.DISPLAY, len(data)) + data)
    cell.feed(wire.EVENT.pack(wire.DONE, wire.END.size) + wire.END.pack(1, budget.exceeded))
    (shown,) = cell.result().results
    assert shown["text/plain"] == "deep"
    assert ("application/json" in shown) is (levels < 99)
    assert bool(cell.result().truncated) is (levels >= 99)


def test_what_is_shown_is_bounded_in_objects_and_in_names_too() -> None:
    budget = display.Budget()
    many: list[Any] = [[]] * (wire.MOST_ITEMS // 3)
    shown = [json.loads(budget.encode({"x/json": many, "text/html": "<b>"})) for _ in range(3)]
    assert ["x/json" in each for each in shown] == [True, False, False]
    assert all(each["text/html"] == "<b>" for each in shown)
    assert budget.exceeded
    assert json.loads(display.Budget().encode({"m" * 300: "x", "a/b": "c"})) == {"a/b": "c"}


def test_an_error_of_any_name_is_told() -> None:
    def refuse(cls: type) -> str:
        raise ValueError

    strange: Any = type("Meta", (type,), {"__name__": property(refuse)})(
        "Strange", (Exception,), {}
    )
    assert b'"Strange"' in failure.describe(strange())
    assert len(failure.describe(type("X" * wire.MOST_ERROR, (Exception,), {})())) < wire.MOST_ERROR


def test_an_error_whose_own_text_fails_is_told_all_the_same() -> None:
    class Bad(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert b'"Bad"' in failure.describe(Bad())
