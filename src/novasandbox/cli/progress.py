"""How far a long build is: a bar on a terminal, plain lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from novasandbox.cli.output import escaped, human_size

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from novasandbox.core.template_manager import Artifacts
    from novasandbox.images.progress import Progress

_SIGN_OF_LIFE = 10.0
# The unit is the step's own; what counts this high counts bytes.
_BYTES = 100_000


async def build(
    template: str | None, *, kernel: str | None = None, quiet: bool, force: bool = False
) -> Artifacts:
    """Build a template, or take what is there, and show what happens.

    Raises what `TemplateManager.build` raises.
    """
    from novasandbox.core.hypervisor import DEFAULT_TEMPLATE
    from novasandbox.core.template_manager import TemplateManager

    with shown(quiet=quiet) as progress:
        manager = TemplateManager(kernel=Path(kernel) if kernel else None)
        return await manager.build(template or DEFAULT_TEMPLATE, force=force, progress=progress)


@contextlib.contextmanager
def shown(*, quiet: bool) -> Iterator[Progress | None]:
    """A `Progress` for the block. Nothing is drawn before there is news."""
    if quiet:
        yield None
        return
    drawn: _Lines | _Drawn = _Drawn() if os.isatty(2) else _Lines()
    try:
        yield drawn
    finally:
        drawn.close()


class _Lines:
    """A line when a step begins and ends, and a sign of life between."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: dict[str, tuple[float, float]] = {}
        self._done: set[str] = set()

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """Take the news, from any thread."""
        now = time.monotonic()
        with self._lock:
            began, told = self._steps.get(step, (now, 0.0))
            if total is not None and done >= total:
                self._steps.pop(step, None)
                if step not in self._done:  # the end may be told twice
                    self._done.add(step)
                    _say(f"{step}: {now - began:.1f} s")
            elif not told:
                self._steps[step] = (began, now)
                self._done.discard(step)
                _say(f"{step} …" if total is None else f"{step} ({_amount(total)}) …")
            elif now - told > _SIGN_OF_LIFE:
                self._steps[step] = (began, now)
                _say(f"{step}: {_share(done, total)}")

    def close(self) -> None:
        """Nothing is left to give back."""


class _Drawn:
    """Bars, drawn by rich, gone when the build is done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """Take the news, from any thread."""
        with self._lock:
            if self._bars is None:
                self._bars = _start_bars()
            if step not in self._tasks:
                self._tasks[step] = self._bars.add_task(escaped(step), total=None, amount="")
            self._bars.update(
                self._tasks[step], completed=done, total=total, amount=_share(done, total)
            )

    def close(self) -> None:
        """Give the terminal back."""
        if self._bars is not None:
            self._bars.stop()


def _start_bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
    )
    bars = Bars(*columns, console=Console(stderr=True), transient=True)
    bars.start()
    return bars


def _share(done: int, total: int | None) -> str:
    if not total:
        return _amount(done) if done else ""
    return f"{100 * min(done, total) // total} % of {_amount(total)}"


def _amount(number: int) -> str:
    return human_size(number) if number >= _BYTES else str(number)


def _say(text: str) -> None:
    print(escaped(text), file=sys.stderr, flush=True)
