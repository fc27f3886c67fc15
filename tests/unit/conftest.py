"""Fixtures for tests without a machine: a guest's end of the protocol, a home of one's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import settings

from novasandbox.guest.channel import Channel
from support.peer import Connection, Peer

# Enough to find what is wrong, few enough to be run all the time; `make fuzz` takes longer.
settings.register_profile("unit", max_examples=40, deadline=None)
settings.load_profile("unit")


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    """The guest's end of the protocol, listening."""
    async with Peer(tmp_path / "agent.sock") as listening:
        yield listening


@pytest.fixture
async def linked(peer: Peer) -> tuple[Channel, Connection]:
    """An open channel and the guest's end of it."""
    return await peer.connect()


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty NOVA_HOME."""
    path = tmp_path / "nova"
    monkeypatch.setenv("NOVA_HOME", str(path))
    return path
