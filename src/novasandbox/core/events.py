"""What happened to a sandbox: a line of JSON each, bounded in number and size."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LIMIT = 1_000


@dataclass(frozen=True, slots=True)
class Event:
    """time: seconds since the epoch. kind: `created`, `running`, `paused`, …"""

    time: float
    kind: str
    detail: dict[str, Any]


class EventLog:
    """The events of one sandbox, kept in its directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0

    def add(self, kind: str, **detail: Any) -> None:
        """Append an event; beyond 1,000 nothing more is kept but the end."""
        if self._count >= _LIMIT and kind not in ("stopped", "failed"):
            return
        self._count += 1
        line = json.dumps({"time": time.time(), "kind": kind, **detail})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def read_events(path: Path) -> list[Event]:
    """The events in a file, oldest first; none where it is missing."""
    try:
        lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            data = json.loads(line)
            found.append(Event(float(data.pop("time")), str(data.pop("kind")), data))
        except (AttributeError, KeyError, TypeError, ValueError):
            continue  # The last line of a killed process may be half a line.
    return found
