"""Imports point down only: front doors, core, then guest, providers and images, then the base."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import novasandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(novasandbox.__file__).parent
BASE = ["errors", "native"]
# What a room may know of the package at run time; a folder's name stands for all that is in it.
MAY_IMPORT = {
    # IllegalTransition carries SandboxStates, CommandFailed an ExecResult.
    "errors": ["core.hypervisor", "guest.process"],
    "native": ["errors"],
    "guest": [*BASE, "guest"],
    "images": [*BASE, "images", "core.home", "core.atomic"],
    "core": [*BASE, "core", "guest", "images"],
    "providers": [
        *BASE,
        "providers",
        "guest.channel",
        "guest.protocol",
        "core.atomic",
        "core.home",
        "core.hypervisor",
        "core.owner",
        "core.sockets",
        "core.uids",
    ],
    "cli": [*BASE, "cli", "core", "guest", ""],
    # The twin of a class of the core has its arguments, and their types and defaults.
    "__main__": ["cli"],
    "sync": [*BASE, "sync", "core", "guest", "images", ""],
    "": [*BASE, "core", "guest"],
}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    """The module's name below the package: `core.sandbox`, or nothing for the package itself."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Line and name below the package of each import of a part of it, those for types left out."""
    tree = ast.parse(file.read_text("utf-8"))
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import hides its layer"
            base = node.module or ""
            names = [
                f"{base}.{alias.name}" if is_module(base, alias.name) else base
                for alias in node.names
                if alias.name != "__version__"
            ]
        else:
            continue
        for name in names:
            if name == "novasandbox" or name.startswith("novasandbox."):
                yield node.lineno, name.removeprefix("novasandbox").removeprefix(".")


def is_module(base: str, name: str) -> bool:
    """Whether `from base import name` imports a module of the package."""
    if base != "novasandbox" and not base.startswith("novasandbox."):
        return False
    folder = PACKAGE.joinpath(*base.split(".")[1:])
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def is_allowed(name: str, room: str) -> bool:
    """Whether a module of `room` may import the module `name` of the package."""
    return any(
        name == allowed or (allowed and name.startswith(f"{allowed}."))
        for allowed in MAY_IMPORT[room]
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: module_name(file) or "novasandbox")
def test_a_module_imports_only_what_lies_below_it(file: Path) -> None:
    room = module_name(file).split(".")[0]
    assert room in MAY_IMPORT, f"say in MAY_IMPORT what {room} may know"
    upward = [f"line {line}: {name}" for line, name in imported(file) if not is_allowed(name, room)]
    assert upward == []


def test_the_core_names_no_provider() -> None:
    """It finds them by their entry points, so that a third party's is as good as ours."""
    for file in (PACKAGE / "core").rglob("*.py"):
        assert "novasandbox.providers." not in file.read_text("utf-8"), file
