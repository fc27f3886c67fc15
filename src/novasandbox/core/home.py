"""Where state and cache live: `NOVA_HOME`, else the platform's data directory."""

from __future__ import annotations

import functools
import os
from pathlib import Path


def home() -> Path:
    """The data directory, made with mode 0700 where it is missing."""
    named = os.environ.get("NOVA_HOME")
    if named:
        path = _absolute(named)
    else:
        from platformdirs import user_data_path

        path = user_data_path("novasandbox")
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


@functools.cache
def _absolute(named: str) -> Path:
    """Where a name leads, from the folder that was the current one at its first use."""
    return Path(named).expanduser().absolute()


def run_dir() -> Path:
    """The folder with one directory for each sandbox."""
    path = home() / "run"
    path.mkdir(mode=0o700, exist_ok=True)
    return path
