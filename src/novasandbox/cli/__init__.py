"""The command line, `nova`: thin, over the same calls that a program makes."""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """Run `nova` with the arguments of this process, and exit."""
    import sys

    from novasandbox.cli.app import run

    sys.exit(run(sys.argv[1:]))
