"""What the tests on real machines share beyond the sandboxes themselves."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import elsewhere


@pytest.fixture(scope="session", autouse=True)
def no_keeper_stays(nova_home: Path) -> Iterator[None]:
    """A keeper outlives its makers by a minute; the run's own shall not."""
    yield
    elsewhere.end_keeper(nova_home)


@pytest.fixture(scope="module")
def own_home(nova_home: Path) -> Iterator[Path]:
    """A data directory of these tests' own, since they end all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix="nova-"))
    (folder / "images").symlink_to((nova_home / "images").resolve())
    os.environ["NOVA_HOME"] = str(folder)
    yield folder
    elsewhere.end_keeper(folder)
    os.environ["NOVA_HOME"] = str(nova_home)
    shutil.rmtree(folder, ignore_errors=True)
