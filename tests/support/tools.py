"""Programs of Linux's that tests compare with; a missing one fails the test, and is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="compares with a program of Linux's")


def tool(name: str, package: str) -> str:
    """The path of a program. Fails the test with the command that installs it."""
    # On Debian an ordinary user's PATH lacks the folders with ldconfig and debugfs.
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        pytest.fail(f"{name} is missing: apt-get install {package}")
    return found


def check_filesystem(image: Path) -> None:
    """Raises CalledProcessError where e2fsck finds a fault."""
    e2fsck = tool("e2fsck", "e2fsprogs")
    subprocess.run([e2fsck, "-fn", str(image)], check=True, capture_output=True)


def debugfs(image: Path, command: str) -> str:
    """What a command of debugfs prints about an image."""
    words = [tool("debugfs", "e2fsprogs"), "-R", command, str(image)]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
