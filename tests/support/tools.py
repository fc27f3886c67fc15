"""Programs of Linux's that tests compare with; a missing one fails the test, and is named."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="compares with a program of Linux's")


def tool(name: str, package: str) -> str:
    """The path of a program. Fails the test with the command that installs it."""
    # On Debian an ordinary user's PATH lacks the folders with ldconfig and debugfs.
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        pytest.fail(f"{name} is missing: apt-get install {package}")
    return found
