"""Reading apt's configuration, and choosing Debian's mirrors from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novasandbox.errors import InvalidConfig
from novasandbox.images.aptconfig import parse_deb822, parse_lines, parse_settings
from novasandbox.images.deb822 import paragraphs
from novasandbox.images.mirrors import find_mirrors

if TYPE_CHECKING:
    from pathlib import Path


def test_one_line_sources_are_read_with_their_options() -> None:
    (source,) = parse_lines(
        "# deb http://no/ x main\n"
        "deb [arch=amd64 signed-by=/k/debian-archive.gpg] http://a/debian bookworm main contrib#c\n"
        "deb-src http://a/debian bookworm main\n"
        "deb\n"
    )
    assert source.uris == ("http://a/debian",)
    assert source.suites == ("bookworm",)
    assert source.components == ("main", "contrib")
    assert source.signed_by == "/k/debian-archive.gpg"


def test_deb822_sources_are_read_and_disabled_ones_left_out() -> None:
    text = (
        "Types: deb deb-src\n# a comment\nURIs: http://a/debian\n http://b/debian\n"
        "Suites: bookworm bookworm-updates\nComponents: main\nSigned-By:\n -----BEGIN\n .\n\n"
        "Types: deb\nURIs: http://c/\nSuites: bookworm\nComponents: main\nEnabled: no\n\n"
        "Types: deb-src\nURIs: http://c/\nSuites: bookworm\nComponents: main\n"
    )
    (source,) = parse_deb822(text)
    assert source.uris == ("http://a/debian", "http://b/debian")
    assert source.suites == ("bookworm", "bookworm-updates")


def test_apts_proxies_and_checks_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://environment:1")
    monkeypatch.setenv("https_proxy", "http://environment:1")
    found = parse_settings(
        'Acquire::http::Proxy "http://apt:3142";\nAcquire::https::Proxy "DIRECT";\n'
        'Acquire::Check-Valid-Until "false";\n'
    )
    assert found.proxies["http"] == "http://apt:3142"
    assert "https" not in found.proxies
    assert not found.check_valid_until
    assert parse_settings("").proxies["http"] == "http://environment:1"
    assert parse_settings("").check_valid_until


@settings(max_examples=50)
@given(st.text(max_size=200))
def test_no_text_breaks_the_parsers_of_apts_configuration(text: str) -> None:
    parse_lines(text)
    parse_deb822(text)
    parse_settings(text)


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z-]{1,9}", fullmatch=True),
        st.from_regex(r"[!-~]{1,20}", fullmatch=True),
    )
)
def test_paragraphs_come_back_as_they_were_written(fields: dict[str, str]) -> None:
    expected = {name.lower(): value for name, value in fields.items()}
    text = "".join(f"{name}: {value}\n" for name, value in expected.items())
    assert paragraphs(f"\n\n{text}\n\n") == ([expected] if fields else [])


# --- mirrors ---


def configured(etc: Path, *, lines: str = "", sources: str = "") -> Path:
    (etc / "sources.list.d").mkdir(parents=True, exist_ok=True)
    (etc / "sources.list").write_text(lines)
    (etc / "sources.list.d" / "a.sources").write_text(sources)
    return etc


@pytest.fixture(autouse=True)
def _no_mirror_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOVA_MIRROR", raising=False)


def test_debians_own_mirrors_are_found_and_those_of_its_keyring_come_first(tmp_path: Path) -> None:
    etc = configured(
        tmp_path,
        lines="deb http://third/debian bookworm main\ndeb http://docker/debian bookworm stable\n",
        sources="Types: deb\nURIs: http://a/debian/\nSuites: trixie trixie-updates\n"
        "Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
        "Types: deb\nURIs: http://a/debian-security\nSuites: trixie-security\nComponents: main\n",
    )
    found = find_mirrors(etc=etc)
    assert found.main == ("http://a/debian", "http://third/debian")
    assert found.security == ("http://a/debian-security",)


def test_a_list_of_mirrors_in_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "mirrors").write_text("# mine\nhttp://a/debian priority:1\nhttp://b/debian\n")
    etc = configured(
        tmp_path / "etc",
        lines=f"deb mirror+file:{tmp_path}/mirrors bookworm main\n"
        "deb mirror+file:/nowhere bookworm main\ndeb cdrom:[x]/ bookworm main\n",
    )
    assert find_mirrors(etc=etc).main == ("http://a/debian", "http://b/debian")


def test_without_debians_mirror_the_error_says_what_apt_names_and_what_to_set(
    tmp_path: Path,
) -> None:
    etc = configured(tmp_path, lines="deb http://archive/ubuntu noble main\n")
    with pytest.raises(InvalidConfig, match=r"names only noble.*NOVA_MIRROR"):
        find_mirrors(etc=etc)
    with pytest.raises(InvalidConfig, match=r"names no packages.*NOVA_MIRROR"):
        find_mirrors(etc=tmp_path / "nowhere")


def test_a_named_mirror_goes_before_apts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    etc = configured(tmp_path, lines="deb http://a/debian bookworm main\n")
    monkeypatch.setenv("NOVA_MIRROR", "http://b/debian http://c/debian-security/")
    assert find_mirrors(etc=etc).security == ("http://b/debian", "http://c/debian-security")
    assert find_mirrors(["https://d"], etc=etc).main == ("https://d",)
    with pytest.raises(InvalidConfig, match="ftp://x"):
        find_mirrors(["ftp://x"])
