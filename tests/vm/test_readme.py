"""Every snippet of the README runs on a real VM and prints what the README shows."""

from __future__ import annotations

from pathlib import Path

import pytest

import snippets

ROOT = Path(__file__).resolve().parents[2]
README = snippets.find((ROOT / "README.md").read_text("utf-8"))

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader would be: one snippet may use what an earlier one made."""
    return tmp_path_factory.mktemp("reader")


@pytest.mark.parametrize(
    "snippet", README, ids=lambda snippet: f"line-{snippet.line}-{snippet.language}"
)
def test_a_snippet_of_the_readme_does_what_it_shows(
    snippet: snippets.Snippet, folder: Path
) -> None:
    outcome = snippets.run(snippet, folder)
    assert outcome.exit_code == 0, outcome.output
    if snippet.expected is not None:
        assert snippets.agrees(snippet.expected, outcome.output), (
            f"README.md, line {snippet.line} shows:\n{snippet.expected}\n"
            f"and this was printed:\n{outcome.output}"
        )
