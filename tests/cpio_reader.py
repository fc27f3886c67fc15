"""A reader of newc archives, for tests."""

from __future__ import annotations


def read_cpio(data: bytes) -> list[tuple[str, bytes]]:
    """The entries of a newc archive."""
    found: list[tuple[str, bytes]] = []
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        start = at + (110 + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert start == len(data)
            return found
        found.append((name, data[start : start + fields[6]]))
        at = start + (fields[6] + 3) // 4 * 4
