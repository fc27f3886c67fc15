"""The measure of a newcomer's first minutes: a fresh clone, `make run`, the first result."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

from bench.result import Result, Target

_ROOT = Path(__file__).resolve().parents[2]
_SUMMARY = re.compile(r"downloads ([\d.]+) s, the rest ([\d.]+) s")


def fresh_clone(n: int) -> list[Result]:
    """`make run` in a clone with nothing kept from before, split into downloads and the rest."""
    downloads, rest, whole = [], [], []
    for _ in range(n):
        took, fetching, other = _once()
        whole.append(took)
        downloads.append(fetching)
        rest.append(other)
    return [
        Result("fresh-clone", "s", whole),
        Result("fresh-clone-downloads", "s", downloads),
        Result("fresh-clone-rest", "s", rest, target=Target("p50", "<=", 90)),
    ]


def _once() -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory(prefix="nova-clone-") as name:
        folder = Path(name)
        clone = folder / "clone"
        subprocess.run(["git", "clone", "--quiet", _ROOT, clone], check=True)
        # Nothing that this user has built or fetched before: templates, zig's libc, binaries.
        fresh = {"NOVA_HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "cache")}
        start = time.monotonic()
        done = subprocess.run(
            ["make", "run"], cwd=clone, env={**os.environ, **fresh}, capture_output=True, text=True
        )
        took = time.monotonic() - start
    found = _SUMMARY.search(done.stdout)
    if done.returncode != 0 or found is None:
        raise RuntimeError(f"make run failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return took, float(found[1]), float(found[2])
