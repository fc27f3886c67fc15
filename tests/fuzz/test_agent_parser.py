"""The agent's frame parser under sanitizers, for a few seconds; `make fuzz` takes a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

import fuzz

pytestmark = pytest.mark.fuzz

FUZZERS = sorted((fuzz.AGENT / "fuzz").glob("fuzz_*.c"))


@pytest.mark.parametrize("source", FUZZERS, ids=lambda path: path.stem)
def test_the_agent_survives_every_byte_that_it_can_be_sent(source: Path) -> None:
    assert fuzz.run_fuzzer(fuzz.compile_fuzzer(source), seconds=5)
