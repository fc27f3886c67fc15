"""Debian's package indices: what packages there are, and what a set of them needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from novasandbox.images.deb822 import paragraphs
from novasandbox.images.debversion import version_key

if TYPE_CHECKING:
    from collections.abc import Iterable

_LINE = re.compile(rb"^(Package|Provides|Essential): *(.*?)\r?$", re.MULTILINE)
_NAME = re.compile(r"^\s*([a-zA-Z0-9][a-zA-Z0-9+.-]*)(?::[a-z0-9-]+)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PRIORITIES = ("required", "important", "standard", "optional")


class BadIndex(ValueError):
    """An index says something that no index of Debian's says."""


class Unsatisfiable(LookupError):
    """A package that is wanted or needed is in no index."""


@dataclass(frozen=True)
class Package:
    """One package of the archive."""

    name: str
    version: str
    architecture: str
    filename: str
    size: int
    sha256: str
    base: str
    installed_size: int
    priority: str
    clauses: tuple[tuple[str, ...], ...]
    provides: frozenset[str]
    stanza: str

    @classmethod
    def parse(cls, text: str, base: str) -> Package:
        """A package from its paragraph; base is the archive that `Filename` is relative to.

        Raises BadIndex.
        """
        fields = (paragraphs(text) or [{}])[0]
        try:
            filename = fields["filename"]
            if filename.startswith("/") or ".." in filename.split("/"):
                raise BadIndex(f"a file name outside the archive: {filename!r}")
            if not _SHA256.fullmatch(fields["sha256"]):
                raise BadIndex(f"a bad SHA256 for {fields['package']}")
            needs = f"{fields.get('pre-depends', '')},{fields.get('depends', '')}"
            return cls(
                name=fields["package"],
                version=fields["version"],
                architecture=fields["architecture"],
                filename=filename,
                size=int(fields["size"]),
                sha256=fields["sha256"],
                base=base,
                installed_size=int(fields.get("installed-size", "0")) * 1024,
                priority=fields.get("priority", "optional"),
                clauses=_clauses(needs),
                provides=frozenset(_names(fields.get("provides", ""))),
                stanza=text.strip(),
            )
        except (KeyError, ValueError) as error:
            if isinstance(error, BadIndex):
                raise
            raise BadIndex(f"a package without a proper {error}") from error


class Index:
    """The packages of several indices together; of each name the newest version counts."""

    def __init__(self) -> None:
        self._texts: list[tuple[bytes, str]] = []
        self._places: dict[str, list[tuple[int, int]]] = {}
        self._providers: dict[str, set[str]] = {}
        self._parsed: dict[str, Package] = {}
        self.essential: set[str] = set()

    def add(self, text: bytes, base: str) -> None:
        """Take in a `Packages` file; only what is asked for later is parsed in full."""
        number = len(self._texts)
        self._texts.append((text, base))
        self._parsed.clear()
        name = ""
        for match in _LINE.finditer(text):
            value = match[2].decode("utf-8", "replace")
            if match[1] == b"Package":
                name = value
                self._places.setdefault(name, []).append((number, match.start()))
            elif match[1] == b"Essential" and value == "yes":
                self.essential.add(name)
            elif match[1] == b"Provides":
                for virtual in _names(value):
                    self._providers.setdefault(virtual, set()).add(name)

    def get(self, name: str) -> Package | None:
        """The newest package of that name."""
        if name not in self._parsed and name in self._places:
            candidates = [self._parse(*place) for place in self._places[name]]
            self._parsed[name] = max(candidates, key=lambda found: version_key(found.version))
        return self._parsed.get(name)

    def closure(self, names: Iterable[str], exclude: Iterable[str] = ()) -> list[Package]:
        """The packages of these names and all that they depend on, sorted by name.

        exclude: names that are never taken in for a dependency; one that only they could
            fulfil stays open.

        Raises Unsatisfiable and says who needs what.
        """
        chosen: dict[str, Package] = {}
        for name in names:
            found = self.get(name) or self._provider(name, set())
            if found is None:
                raise Unsatisfiable(f"there is no package {name}")
            chosen[found.name] = found
        left_out = set(exclude)
        queue = list(chosen.values())
        while queue:
            package = queue.pop(0)
            for clause in package.clauses:
                names_left = tuple(name for name in clause if name not in left_out)
                if not names_left or self._is_met(clause, chosen):
                    continue
                needed = self._choose(names_left, left_out)
                if needed is None:
                    raise Unsatisfiable(f"{package.name} needs {' or '.join(clause)}")
                chosen[needed.name] = needed
                queue.append(needed)
        return sorted(chosen.values(), key=lambda package: package.name)

    def _parse(self, number: int, start: int) -> Package:
        text, base = self._texts[number]
        end = text.find(b"\n\n", start)
        # `Package` is the first field of a paragraph in every index of Debian's.
        return Package.parse(text[start : end if end >= 0 else len(text)].decode(), base)

    @staticmethod
    def _is_met(clause: tuple[str, ...], chosen: dict[str, Package]) -> bool:
        return any(
            name in chosen or any(name in package.provides for package in chosen.values())
            for name in clause
        )

    def _choose(self, clause: tuple[str, ...], exclude: set[str]) -> Package | None:
        for name in clause:
            if found := self.get(name):
                return found
        for name in clause:
            if found := self._provider(name, exclude):
                return found
        return None

    def _provider(self, virtual: str, exclude: set[str]) -> Package | None:
        def rank(package: Package) -> tuple[int, str]:
            known = package.priority in _PRIORITIES
            return (_PRIORITIES.index(package.priority) if known else 9, package.name)

        names = self._providers.get(virtual, set()) - exclude
        packages = [package for name in names if (package := self.get(name))]
        return min(packages, key=rank, default=None)


def _clauses(text: str) -> tuple[tuple[str, ...], ...]:
    """`a (>= 1) | b, c:any` as `((a, b), (c,))`."""
    clauses = (tuple(_names(clause, "|")) for clause in text.replace("\n", " ").split(","))
    return tuple(dict.fromkeys(clause for clause in clauses if clause))


def _names(text: str, separator: str = ",") -> list[str]:
    return [match[1] for part in text.split(separator) if (match := _NAME.match(part))]
