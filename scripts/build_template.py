"""Build a template, and tell each step in lines that setup.py reads.

    build_template.py NAME

It runs in the virtual environment. A line is `STEP<tab>DONE<tab>TOTAL`, or at the end
`downloads<tab>SECONDS`: how long something was being fetched.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time

from novasandbox import TemplateManager
from novasandbox.core import template_snapshot
from novasandbox.errors import NovaError, ProviderUnavailable

INTERVAL = 0.1


class Report:
    """A progress that prints, and measures how long anything was being fetched."""

    def __init__(self) -> None:
        self.fetched = 0.0
        self._since = 0.0
        self._open: set[str] = set()
        self._told: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """Take the news; the builder may call from any of its threads."""
        with self._lock:
            now = time.monotonic()
            ended = done == total
            if step.startswith("fetching"):
                self._count(step, ended, now)
            if ended or now - self._told.get(step, 0.0) > INTERVAL:
                self._told[step] = now
                print(step, done, "" if total is None else total, sep="\t", flush=True)

    def _count(self, step: str, ended: bool, now: float) -> None:
        if not self._open:
            self._since = now
        if ended:
            self._open.discard(step)
        else:
            self._open.add(step)
        if not self._open:
            self.fetched += now - self._since


async def build(name: str, report: Report) -> None:
    """Build it, and boot and warm the guest that its sandboxes are copies of."""
    await TemplateManager().build(name, progress=report)
    # A host without a hypervisor says so when a sandbox is made.
    with contextlib.suppress(ProviderUnavailable):
        await template_snapshot.make_ready(name, report)


def main() -> int:
    """The command line."""
    report = Report()
    try:
        asyncio.run(build(sys.argv[1], report))
    except NovaError as error:
        print(error)
        return 1
    print("downloads", f"{report.fetched:.3f}", sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main())
