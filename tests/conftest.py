"""Fixtures for tests on real machines: a data directory of the run's own, and sandboxes.

Templates are shared with the user's own data directory, since building one takes long and
its files never change; everything else (records, sockets, the keeper) is this run's alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from novasandbox import Sandbox
from novasandbox.core.home import home
from novasandbox.providers.qemu_program import install_command


@pytest.fixture(scope="session", autouse=True)
def nova_home() -> Iterator[Path]:
    """A data directory with the user's templates and nothing else of his."""
    images = home() / "images"
    images.mkdir(mode=0o700, exist_ok=True)
    # Short, since a path that is too long for a socket has a test of its own.
    folder = Path(tempfile.mkdtemp(prefix="nova-"))
    (folder / "images").symlink_to(images)
    before = os.environ.get("NOVA_HOME")
    os.environ["NOVA_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["NOVA_HOME"]
    else:
        os.environ["NOVA_HOME"] = before
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def qemu() -> str:
    """The emulator's path. A machine without one fails the tests, with the mending command."""
    found = shutil.which("qemu-system-x86_64") or shutil.which("qemu-system-aarch64")
    assert found is not None, f"QEMU is missing: {install_command()}"
    return found


@pytest.fixture(scope="session")
async def sandbox(qemu: str) -> AsyncIterator[Sandbox]:
    """A sandbox for every test that leaves it as usable as it was."""
    async with Sandbox.create(timeout=None, name="shared") as shared:
        yield shared


@pytest.fixture
async def own_sandbox(qemu: str) -> AsyncIterator[Sandbox]:
    """A sandbox for one test, which may ruin it."""
    async with Sandbox.create(timeout=600) as fresh:
        yield fresh
        await fresh.kill()  # Also where it sleeps.
