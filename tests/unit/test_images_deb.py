"""Debian packages are read in each form, and damage is one kind of error."""

from __future__ import annotations

import contextlib
import gzip
import lzma
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from debian_archive import ar, deb, tar
from novasandbox.images import deb as packages

if TYPE_CHECKING:
    from pathlib import Path


def test_a_package_gives_its_files(tmp_path: Path) -> None:
    path = tmp_path / "a.deb"
    path.write_bytes(deb({"usr/bin/a": b"content", "usr/bin/b": "a"}))
    with packages.opened(path) as archive:
        members = {member.name: member for member in archive}
    assert members["./usr/bin/b"].linkname == "a"


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, zstandard.compress, bytes])
def test_a_package_may_be_packed_in_each_way(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    path = tmp_path / "a.deb"
    path.write_bytes(ar({"debian-binary": b"2.0\n", "data.tar": pack(tar({"x": b"1"}))}))
    with packages.opened(path) as archive:
        assert [member.name for member in archive] == ["./x"]


WHOLE = deb({"usr/bin/a": b"content" * 50})


@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=4))
def test_no_damage_gives_anything_but_one_kind_of_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, damage: bytes
) -> None:
    path = tmp_path_factory.mktemp("deb") / "a.deb"
    for content in (WHOLE[:at], WHOLE[:at] + damage + WHOLE[at + len(damage) :]):
        path.write_bytes(content)
        with contextlib.suppress(packages.BadPackage), packages.opened(path) as archive:
            for member in archive:
                archive.extractfile(member)
