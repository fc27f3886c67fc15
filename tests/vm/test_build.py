"""The real thing: Debian's kernel and root, built from the machine's own mirror, and booted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import novasandbox
from novasandbox import native
from novasandbox.core.template_manager import TemplateManager
from novasandbox.images import initramfs, kernel, manifest, vmlinux
from novasandbox.images.indices import Indices
from novasandbox.images.progress import quiet
from novasandbox.images.store import Store
from support.tools import check_filesystem, debugfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from novasandbox import Sandbox
    from novasandbox.core.template_manager import Artifacts

pytestmark = pytest.mark.vm
MIB = 1 << 20
NOBODY = 65534

BUILD = """
    import asyncio, sys
    from pathlib import Path
    from novasandbox.core.template_manager import TemplateManager
    from novasandbox.images.store import Store

    def tell(step, done, total):
        print(step, done, total, flush=True)

    manager = TemplateManager(store=Store(Path(sys.argv[1])), agent=Path(sys.argv[2]))
    print(asyncio.run(manager.build("debian-python", progress=tell)).rootfs)
"""


def python_for_everybody() -> str:
    """This interpreter, or the system's of the same version: one that any user may start."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for program in (os.path.realpath(sys.executable), f"/usr/bin/{version}"):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if subprocess.run([program, "-c", ""], user=NOBODY, cwd="/").returncode == 0:
                return program
    pytest.fail(f"there is no {version} that everybody may run: apt-get install {version}")


def source_tree(folder: Path) -> dict[str, str]:
    """An environment in which any user runs a copy of this package and of what it imports."""
    shutil.copytree(
        Path(novasandbox.__file__).parent,
        folder / "novasandbox",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for library in needed_by("novasandbox"):
        for file in library.files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), target)
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)}


def needed_by(name: str) -> Iterator[metadata.Distribution]:
    """The installed packages that one needs, and those that they need; its extras stay out."""
    seen, waiting = {name}, [name]
    while waiting:
        for line in metadata.requires(waiting.pop()) or ():
            needed = re.split(r"[^\w.-]", line)[0]
            if needed in seen or "extra ==" in line:
                continue
            seen.add(needed)
            # What another system or an older Python needs is not there.
            with contextlib.suppress(metadata.PackageNotFoundError):
                yield metadata.distribution(needed)
                waiting.append(needed)


def content_hashes(store: Path) -> dict[str, str]:
    """The hash of each artifact's main file, by kind."""
    found: dict[str, str] = {}
    for path in (store / "v1" / "objects").iterdir():
        record = manifest.read(path)
        for name in ("vmlinux", "initramfs.cpio"):
            if name in record.files:
                found[name] = record.files[name]["hash"]
    return found


@pytest.fixture(scope="module")
async def fresh(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """The default template, built from nothing."""
    store = Store(tmp_path_factory.mktemp("store"))
    return await TemplateManager(store=store).build("debian-python")


@pytest.mark.slow
async def test_the_default_template_builds_from_the_machines_own_mirror(fresh: Artifacts) -> None:
    assert vmlinux.has_pvh(fresh.kernel.read_bytes()) or fresh.arch != "x86_64"
    assert fresh.rootfs.stat().st_size < 250 * MIB
    assert fresh.initramfs.stat().st_size < 2 * MIB
    check_filesystem(fresh.rootfs)
    again = await TemplateManager(store=Store(fresh.rootfs.parents[3])).build("debian-python")
    assert again == fresh


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user gets into; pytest keeps its own to itself."""
    with tempfile.TemporaryDirectory(prefix="nova-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_an_ordinary_user_builds_the_same(fresh: Artifacts, open_folder: Path) -> None:
    program = python_for_everybody()
    shutil.copy(native.path("nova-agent"), open_folder / "agent")
    home = open_folder / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    build = [
        program,
        "-c",
        textwrap.dedent(BUILD),
        str(home / "images"),
        str(open_folder / "agent"),
    ]
    ended = subprocess.run(
        ["sh", "-c", 'umask 077; exec "$0" "$@"', *build],
        env={**source_tree(open_folder / "tree"), "NOVA_HOME": str(home)},
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert content_hashes(home / "images") == content_hashes(fresh.rootfs.parents[3])
    image = Path(ended.stdout.splitlines()[-1])
    for path, owner in (
        ("/", "User:     0"),
        ("/usr/bin/su", "User:     0"),
        ("/home/user", "User:  1000"),
    ):
        assert owner in debugfs(image, f"stat {path}")


@pytest.mark.slow
async def test_a_build_killed_half_way_leaves_nothing_that_the_next_would_use(
    tmp_path: Path,
) -> None:
    store, agent = tmp_path / "images", native.path("nova-agent")
    command = [sys.executable, "-c", textwrap.dedent(BUILD), str(store), str(agent)]
    env = {**os.environ, "PYTHONPATH": str(Path(novasandbox.__file__).parents[1])}
    builder = await asyncio.create_subprocess_exec(
        *command, env=env, stdout=asyncio.subprocess.PIPE
    )
    assert builder.stdout
    async for line in builder.stdout:
        if line.startswith(b"unpacking packages 40 "):
            break
    builder.send_signal(signal.SIGKILL)
    await builder.wait()
    left = [path.name.partition("-")[0] for path in (store / "v1" / "tmp").iterdir()]
    assert "rootfs" in left
    artifacts = await TemplateManager(store=Store(store)).build("debian-python")
    assert list((store / "v1" / "tmp").iterdir()) == []
    check_filesystem(artifacts.rootfs)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "suite"), [("x86_64", "trixie"), ("aarch64", "bookworm")])
async def test_other_kernels_can_be_taken_and_have_what_a_guest_needs(
    tmp_path: Path, arch: str, suite: str
) -> None:
    store = Store(tmp_path)
    with Indices(None, None, tmp_path / "downloads", arch, quiet) as indices:
        files = await kernel.debian_kernel(store, indices.of(suite), arch=arch, suite=suite)
    agent = tmp_path / "agent"
    agent.write_bytes(b"")
    made = await initramfs.obtain(
        store, files, agent, transports=["pci", "mmio", "vsock"], optional=["virtio_rng"]
    )
    assert (made.path / initramfs.IMAGE).stat().st_size > 100_000


# --- what is in the root, seen from inside ---


async def test_the_tools_that_people_expect_are_there(sandbox: Sandbox) -> None:
    names = (
        "sh bash ls cat cp mv ps top kill find grep sed awk which less curl tar gzip bzip2 xz zstd "
        "zip unzip jq patch diff python python3 pip ip"
    )
    result = await sandbox.exec(
        f'for n in {names}; do command -v "$n" >/dev/null || echo "$n"; done'
    )
    assert result.stdout == ""


async def test_python_is_whole_and_its_library_compiled(sandbox: Sandbox) -> None:
    code = textwrap.dedent("""
        import bz2, ctypes, curses, lzma, multiprocessing, readline, sqlite3, ssl, venv, zlib
        import locale, os, sys, zoneinfo
        assert ssl.create_default_context().cert_store_stats()["x509_ca"] > 100
        assert zoneinfo.ZoneInfo("Europe/Berlin")
        assert locale.setlocale(locale.LC_ALL, "") == "C.UTF-8", locale.setlocale(locale.LC_ALL)
        assert multiprocessing.Pool(2).map(abs, [-1, 2]) == [1, 2]
        cached = {name: getattr(found, "__cached__", None) for name, found in sys.modules.items()}
        cached = {name: path for name, path in cached.items() if path and "/usr/lib" in path}
        print([name for name, path in cached.items() if not os.path.exists(path)])
    """)
    result = await sandbox.exec(["python3", "-c", code])
    assert (result.stdout, result.stderr) == ("[]\n", "")


async def test_the_user_owns_his_home_and_root_the_rest(sandbox: Sandbox) -> None:
    result = await sandbox.exec("id -un; stat -c '%U %a %n' ~ ~/.bashrc / /etc /tmp /usr/bin/su")
    assert result.stdout.splitlines() == [
        "user",
        *("user 755 /home/user", "user 644 /home/user/.bashrc", "root 755 /", "root 755 /etc"),
        *("root 1777 /tmp", "root 4755 /usr/bin/su"),
    ]


async def test_dpkg_finds_no_fault_with_what_is_installed(sandbox: Sandbox) -> None:
    result = await sandbox.exec("dpkg --audit && dpkg -l python3 | tail -1 && dpkg -S /usr/bin/jq")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("ii  python3")
    assert lines[1] == "jq: /usr/bin/jq"


async def test_the_loader_finds_libraries_through_its_cache(sandbox: Sandbox) -> None:
    result = await sandbox.exec("ldconfig -p | grep -c 'libssl.so.3\\|libz.so.1 '", user="root")
    assert result.stdout == "2\n"
    changed = await sandbox.exec("grep -q lazyinit /proc/[0-9]*/comm && echo it runs")
    assert changed.stdout == ""
