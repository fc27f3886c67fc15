"""Little ELF files for tests."""

from __future__ import annotations

import struct


def elf_file(
    machine: int = 62,
    sections: dict[str, bytes] | None = None,
    kinds: dict[str, tuple[int, int]] | None = None,
) -> bytes:
    """A little ELF file with these sections. kinds: type and linked section, else 1 and none."""
    contents = {"": b"", **(sections or {}), ".shstrtab": b""}
    contents[".shstrtab"] = b"".join(name.encode() + b"\0" for name in contents)
    at, body, rows, name_at = 64, bytearray(), bytearray(), 0
    for name, content in contents.items():
        kind, link = (kinds or {}).get(name, (1, 0))
        rows += struct.pack(
            "<IIQQQQIIQQ", name_at, kind, 0, 0, at + len(body), len(content), link, 0, 1, 0
        )
        body += content
        name_at += len(name) + 1
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 1, machine, 1)
    head += struct.pack(
        "<QQQIHHHHHH", 0, 0, at + len(body), 0, 64, 0, 0, 64, len(contents), len(contents) - 1
    )
    return head + bytes(body) + bytes(rows)
