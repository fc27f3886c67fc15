"""`nova tree`: which snapshot came from which, and the sandboxes that hang on them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from novasandbox.cli.options import json_option, quiet_option
from novasandbox.cli.output import escaped, human_size, human_time, print_json
from novasandbox.cli.sandboxes import info_data

if TYPE_CHECKING:
    from novasandbox.core.info import SandboxInfo
    from novasandbox.core.snapshots import Snapshot

_INDENT = 4  # of a level, as rich draws it


@dataclass(frozen=True)
class Node:
    """A snapshot or a sandbox. above: the snapshot's id that it hangs on, if there is one."""

    id: str
    above: str | None
    template: str
    created: float
    text: str


@click.command("tree")
@json_option
@quiet_option
def tree_command(as_json: bool, quiet: bool) -> int:
    """Show the snapshots, and the sandboxes that came from them, took them, or went back to them.

    At the root of each tree is a template. In JSON, what a snapshot hangs on is its parent,
    and what a sandbox hangs on its snapshot; either may have been removed since.
    """
    from novasandbox.core.sandbox import Sandbox

    del quiet

    async def look() -> tuple[list[Snapshot], list[SandboxInfo]]:
        return await Sandbox.snapshots(), await Sandbox.list()

    snapshots, sandboxes = asyncio.run(look())
    if as_json:
        boxes = [info_data(info) for info in sandboxes]
        print_json({"snapshots": [asdict(each) for each in snapshots], "sandboxes": boxes})
        return 0
    nodes = [_of_snapshot(each) for each in snapshots]
    nodes += [_of_sandbox(info) for info in sandboxes]
    if sys.stdout.isatty():
        _draw(lines(nodes))
    else:
        for depth, text in lines(nodes):
            print(f"{'  ' * depth}{escaped(text)}")
    return 0


def _of_snapshot(snapshot: Snapshot) -> Node:
    age = human_time(time.time() - snapshot.created)
    size = human_size(snapshot.size)
    text = _joined("snapshot", snapshot.id, snapshot.name, size, f"{age} ago")
    return Node(snapshot.id, snapshot.parent, snapshot.template, snapshot.created, text)


def _of_sandbox(info: SandboxInfo) -> Node:
    text = _joined("sandbox", info.id, info.name, info.state.value)
    return Node(info.id, info.snapshot, info.template, info.created, text)


def _joined(kind: str, identity: str, *more: str | None) -> str:
    return ", ".join((f"{kind} {identity}", *(word for word in more if word)))


def lines(nodes: Sequence[Node]) -> Iterator[tuple[int, str]]:
    """Every node below what it hangs on, the oldest first: its depth and its text.

    What hangs on nothing, or on what was removed, hangs on its template.
    """
    known = {node.id for node in nodes}
    below: dict[tuple[bool, str], list[Node]] = {}
    for node in sorted(nodes, key=lambda node: (node.created, node.id)):
        hangs = node.above is not None and node.above in known
        below.setdefault((hangs, node.above or "" if hangs else node.template), []).append(node)
    for template in sorted(name for hangs, name in below if not hangs):
        yield 0, template
        # Not by recursion: each snapshot hangs on the one before, and there may be thousands.
        waiting = [(1, node) for node in reversed(below[False, template])]
        while waiting:
            depth, node = waiting.pop()
            yield depth, node.text
            after = reversed(below.get((True, node.id), ()))
            waiting += [(depth + 1, each) for each in after]


def _draw(found: Iterator[tuple[int, str]]) -> None:
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    above: list[Any] = [Tree("", hide_root=True)]
    widest = 1
    for depth, text in found:
        del above[depth + 1 :]
        label = Text(escaped(text), no_wrap=True)
        above.append(above[-1].add(label))
        widest = max(widest, _INDENT * depth + cell_len(label.plain))
    # As wide as it is: rich leaves out what is deeper than a terminal is wide.
    Console(width=max(widest, Console().width)).print(above[0], crop=False)


VERBS = {"tree": tree_command}
