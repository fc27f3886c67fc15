"""`python -m novasandbox`, the same as `nova`."""

from __future__ import annotations

from novasandbox.cli import main

main()
