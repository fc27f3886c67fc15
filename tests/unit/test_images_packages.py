"""Package indices: versions, dependencies, and what a damaged one gives."""

from __future__ import annotations

import contextlib
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from novasandbox.images.apt import Release
from novasandbox.images.debversion import version_key
from novasandbox.images.packages import BadIndex, Index, Package, Unsatisfiable
from support.tools import on_linux, tool

VERSIONS = st.from_regex(
    r"([0-9]:)?[0-9][a-zA-Z0-9.+~]{0,8}(-[a-zA-Z0-9.+~]{1,5})?", fullmatch=True
)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.0~rc1", "1.0"),
        ("1.0", "1.0+b1"),
        ("1.9", "1.10"),
        ("9", "1:1"),
        ("6.1.170-3", "6.1.176-1"),
        ("1.0-1", "1.0-1+deb12u1"),
        ("1.0~~", "1.0~"),
        ("1a", "1+"),
        ("1.0", "1.0-1"),
    ],
)
def test_versions_are_ordered_as_debian_orders_them(older: str, newer: str) -> None:
    assert version_key(older) < version_key(newer)


@pytest.mark.parametrize(("one", "other"), [("0", "0-0"), ("1-0", "1"), ("1.0", "1.")])
def test_a_missing_number_is_nought(one: str, other: str) -> None:
    assert version_key(one) == version_key(other)


@on_linux
@settings(max_examples=40, deadline=None)
@given(VERSIONS, VERSIONS)
@example("0", "0-0")
@example("0-0~", "0")
def test_versions_are_ordered_as_dpkg_orders_them(one: str, other: str) -> None:
    command = [tool("dpkg", "dpkg"), "--compare-versions", one, "lt", other]
    assert (version_key(one) < version_key(other)) == (
        subprocess.run(command, capture_output=True).returncode == 0
    )


def stanza(name: str, *, version: str = "1", extra: str = "") -> str:
    return (
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n{extra}"
        f"Filename: pool/{name}.deb\nSize: 1\nSHA256: {'0' * 64}\n"
    )


def index(*stanzas: str) -> Index:
    made = Index()
    made.add("\n".join(stanzas).encode(), "http://mirror")
    return made


def names(found: list[Package]) -> list[str]:
    return [package.name for package in found]


def test_what_a_package_needs_comes_along_with_the_first_alternative_that_exists() -> None:
    made = index(
        stanza("a", extra="Pre-Depends: b (>= 1) | c\nDepends: gone | d:any (<< 2),\n e [amd64]\n"),
        stanza("b"),
        stanza("c"),
        stanza("d"),
        stanza("e", extra="Depends: a\n"),
    )
    assert names(made.closure(["a"])) == ["a", "b", "d", "e"]


def test_an_alternative_that_is_chosen_already_is_enough() -> None:
    made = index(
        stanza("a", extra="Depends: b | c\n"),
        stanza("b"),
        stanza("c"),
        stanza("d", extra="Depends: v\n"),
        stanza("e", extra="Provides: v\n"),
        stanza("f", extra="Provides: v (= 2)\nPriority: required\n"),
    )
    assert names(made.closure(["a", "c"])) == ["a", "c"]
    assert names(made.closure(["d", "e"])) == ["d", "e"]
    assert names(made.closure(["d"])) == ["d", "f"]


def test_an_excluded_package_is_passed_over() -> None:
    made = index(stanza("a", extra="Depends: b | c, d\n"), stanza("b"), stanza("c"), stanza("d"))
    assert names(made.closure(["a"], exclude=["b", "d"])) == ["a", "c"]


def test_what_is_missing_is_named_with_who_needs_it() -> None:
    made = index(stanza("a", extra="Depends: b | c\n"))
    with pytest.raises(Unsatisfiable, match="a needs b or c"):
        made.closure(["a"])
    with pytest.raises(Unsatisfiable, match="no package x"):
        made.closure(["x"])


def test_the_newest_version_counts_and_essential_packages_are_known() -> None:
    made = index(stanza("a", version="1.9"), stanza("a", version="1.10", extra="Essential: yes\n"))
    found = made.get("a")
    assert found is not None
    assert found.version == "1.10"
    assert made.essential == {"a"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Size: 1", "Size: x"),
        ("Filename: pool/a.deb", "Filename: ../../etc/passwd"),
        ("Filename: pool/a.deb", "Filename: /etc/passwd"),
        ("Version: 1\n", ""),
        ("0" * 64, "0" * 63),
    ],
)
def test_a_broken_stanza_is_a_bad_index(old: str, new: str) -> None:
    with pytest.raises(BadIndex):
        Package.parse(stanza("a").replace(old, new), "http://mirror")


@given(st.text(alphabet=st.sampled_from("PackageProvides:SHA256 Vrsion\n|,()=a-1"), max_size=300))
def test_no_index_gives_anything_but_packages_or_one_kind_of_error(text: str) -> None:
    made = Index()
    made.add(text.encode(), "http://mirror")
    for name in list(made._places):
        with contextlib.suppress(BadIndex):
            made.get(name)


@given(st.binary(max_size=400))
def test_no_bytes_break_the_parser_of_releases(text: bytes) -> None:
    with contextlib.suppress(BadIndex):
        Release.parse(text + b"\nSHA256:\n" + text)
