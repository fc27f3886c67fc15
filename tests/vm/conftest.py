"""What the tests on real machines share beyond the sandboxes themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import elsewhere


@pytest.fixture(scope="session", autouse=True)
def no_keeper_stays(nova_home: Path) -> Iterator[None]:
    """A keeper outlives its makers by a minute; the run's own shall not."""
    yield
    elsewhere.end_keeper(nova_home)
