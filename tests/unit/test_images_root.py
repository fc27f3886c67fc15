"""From packages to a root: links of a merged /usr, accounts, libraries, and nothing outside."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from debian_archive import FakeArchive, deb
from elf_files import elf_file
from novasandbox import native
from novasandbox.images import bytecode, ldcache
from novasandbox.images.configure import configure
from novasandbox.images.packages import Package
from novasandbox.images.unpack import BadTree, Tree, prepare, unpack
from support.tools import on_linux, tool

if TYPE_CHECKING:
    from collections.abc import Mapping


def package(name: str = "tool", extra: str = "") -> Package:
    made = FakeArchive()
    made.add(name, b"", extra=extra)
    return Package.parse(made.stanzas["bookworm"][0], "http://mirror")


def unpacked(folder: Path, files: Mapping[str, bytes | str | None], postinst: str = "") -> Tree:
    (folder / "a.deb").write_bytes(deb(files, {"usr/bin/tool": 0o755}, postinst))
    tree = Tree(folder / "tree")
    prepare(tree, "x86_64")
    unpack(tree, [(package(extra="Multi-Arch: same\n"), folder / "a.deb")])
    return tree


def test_files_of_a_split_usr_land_in_the_merged_one(tmp_path: Path) -> None:
    tree = unpacked(tmp_path, {"bin": None, "bin/a": b"x", "lib/x86_64/l.so": b"y"})
    assert (tree.root / "bin").is_symlink()
    assert (tree.root / "usr/bin/a").read_bytes() == b"x"
    assert (tree.root / "usr/lib/x86_64/l.so").read_bytes() == b"y"


def test_documentation_stays_out_and_licences_stay_in(tmp_path: Path) -> None:
    tree = unpacked(
        tmp_path,
        {
            "usr/share/doc/tool/copyright": b"MIT",
            "usr/share/doc/tool/README": b"long",
            "usr/share/man/man1/tool.1": b"x",
            "usr/share/locale/de/x": b"x",
        },
    )
    assert [path.name for path in (tree.root / "usr/share").rglob("*") if path.is_file()] == [
        "copyright"
    ]


def test_links_are_followed_as_the_guest_would_and_never_out_of_the_tree(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    tree = unpacked(
        tmp_path,
        {
            "var/run": "/run",
            "var/run/a": b"1",
            "out": str(outside),
            "out/b": b"2",
            "up": "../../../../..",
            "up/c": b"3",
        },
    )
    assert (tree.root / "run/a").read_bytes() == b"1"
    assert (tree.root / "c").read_bytes() == b"3"
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", ["../escaped", "usr/../../escaped", "a/.."])
def test_a_path_that_leads_outside_is_refused_or_kept_inside(tmp_path: Path, name: str) -> None:
    with contextlib.suppress(BadTree):
        unpacked(tmp_path, {name: b"x"})
    assert not (tmp_path / "escaped").exists()


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTree, match="without end"):
        unpacked(tmp_path, {"a": "b", "b": "a", "a/x": b"1"})


@on_linux
def test_dpkg_sees_the_packages_as_installed(tmp_path: Path) -> None:
    tree = unpacked(tmp_path, {"usr/bin/tool": b"#!"})
    command = [tool("dpkg-query", "dpkg"), "--admindir", str(tree.root / "var/lib/dpkg")]
    shown = subprocess.run([*command, "-W"], capture_output=True, text=True, check=True)
    assert shown.stdout == "tool:amd64\t1\n"
    owner = subprocess.run([*command, "-S", "/usr/bin/tool"], capture_output=True, text=True)
    assert owner.stdout == "tool:amd64: /usr/bin/tool\n"


def test_a_configured_root_has_what_the_packages_scripts_would_make(tmp_path: Path) -> None:
    tree = unpacked(
        tmp_path,
        {
            "bin/dash": b"",
            "etc/skel/.profile": b"# mine",
            "usr/share/base-passwd/passwd.master": b"root:*:0:0:root:/root:/bin/bash\n",
            "usr/share/base-passwd/group.master": b"root:*:0:\n",
            "usr/share/ca-certificates/mozilla/a.crt": b"A",
            "usr/share/ca-certificates/mozilla/b.crt": b"B\n",
            "usr/lib/python3.11/EXTERNALLY-MANAGED": b"",
        },
    )
    configure(tree, "x86_64", "me")

    def text(name: str) -> str:
        return tree.path(name).read_text()

    assert str(tree.path("bin/sh").readlink()) == "dash"
    assert text("etc/passwd") == (
        "root:x:0:0:root:/root:/bin/bash\nme:x:1000:1000::/home/me:/bin/bash\n"
    )
    assert text("etc/shadow").startswith("root:*:")
    assert text("etc/ssl/certs/ca-certificates.crt") == "A\nB\n"
    assert text("home/me/.profile") == "# mine"
    assert tree.owners["home/me/.profile"] == (1000, 1000)
    assert tree.owners["etc/shadow"] == (0, 42)
    assert tree.path("tmp").stat().st_mode & 0o7777 == 0o1777
    assert not tree.has("usr/lib/python3.11/EXTERNALLY-MANAGED")
    assert tree.path("etc/ld.so.cache").read_bytes().startswith(b"glibc-ld.so.cache1.1")


def library(soname: str) -> bytes:
    """A shared library of this name, without code."""
    dynamic = struct.pack("<4Q", 14, 1, 0, 0)  # DT_SONAME, DT_NULL
    sections = {".dynstr": f"\0{soname}\0".encode(), ".dynamic": dynamic}
    return elf_file(62, sections, {".dynamic": (6, 1)})


def leads(tree: Tree, name: str) -> str | None:
    """Where an alternative's link leads to in the end."""
    if not tree.has(name):
        return None
    second = str(tree.path(name).readlink())
    assert second.startswith("/etc/alternatives/")
    return str(tree.path(second).readlink())


def test_of_alternatives_the_highest_that_is_there_is_linked_with_its_followers(
    tmp_path: Path,
) -> None:
    tree = unpacked(
        tmp_path,
        dict.fromkeys(("usr/bin/mawk", "usr/bin/gawk", "usr/lib/blas/libblas.so.3"), b""),
        """
        case "$1" in configure)
        update-alternatives --install /usr/bin/awk awk /usr/bin/gawk 10 \\
            --slave /usr/bin/nawk nawk /usr/bin/gawk \\
            --slave /usr/share/man/man1/awk.1.gz awk.1.gz /usr/share/man/man1/gawk.1.gz
        update-alternatives --quiet --install /usr/bin/awk awk "/usr/bin/mawk" 5 # the small one
        update-alternatives --install /usr/bin/awk awk /usr/bin/busybox 99 || true
        update-alternatives --install /usr/lib/libblas.so.3 blas.so.3 /usr/lib/blas/libblas.so.3 1
        """,
    )
    configure(tree, "x86_64", "me")
    assert leads(tree, "usr/bin/awk") == leads(tree, "usr/bin/nawk") == "/usr/bin/gawk"
    assert leads(tree, "usr/lib/libblas.so.3") == "/usr/lib/blas/libblas.so.3"
    assert not tree.has("usr/share/man/man1/awk.1.gz")


@pytest.mark.parametrize(
    "call",
    [
        '--install "$BIN"/w w /usr/bin/tool 50',
        "--install /usr/bin/w w `which tool` 50",
        "--install /usr/bin/w w /usr/bin/tool $(priority)",
        "--install /usr/bin/w w /usr/bin/tool",
        "--install /usr/bin/w ../../w /usr/bin/tool 50",
        "--install /usr/bin/../../../w w /usr/bin/tool 50",
        "--install usr/bin/w w /usr/bin/tool 50",
        "--install /usr/bin/w w '/usr/bin/tool 50",
        "--remove w /usr/bin/tool",
    ],
)
def test_an_alternative_that_only_a_shell_could_read_is_left_out(tmp_path: Path, call: str) -> None:
    tree = unpacked(tmp_path, {"usr/bin/tool": b""}, f"update-alternatives {call}\n")
    configure(tree, "x86_64", "me")
    assert not tree.has("usr/bin/w")
    assert not tree.has("etc/alternatives/w")
    assert not list(tmp_path.rglob("w"))


def test_a_library_that_an_alternative_leads_to_keeps_its_link(tmp_path: Path) -> None:
    where = "usr/lib/x86_64-linux-gnu"
    tree = unpacked(
        tmp_path,
        {f"{where}/libtool.so.3.1": library("libtool.so.3"), f"{where}/libtool.so.3": "/elsewhere"},
    )
    configure(tree, "x86_64", "me")
    assert str(tree.path(f"{where}/libtool.so.3").readlink()) == "/elsewhere"


@on_linux
def test_glibc_reads_the_cache_of_libraries(tmp_path: Path) -> None:
    names = [f"lib{name}.so.{number}" for name in "abc-z_" for number in (1, 9, 10)]
    cache = tmp_path / "cache"
    cache.write_bytes(ldcache.encode({name: f"/usr/lib/{name}" for name in names}, "x86_64"))
    shown = subprocess.run(
        [tool("ldconfig", "libc-bin"), "-p", "-C", str(cache)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [f"{name} (libc6,x86-64) => /usr/lib/{name}" in shown for name in names] == [True] * 18


@on_linux
def test_libraries_are_found_by_their_own_names(tmp_path: Path) -> None:
    arch = native.host_arch()
    folder = f"usr/lib/{arch}-linux-gnu"
    source = next(Path("/", folder).glob("libz.so.1.*"), None)
    assert source is not None, "libz is missing: apt-get install zlib1g"
    tree = unpacked(tmp_path, {f"{folder}/{source.name}": source.read_bytes()})
    ldcache.write(tree, arch)
    assert str(tree.path(f"{folder}/libz.so.1").readlink()) == source.name
    assert b"/libz.so.1\0" in tree.path("etc/ld.so.cache").read_bytes()


async def test_pythons_library_is_compiled_where_this_machine_can(tmp_path: Path) -> None:
    version = f"python3.{sys.version_info.minor}"
    tree = unpacked(tmp_path, {f"usr/lib/{version}/module.py": b"x = 1\n"})
    assert await bytecode.compile_library(tree, "x86_64") is None
    (compiled,) = tree.folder(f"usr/lib/{version}").glob("__pycache__/module.*.pyc")
    assert f"/usr/lib/{version}/module.py".encode() in compiled.read_bytes()
    assert str(tmp_path).encode() not in compiled.read_bytes()


async def test_a_version_that_does_not_run_here_is_said(tmp_path: Path) -> None:
    tree = unpacked(tmp_path, {"usr/lib/python3.99/module.py": b"x = 1\n"})
    said = await bytecode.compile_library(tree, "aarch64")
    assert said is not None
    assert "python3.99 for aarch64 does not run here" in said
