"""The writer of initramfs archives."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpio_reader import read_cpio
from novasandbox.images.cpio import CpioWriter


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z]{1,12}(/[a-z]{1,9})?", fullmatch=True), st.binary(max_size=99)
        )
    )
)
def test_cpio_entries_come_back_as_they_were_written(entries: list[tuple[str, bytes]]) -> None:
    out = io.BytesIO()
    writer = CpioWriter(out)
    for name, content in entries:
        writer.file(name, content, 0o755)
    writer.close()
    assert read_cpio(out.getvalue()) == entries


@pytest.mark.parametrize("name", ["", "/", "a\0b", "x" * 5000])
def test_a_name_that_cpio_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        CpioWriter(io.BytesIO()).file(name, b"")
