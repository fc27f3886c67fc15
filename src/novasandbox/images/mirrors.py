"""Where Debian's archive is, as this machine's own apt configuration says it.

No host is named here: the mirror is an option's, the environment's (NOVA_MIRROR), or
what /etc/apt names for Debian's own suites. On Ubuntu apt names no Debian mirror, so
there it has to be given.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from novasandbox.errors import InvalidConfig
from novasandbox.images.aptconfig import Source, read_sources

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_RELEASES = (
    *("oldoldstable", "oldstable", "stable", "testing", "unstable", "sid"),
    *("bullseye", "bookworm", "trixie", "forky", "duke"),
)
_SUITE = re.compile(rf"({'|'.join(_RELEASES)})(-updates|-security)?(/updates)?")
_WEB = ("http://", "https://")


@dataclass(frozen=True)
class Mirrors:
    """Base URIs of the archive, best first, and of the one with security updates."""

    main: tuple[str, ...]
    security: tuple[str, ...]


def find_mirrors(named: Sequence[str] | None = None, etc: Path = Path("/etc/apt")) -> Mirrors:
    """The mirrors to use: those named, else NOVA_MIRROR's (split at spaces), else apt's.

    Raises InvalidConfig where none is known or one is not an http(s) URI.
    """
    named = named or os.environ.get("NOVA_MIRROR", "").split()
    if named:
        for uri in named:
            if not uri.startswith(_WEB):
                raise InvalidConfig(
                    f"{uri!r} is not a mirror of Debian's archive",
                    why="a mirror is an http:// or https:// address",
                    fix="Give the address that holds the folders dists/ and pool/",
                )
        uris = tuple(_base(uri) for uri in named)
        return Mirrors(uris, uris)
    sources = read_sources(etc)
    mirrors = choose(sources)
    if not mirrors.main:
        others = sorted({suite for source in sources for suite in source.suites})
        found = f"it names only {', '.join(others)}" if others else f"{etc} names no packages"
        raise InvalidConfig(
            "No mirror of Debian's archive is known, and the guest's kernel comes from one",
            why=f"apt on this machine is not set up for Debian: {found}",
            fix="Set NOVA_MIRROR to the address of a Debian mirror "
            "(what stands after `deb` in a Debian machine's sources)",
        )
    return mirrors


def choose(sources: Iterable[Source]) -> Mirrors:
    """Debian's own among all sources; those that name Debian's keyring come first.

    A third party may call its suite `bookworm` too. It is then asked in its turn, and
    refused because Debian did not sign it.
    """
    main: dict[str, int] = {}
    security: dict[str, int] = {}
    for source in sources:
        rank = 0 if "debian-archive" in source.signed_by else 1
        if "main" not in source.components:
            continue
        for suite in source.suites:
            match = _SUITE.fullmatch(suite)
            if match is None:
                continue
            kind = security if "-security" in suite or match[3] else main
            for uri in source.uris:
                if uri.startswith(_WEB):
                    kind[_base(uri)] = min(rank, kind.get(_base(uri), rank))
    best_first = [tuple(sorted(uris, key=uris.__getitem__)) for uris in (main, security)]
    return Mirrors(*best_first)


def _base(uri: str) -> str:
    return uri.rstrip("/")
