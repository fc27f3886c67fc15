"""What `nova` prints: tables, JSON, and text of a guest's made harmless."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

_TIMES = ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(text: str, *, lines: bool = False) -> str:
    r"""Text without control characters: they would move the cursor, hide, or change colours.

    Each becomes its escape, as `\x1b`; so do the characters that turn the writing direction.
    lines: keep line breaks and tabs.
    """
    if lines:
        text = text.replace("\r\n", "\n")
    kept = "\n\t" if lines else ""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in kept else _escape(character)
        for character in text
    )


def _escape(character: str) -> str:
    number = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    if 0xDC80 <= number <= 0xDCFF:  # a byte that was no UTF-8 (surrogateescape)
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def print_json(value: Any) -> None:
    """One JSON document, or one line of a stream of them, at once."""
    # All but ASCII is escaped, and with it every control character but DEL.
    print(json.dumps(value).replace("\x7f", "\\u007f"), flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: drawn on a terminal, else plain columns. All cells are escaped."""
    cells = [[escaped(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw(columns, cells)
        return
    widths = [max(len(row[n]) for row in [columns, *cells]) for n in range(len(columns))]
    for row in [columns, *cells]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        # What does not fit is cut off the last column: an id that is cut is of no use.
        last = number == len(columns) - 1
        width = None if last else max(len(row[number]) for row in [columns, *rows])
        table.add_column(column, no_wrap=True, overflow="ellipsis", min_width=width)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table, crop=False)


def note(text: str, *, quiet: bool = False) -> None:
    """A remark for a person, on stderr."""
    if not quiet:
        print(escaped(text, lines=True), file=sys.stderr, flush=True)


def human_size(size: float | None) -> str:
    """Bytes for people: `1.5 GiB`; `-` where they are not known."""
    if size is None:
        return "-"
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024 or unit == "GiB":
            break
    return f"{size:.1f} {unit}" if size < 10 else f"{size:.0f} {unit}"


def human_time(seconds: float | None) -> str:
    """A duration for people: `45s`, `3m20s`, `2h5m`, `3d4h`; `-` where there is none."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    for size, unit, below, smaller in _TIMES:
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size}{unit}{rest}{smaller}" if rest else f"{whole // size}{unit}"
    raise AssertionError


def has_json_flag(arguments: Sequence[str]) -> bool:
    """Whether `--json` is among the words that are ours: those before the guest's."""
    own = list(arguments)
    if "--" in own:
        own = own[: own.index("--")]
    return "--json" in own
