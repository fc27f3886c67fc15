"""Debian's alternatives: one name for what several packages offer, as `libblas.so.3`.

Packages announce theirs by calls of update-alternatives(1) in their `postinst`, which is not
run here. Nearly all of these calls are written out in full, so they are read. Of each name
the offer with the highest priority counts, and a path leads to it by two links, as Debian
has it: the second, in /etc/alternatives, is what an administrator changes.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from novasandbox.images.unpack import Tree

_CALL = re.compile(r"^.*\bupdate-alternatives\b.*--install\b.*$", re.MULTILINE)
# What only a shell could say the value of.
_OPEN = re.compile(r"[$`*?]")


@dataclass(frozen=True)
class Offer:
    """links: those that change together, each as path, name and target; the first leads."""

    priority: int
    links: tuple[tuple[str, str, str], ...]


def choose(tree: Tree) -> None:
    """Make the links of what the packages of a tree offer."""
    best: dict[str, Offer] = {}
    for script in sorted(tree.folder("var/lib/dpkg/info").glob("*.postinst")):
        for offer in offers(script.read_text(errors="replace")):
            _, name, target = offer.links[0]
            if not tree.has(target):
                continue
            known = best.get(name)
            if known is None or offer.priority > known.priority:
                best[name] = offer
    for offer in best.values():
        for path, name, target in offer.links:
            if tree.has(target):
                tree.link(f"etc/alternatives/{name}", target)
                tree.link(path, f"/etc/alternatives/{name}")


def offers(script: str) -> Iterator[Offer]:
    """The offers that a script makes in plain words."""
    for call in _CALL.findall(script.replace("\\\n", " ")):
        try:
            words = shlex.split(call, comments=True)
        except ValueError:
            continue
        offer = _offer(words)
        if offer is not None:
            yield offer


def _offer(words: list[str]) -> Offer | None:
    at = words.index("--install")
    install = words[at + 1 : at + 5]
    if len(install) < 4 or not re.fullmatch(r"-?\d+", install[3]):
        return None
    followers = (words[i + 1 : i + 4] for i in range(at + 5, len(words)) if words[i] == "--slave")
    links = tuple(
        (path, name, target)
        for path, name, target in (install[:3], *(each for each in followers if len(each) == 3))
        if _is_plain(path, name, target)
    )
    is_led = bool(links) and links[0] == tuple(install[:3])
    return Offer(int(install[3]), links) if is_led else None


def _is_plain(path: str, name: str, target: str) -> bool:
    return (
        not any(_OPEN.search(word) for word in (path, name, target))
        and all(word.startswith("/") and ".." not in word for word in (path, target))
        and "/" not in name
        and name not in ("", ".", "..")
    )
