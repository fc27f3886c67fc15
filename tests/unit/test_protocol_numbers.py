"""The agent, the host and the document give each thing the same number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from novasandbox.guest import protocol
from novasandbox.guest.files import Change
from novasandbox.guest.frames import encode
from novasandbox.guest.protocol import Errno, Frame, Op, Tag

ROOT = Path(__file__).resolve().parents[2]
HEADER = (ROOT / "native/agent/protocol.h").read_text()
DOCUMENT = (ROOT / "docs/protocol.md").read_text()
# From here on tags are the holder's, between processes of the host; the guest knows none.
HOLDERS_OWN = 0x8000


def of_enum(name: str, prefix: str) -> dict[str, int]:
    """The names and numbers of an enum of the header."""
    found = re.search(rf"enum {name} \{{(.*?)\}};", HEADER, re.S)
    assert found is not None
    pairs = re.findall(rf"{prefix}(\w+) = (\w+)", found[1])
    return {key: int(number, 0) for key, number in pairs}


def of_define(name: str) -> str:
    """The value of a macro of the header."""
    found = re.search(rf"#define {name} (.*)", HEADER)
    assert found is not None
    return found[1].strip('"')


def section(title: str) -> str:
    """A chapter of the document."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", DOCUMENT, re.S | re.M)
    assert found is not None, title
    return found[1]


def rows(title: str) -> list[list[str]]:
    """The cells of a chapter's tables."""
    lines = [line for line in section(title).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]


def tags() -> dict[str, int]:
    """The tags that the guest knows."""
    return {tag.name: tag.value for tag in Tag if tag < HOLDERS_OWN}


def test_frame_types_agree() -> None:
    ours = {frame.name: frame.value for frame in Frame}
    assert of_enum("frame_type", "FRAME_") == ours
    table = {row[1]: int(row[0], 16) for row in rows("Frames") if row[0].startswith("0x")}
    assert table == ours


def test_operations_agree() -> None:
    ours = {op.name: op.value for op in Op}
    assert of_enum("operation_number", "OP_") == ours
    table = {row[1]: int(row[0]) for row in rows("Operations") if row[0].isdecimal()}
    assert table == ours


def test_field_tags_agree() -> None:
    assert of_enum("field_tag", "TAG_") == tags()
    table = {
        row[at + 1]: int(row[at])
        for row in rows("Field tags")
        for at in range(0, len(row) - 1, 2)
        if row[at].isdecimal()
    }
    assert table == tags()


@pytest.mark.parametrize(
    ("macro", "value"),
    [
        ("PROTOCOL_VERSION", protocol.VERSION),
        ("MAX_PAYLOAD", protocol.MAX_PAYLOAD),
        ("HEADER_SIZE", protocol.HEADER_SIZE),
        ("ATTACH_MAGIC", protocol.ATTACH_MAGIC.decode()),
        ("DEFAULT_WINDOW", protocol.DEFAULT_WINDOW),
        ("MAX_WINDOW", protocol.MAX_WINDOW),
        ("MAX_STREAMS", protocol.MAX_STREAMS),
        ("PORT_NAME", protocol.PORT_NAME),
        ("VSOCK_PORT", protocol.VSOCK_PORT),
    ],
)
def test_limits_agree(macro: str, value: int | str) -> None:
    assert of_define(macro) == str(value)


@pytest.mark.parametrize(
    "number",
    [
        protocol.MAX_PAYLOAD,
        protocol.MAX_PAYLOAD + protocol.HEADER_SIZE,
        protocol.DEFAULT_WINDOW,
        protocol.MAX_WINDOW,
        protocol.MAX_STREAMS,
    ],
)
def test_the_document_names_the_limits(number: int) -> None:
    assert f"{number:,}" in DOCUMENT


def test_the_changes_of_a_watch_agree() -> None:
    theirs = of_enum("change_kind", "CHANGE_")
    assert sorted(theirs.values()) == [change.value for change in Change]
    words = re.search(r"WATCH: KIND \((.*?)\)", section("Operations"), re.S)
    assert words is not None
    assert [int(n) for n in re.findall(r"\b(\d) [a-z]", words[1])] == sorted(theirs.values())


def test_the_errors_of_the_guest_are_linuxs() -> None:
    source = "".join(path.read_text() for path in (ROOT / "native/agent").glob("*.c"))
    for error in Errno:
        assert error.name in source


def test_a_header_is_as_long_as_it_says() -> None:
    assert len(encode(Frame.CANCEL, 1)) == protocol.HEADER_SIZE
    assert f"{protocol.ATTACH_MAGIC.decode()}" in DOCUMENT
