"""`import novasandbox` is light: what it does not need at once is loaded when first used."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["aiofiles", "asyncio", "click", "httpx", "psutil", "pydantic", "qemu.qmp", "rich"]
NOT_FOR_A_SANDBOX = ["click", "fastapi", "httpx", "qemu.qmp", "rich"]


def loaded_after(statement: str, names: list[str]) -> list[str]:
    """Which of `names` are loaded in a new interpreter that ran `statement`."""
    script = f"{statement}\nimport sys\nprint(*[n for n in {names!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import novasandbox", HEAVY) == []


@pytest.mark.parametrize("name", ["Sandbox", "SandboxConfig", "NovaError", "run"])
def test_a_public_name_loads_no_front_door_and_no_provider(name: str) -> None:
    assert loaded_after(f"from novasandbox import {name}", NOT_FOR_A_SANDBOX) == []


def test_every_public_name_can_be_imported() -> None:
    script = "import novasandbox as n; print(*[x for x in n.__all__ if not hasattr(n, x)])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []
