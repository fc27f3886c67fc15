"""Why a sandbox is at rest by itself."""

from __future__ import annotations

IDLE, TIMEOUT = "idle", "timeout"


class NotDue(Exception):
    """A sandbox that was to be put to rest is in use again."""
