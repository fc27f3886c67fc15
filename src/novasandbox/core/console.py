"""What a guest's console says of its end."""

from __future__ import annotations


def panic_in(console: bytes) -> str | None:
    """The line with which the guest's kernel panicked, if it did."""
    at = console.rfind(b"Kernel panic")
    if at < 0:
        return None
    return console[at : at + 300].splitlines()[0].decode("utf-8", "replace").strip()


def last_words(console: bytes) -> str | None:
    """The last three lines, as one."""
    lines = [line.strip() for line in console[-2000:].splitlines() if line.strip()]
    return b" | ".join(lines[-3:]).decode("utf-8", "replace") or None
