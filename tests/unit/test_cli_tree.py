"""`nova tree`: what hangs on what, however much was removed and however deep it goes."""

from __future__ import annotations

import io
import sys

import pytest

from novasandbox.cli.tree import Node, _draw, lines


def node(identity: str, above: str | None, created: float, template: str = "base") -> Node:
    return Node(identity, above, template, created, identity.upper())


def test_each_hangs_on_its_own_and_the_oldest_comes_first() -> None:
    nodes = [
        node("d", "a", 4),
        node("b", "a", 2),
        node("c", "b", 3),
        node("a", None, 1),
        node("x", None, 9, "another"),
    ]
    assert list(lines(nodes)) == [
        (0, "another"),
        (1, "X"),
        (0, "base"),
        (1, "A"),
        (2, "B"),
        (3, "C"),
        (2, "D"),
    ]


def test_what_hung_on_a_removed_one_hangs_on_its_template() -> None:
    assert list(lines([node("a", "gone", 1), node("b", "a", 2)])) == [
        (0, "base"),
        (1, "A"),
        (2, "B"),
    ]


def test_a_template_and_a_snapshot_of_one_name_are_two() -> None:
    nodes = [node("same", None, 1, "same"), node("box", "same", 2, "other")]
    assert list(lines(nodes)) == [(0, "same"), (1, "SAME"), (2, "BOX")]


def test_a_chain_of_thousands_is_no_fault() -> None:
    nodes = [node(str(n), str(n - 1) if n else None, n) for n in range(5000)]
    assert list(lines(nodes))[-1] == (5000, "4999")


def test_what_hangs_deeper_than_a_terminal_is_wide_is_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setenv("COLUMNS", "40")
    _draw(iter([(depth, f"level {depth} \x1b[31m") for depth in range(60)]))
    drawn = written.getvalue().splitlines()
    assert len(drawn) == 60
    assert drawn[-1].endswith("└── level 59 \\x1b[31m")
