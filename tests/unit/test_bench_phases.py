"""The steps that the benchmark puts timers around are where it says."""

from __future__ import annotations

import pytest

from bench.phases import STEPS, find


@pytest.mark.parametrize("place", STEPS.values())
def test_every_step_is_where_it_is_said_to_be(place: str) -> None:
    owner, name = find(place)
    assert callable(getattr(owner, name))
