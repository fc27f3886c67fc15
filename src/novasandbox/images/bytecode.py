"""Compiling a tree's Python library, so that Python starts quickly in the guest."""

from __future__ import annotations

import os
import platform
import re
import sys
from typing import TYPE_CHECKING

from novasandbox.images.work import run

if TYPE_CHECKING:
    from novasandbox.images.unpack import Tree

_LOADERS = {"x86_64": "lib64/ld-linux-x86-64.so.2", "aarch64": "lib/ld-linux-aarch64.so.1"}
_VERSION = re.compile(r"python3\.\d+")
_WORKERS = 4


async def compile_library(tree: Tree, arch: str) -> str | None:
    """Compile the standard library and what is installed beside it.

    The tree's own interpreter does it where this machine can run it, else one of the same
    version. That neither can is no error: the guest then compiles in memory, and is slower.

    Gives a sentence where it was not done.
    """
    libraries = [path for path in sorted(tree.folder("usr/lib").glob("python3*")) if path.is_dir()]
    versions = [path.name for path in libraries if _VERSION.fullmatch(path.name)]
    if not versions:
        return None
    version = versions[-1]
    command, environment = await _interpreter(tree, arch, version)
    if not command:
        return f"{version} for {arch} does not run here: its library stays uncompiled"
    workers = str(min(os.cpu_count() or 1, _WORKERS))
    # The paths inside are the guest's; sitecustomize is a link to a path of this machine's.
    arguments = ["-q", "-j", workers, "-s", str(tree.root), "-p", "/"]
    arguments += ["--invalidation-mode", "timestamp", "-x", r"/sitecustomize\.py$"]
    ended = await run([*command, "-m", "compileall", *arguments, *map(str, libraries)], environment)
    if ended.status:
        return f"not all of {version} could be compiled: {ended.output.strip()[-300:]}"
    return None


async def _interpreter(tree: Tree, arch: str, version: str) -> tuple[list[str], dict[str, str]]:
    """A command that runs Python of that version, and its environment; empty where none can."""
    machine = platform.machine().lower().replace("arm64", "aarch64").replace("amd64", "x86_64")
    if sys.platform == "linux" and machine == arch:
        libraries = ":".join(str(tree.root / f"usr/lib{sub}") for sub in ("", f"/{arch}-linux-gnu"))
        loader = str(tree.root / _LOADERS[arch])
        command = [loader, "--library-path", libraries, str(tree.path(f"usr/bin/{version}"))]
        environment = {"PYTHONHOME": str(tree.root / "usr"), "LC_ALL": "C.UTF-8"}
        try:
            tried = await run([*command, "-c", "import zlib"], environment, timeout=60)
        except (OSError, TimeoutError):
            tried = None
        if tried and tried.status == 0:
            return command, environment
    if version == f"python{sys.version_info.major}.{sys.version_info.minor}":
        return [sys.executable, "-I"], {"LC_ALL": "C.UTF-8"}
    return [], {}
