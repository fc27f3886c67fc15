"""Compile the native parts with zig: used by `make agent` and by the build hook.

    python native/build.py                 this machine's architecture, what is stale
    python native/build.py --arch all      both architectures
    python native/build.py --force         whatever the stamps say

Each binary is static and linked to musl, so it runs in any guest and on any Linux host. A stamp
beside it names the sources, flags and compiler it was made of; the same again compiles nothing.
Standard library only: it runs in pip's build isolation.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "src" / "novasandbox" / "_native"
ARCHES = ["x86_64", "aarch64"]
ZIG_VERSION = "0.17.1"
ZIG_REQUIREMENT = f"ziglang=={ZIG_VERSION}"
FLAGS = ["-std=c11", "-Os", "-static", "-s", "-Wall", "-Wextra", "-Werror"]
KEPT = 8


class BuildError(Exception):
    """Something could not be compiled; the message is what the compiler said."""


@dataclass(frozen=True)
class Component:
    """One binary, made of all the C files of one folder (not of the folders below it)."""

    name: str
    folder: Path

    def sources(self) -> list[Path]:
        """The files to compile, in an order that never changes."""
        return sorted(self.folder.glob("*.c"))

    def inputs(self) -> list[Path]:
        """All that the binary depends on."""
        return sorted([*self.folder.glob("*.c"), *self.folder.glob("*.h")])

    def binary(self, arch: str) -> Path:
        """Where the finished binary lies."""
        return OUTPUT / f"{self.name}-{arch}"

    def stamp(self, arch: str) -> Path:
        """Where the binary's key is kept."""
        return OUTPUT / f"{self.name}-{arch}.key"


COMPONENTS = [
    Component("nova-agent", ROOT / "native" / "agent"),
    Component("nova-jail", ROOT / "native" / "jail"),
]


def host_arch() -> str:
    """This machine's architecture, by the name that zig and the kernel use."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def key(component: Component, arch: str) -> str:
    """What the binary is made of: sources, flags, target and compiler, as one hash."""
    digest = hashlib.sha256(f"{ZIG_REQUIREMENT} {arch} {' '.join(FLAGS)}\n".encode())
    for path in component.inputs():
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def is_fresh(component: Component, arch: str) -> bool:
    """Whether the binary is there and made of what lies here now."""
    try:
        made_of = component.stamp(arch).read_text()
    except OSError:
        return False
    return component.binary(arch).is_file() and made_of.strip() == key(component, arch)


def stale(arches: Iterable[str]) -> list[tuple[Component, str]]:
    """The binaries that would have to be compiled."""
    return [(c, arch) for arch in arches for c in COMPONENTS if not is_fresh(c, arch)]


def build(
    arches: Iterable[str], *, force: bool = False, say: Callable[[str], object] = print
) -> list[Path]:
    """Compile what is stale, or with `force` everything, and return what was compiled."""
    arches = list(arches)
    unknown = [arch for arch in arches if arch not in ARCHES]
    if unknown:
        raise BuildError(f"no target {', '.join(unknown)}: choose from {', '.join(ARCHES)}")
    todo = [(c, arch) for arch in arches for c in COMPONENTS] if force else stale(arches)
    made = []
    for component, arch in todo:
        began = time.monotonic()
        made_of = key(component, arch)
        kept = kept_binary(component, arch, made_of)
        if force or not kept.is_file():
            with _replacing(kept) as fresh:
                compile_static(component, arch, fresh)
            _forget_old(kept.parent, component, arch)
        binary = component.binary(arch)
        with _replacing(binary) as fresh:
            shutil.copyfile(kept, fresh)
            fresh.chmod(0o755)
        component.stamp(arch).write_text(made_of + "\n")
        took = time.monotonic() - began
        say(f"{binary.name}: {binary.stat().st_size / 1024:.0f} KiB in {took:.1f} s")
        made.append(binary)
    return made


def needs_compiler(arches: Iterable[str]) -> bool:
    """Whether a build would have to compile, and not only copy what an earlier one kept."""
    return any(not kept_binary(c, arch, key(c, arch)).is_file() for c, arch in stale(arches))


def cache() -> Path:
    """Where zig keeps the libc it built, and this file the binaries it made."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "novasandbox"


def kept_binary(component: Component, arch: str, made_of: str) -> Path:
    """Where a finished binary is kept for the next clone or isolated build.

    Zig's own cache does not serve those: it holds only for one unpacked copy of the compiler, and
    building musl anew takes half a minute.
    """
    return cache() / "native" / f"{component.name}-{arch}-{made_of[:32]}"


def _forget_old(folder: Path, component: Component, arch: str) -> None:
    kept = folder.glob(f"{component.name}-{arch}-*")
    for old in sorted(kept, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name to write to that becomes `path` in one step.

    Another build may run beside this one, and a sandbox may be reading the old binary.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield fresh
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def compile_static(component: Component, arch: str, output: Path) -> None:
    """Compile one component for one architecture."""
    sources = component.sources()
    if not sources:
        raise BuildError(f"{component.folder} holds no C file")
    zig(["cc", "-target", f"{arch}-linux-musl", *FLAGS, "-o", output, *sources])


def zig(arguments: Iterable[str | Path]) -> None:
    """Run the compiler of this Python's `ziglang`, its cache kept between builds."""
    command = [sys.executable, "-m", "ziglang", *map(str, arguments)]
    done = subprocess.run(
        command, env=_compiler_environment(), capture_output=True, text=True, check=False
    )
    if "No module named ziglang" in done.stderr:
        raise BuildError(f"the compiler is missing: pip install {ZIG_REQUIREMENT}")
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}".rstrip())


def _compiler_environment() -> dict[str, str]:
    """Zig builds its libc once for each target (half a minute); that is kept for the user."""
    kept = os.environ.get("ZIG_GLOBAL_CACHE_DIR") or str(cache() / "zig")
    return {**os.environ, "ZIG_GLOBAL_CACHE_DIR": kept, "ZIG_LOCAL_CACHE_DIR": kept}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compile the guest agent and the jail.")
    parser.add_argument("--arch", choices=["host", "all", *ARCHES], default="host")
    parser.add_argument("--force", action="store_true", help="compile whatever the stamps say")
    options = parser.parse_args()
    arches = {"host": [host_arch()], "all": ARCHES}.get(options.arch, [options.arch])
    try:
        if not build(arches, force=options.force):
            print("nothing to compile")
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
