"""Trees of files on the host: removing them whatever their modes, and counting their bytes."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def remove_tree(path: Path) -> None:
    """Remove a folder and all below it, also where a folder in it may not be written to."""
    for folder, names, _ in os.walk(path):
        for name in names:
            child = os.path.join(folder, name)
            if not os.path.islink(child) and not os.access(child, os.R_OK | os.W_OK | os.X_OK):
                os.chmod(child, 0o700)
    shutil.rmtree(path, ignore_errors=True)


def tree_size(path: Path) -> int:
    """The bytes that a folder's files take on the disk."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
