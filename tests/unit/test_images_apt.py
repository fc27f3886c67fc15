"""The chain of trust: InRelease, Packages, package; every break is noticed and named."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from debian_archive import FakeArchive, Served, deb, serve
from novasandbox.errors import DownloadFailed
from novasandbox.images.apt import Archive
from novasandbox.images.download import Fetcher
from novasandbox.images.mirrors import Mirrors
from novasandbox.images.openpgp import BadSignature, Keyring

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from novasandbox.images.packages import Package


@pytest.fixture(scope="module")
def signed() -> FakeArchive:
    archive = FakeArchive()
    archive.add("tool", deb({"usr/bin/tool": b"#!"}), extra="Depends: lib (>= 1)\n")
    archive.add("lib", deb({"usr/lib/lib": b"x"}))
    archive.add("lib", deb({"usr/lib/lib": b"y"}), suite="bookworm-security", version="1.0+deb1")
    archive.publish()
    return archive


class Lab:
    """A server for an archive that was tampered with, and what sees it."""

    def __init__(self, made: FakeArchive, server: Served, fetcher: Fetcher, folder: Path) -> None:
        self.files = made.files
        self.made = made
        self.server = server
        self.archive = Archive(
            server.mirrors,
            fetcher=fetcher,
            downloads=folder / "downloads",
            arch="x86_64",
            keyring=Keyring(made.keys_in(folder / "keys")),
        )

    async def packages(self) -> list[Package]:
        return (await self.archive.index("bookworm")).closure(["tool"])


@pytest.fixture
def lab(signed: FakeArchive, tmp_path: Path) -> Iterator[Lab]:
    made = FakeArchive(dict(signed.files), {}, signed.key)
    with serve(made.files) as server, Fetcher(proxies={}, attempts=2, pause=0.01) as fetcher:
        yield Lab(made, server, fetcher, tmp_path)


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


async def test_packages_come_with_what_they_need_the_security_update_before_the_release(
    lab: Lab,
) -> None:
    packages = await lab.packages()
    assert [(found.name, found.version) for found in packages] == [
        ("lib", "1.0+deb1"),
        ("tool", "1"),
    ]
    files = await lab.archive.fetch(packages, "fetching")
    assert hashlib.sha256(files[1].read_bytes()).hexdigest() == packages[1].sha256


async def test_a_suite_of_updates_that_a_mirror_lacks_is_left_out(lab: Lab) -> None:
    del lab.files["dists/bookworm-security/InRelease"]
    assert [found.version for found in await lab.packages()] == ["1", "1"]


async def test_a_changed_release_file_is_refused(lab: Lab) -> None:
    name = "dists/bookworm/InRelease"
    lab.files[name] = replaced(lab.files[name], b"Origin: Debian", b"Origin: Debiax")
    with pytest.raises(DownloadFailed, match="is not signed by Debian"):
        await lab.packages()


async def test_a_changed_security_release_is_refused_and_not_left_out(lab: Lab) -> None:
    name = "dists/bookworm-security/InRelease"
    lab.files[name] = replaced(lab.files[name], b"Origin: Debian", b"Origin: Debiax")
    with pytest.raises(DownloadFailed, match="bookworm-security/InRelease is not signed"):
        await lab.packages()


@pytest.mark.parametrize("length", [0, 100, 300])
async def test_a_release_file_that_is_cut_is_refused(lab: Lab, length: int) -> None:
    name = "dists/bookworm/InRelease"
    lab.files[name] = lab.files[name][:length]
    with pytest.raises(DownloadFailed, match="not signed"):
        await lab.packages()


async def test_a_release_signed_by_another_key_is_refused(lab: Lab) -> None:
    other = FakeArchive()
    other.publish()
    lab.files["dists/bookworm/InRelease"] = other.files["dists/bookworm/InRelease"]
    with pytest.raises(DownloadFailed, match="not signed by Debian"):
        await lab.packages()


async def test_debians_own_keys_do_not_accept_the_test_archive(lab: Lab) -> None:
    with pytest.raises(BadSignature):
        Keyring().signed_text(lab.files["dists/bookworm/InRelease"])


async def test_text_around_the_signed_part_is_not_used(lab: Lab) -> None:
    name = "dists/bookworm/InRelease"
    lab.files[name] = b"Origin: Evil\n\n" + lab.files[name] + b"\nOrigin: Evil\n"
    assert len(await lab.packages()) == 2


@pytest.mark.parametrize(
    ("suite", "origin"), [("bookworm-updates", "Debian"), ("bookworm", "Another")]
)
async def test_a_valid_release_of_something_else_is_refused(
    lab: Lab, suite: str, origin: str
) -> None:
    lab.made.header = lab.made.header.replace("Debian", origin)
    lab.made.publish(suites=(suite,))
    lab.files["dists/bookworm/InRelease"] = lab.files[f"dists/{suite}/InRelease"]
    with pytest.raises(DownloadFailed, match="is of another release"):
        await lab.packages()


async def test_a_release_out_of_date_is_refused_unless_apt_does_not_check(
    signed: FakeArchive, tmp_path: Path
) -> None:
    made = FakeArchive({}, dict(signed.stanzas), signed.key)
    made.publish(more="Valid-Until: Sat, 01 Jan 2000 00:00:00 UTC\n")
    keyring = Keyring(made.keys_in(tmp_path / "keys"))
    with serve(made.files) as server, Fetcher(proxies={}) as fetcher:
        for check in (True, False):
            archive = Archive(
                server.mirrors,
                fetcher=fetcher,
                downloads=tmp_path / "d",
                arch="x86_64",
                keyring=keyring,
                check_valid_until=check,
            )
            if check:
                with pytest.raises(DownloadFailed, match=r"out of date.*2000-01-01"):
                    await archive.index("bookworm")
            else:
                assert (await archive.index("bookworm")).get("tool")


async def test_a_changed_index_is_refused(lab: Lab) -> None:
    name = "dists/bookworm/main/binary-amd64/Packages.xz"
    lab.files[name] = lab.files[name][:-1] + b"?"
    with pytest.raises(DownloadFailed, match=r"Packages\.xz: it has another SHA-256"):
        await lab.packages()


async def test_an_index_that_is_longer_or_shorter_is_refused(lab: Lab) -> None:
    name = "dists/bookworm/main/binary-amd64/Packages.xz"
    whole = lab.files[name]
    lab.files[name] = whole + b"\0"
    with pytest.raises(DownloadFailed, match="longer than"):
        await lab.packages()
    lab.files[name] = whole[:-1]
    with pytest.raises(DownloadFailed, match="it ended after"):
        await lab.packages()


async def test_a_changed_package_is_refused(lab: Lab) -> None:
    packages = await lab.packages()
    name = packages[1].filename
    lab.files[name] = replaced(lab.files[name], b"!<arch>", b"!<arcx>")
    with pytest.raises(DownloadFailed, match=r"tool_1_amd64\.deb: it has another SHA-256"):
        await lab.archive.fetch(packages, "fetching")


async def test_a_missing_package_names_itself(lab: Lab) -> None:
    packages = await lab.packages()
    del lab.files[packages[1].filename]
    with pytest.raises(DownloadFailed, match=r"tool_1_amd64\.deb: the server has no such file"):
        await lab.archive.fetch(packages, "fetching")


async def test_another_mirror_is_asked_when_one_is_not_debians(
    lab: Lab, signed: FakeArchive, tmp_path: Path
) -> None:
    third_party = FakeArchive()
    third_party.publish()
    with serve(third_party.files) as other, Fetcher(proxies={}) as fetcher:
        archive = Archive(
            Mirrors((other.url, lab.server.url), (lab.server.url,)),
            fetcher=fetcher,
            downloads=tmp_path / "d",
            arch="x86_64",
            keyring=Keyring(signed.keys_in(tmp_path / "keys2")),
        )
        assert (await archive.index("bookworm")).get("tool")


async def test_an_architecture_that_the_archive_lacks_is_named(lab: Lab, tmp_path: Path) -> None:
    with Fetcher(proxies={}) as fetcher:
        archive = Archive(
            lab.server.mirrors,
            fetcher=fetcher,
            downloads=tmp_path,
            arch="aarch64",
            keyring=Keyring(tmp_path / "keys"),
        )
        with pytest.raises(DownloadFailed, match="no packages for arm64"):
            await archive.index("bookworm")


def test_the_packages_keyring_has_the_keys_of_both_releases() -> None:
    assert len(Keyring()._certificates) == 6
