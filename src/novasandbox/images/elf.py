"""Just enough of ELF: a module's `.modinfo`, a library's SONAME, and whether a file is one."""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = b"\x7fELF"
MACHINES = {"x86_64": 62, "aarch64": 183}

_SHT_DYNAMIC = 6
_SHT_NOBITS = 8
_DT_SONAME = 14
_SECTION = struct.Struct("<IIQQQQIIQQ")


class NotElf(ValueError):
    """The bytes are not a little-endian 64-bit ELF file, or a damaged one."""


@dataclass(frozen=True)
class Section:
    """One row of the section table."""

    name: str
    kind: int
    offset: int
    size: int
    link: int


def machine(data: bytes) -> int:
    """The machine number in the header."""
    if len(data) < 64 or data[:4] != MAGIC or data[4] != 2 or data[5] != 1:
        raise NotElf("not a little-endian 64-bit ELF file")
    return int(struct.unpack_from("<H", data, 18)[0])


def sections(data: bytes) -> list[Section]:
    """The section table; every row lies within the file."""
    machine(data)
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names_index = struct.unpack_from("<HHH", data, 58)
    if count == 0:
        return []
    if size != _SECTION.size or names_index >= count or table + size * count > len(data):
        raise NotElf("its section table lies outside the file")
    rows = [_SECTION.unpack_from(data, table + size * index) for index in range(count)]
    for row in rows:
        if row[1] != _SHT_NOBITS and row[4] + row[5] > len(data):
            raise NotElf("a section lies outside the file")
    names = data[rows[names_index][4] : rows[names_index][4] + rows[names_index][5]]
    return [Section(_text(names, row[0]), row[1], row[4], row[5], row[6]) for row in rows]


def modinfo(data: bytes) -> dict[str, list[str]]:
    """The `key=value` strings of a kernel module, in order; a key may come again."""
    found: dict[str, list[str]] = {}
    for section in sections(data):
        if section.name != ".modinfo":
            continue
        for entry in data[section.offset : section.offset + section.size].split(b"\0"):
            key, equals, value = entry.partition(b"=")
            if equals:
                found.setdefault(_decode(key), []).append(_decode(value))
        return found
    raise NotElf("it has no .modinfo: not a kernel module")


def soname(data: bytes) -> str | None:
    """A shared library's own name, None where it has none."""
    rows = sections(data)
    for section in rows:
        if section.kind != _SHT_DYNAMIC or section.link >= len(rows):
            continue
        strings = rows[section.link]
        table = data[strings.offset : strings.offset + strings.size]
        for position in range(section.offset, section.offset + section.size - 15, 16):
            tag, value = struct.unpack_from("<QQ", data, position)
            if tag == _DT_SONAME:
                return _text(table, value)
    return None


def _text(table: bytes, start: int) -> str:
    end = table.find(b"\0", start)
    return _decode(table[start : end if end >= 0 else len(table)])


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
