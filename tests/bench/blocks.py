"""How much code a copy runs until its first result, as blocks that QEMU translates.

QEMU keeps no translation across a restore, and each block costs some 8 microseconds and 550
bytes: that is most of a first cell. Unlike milliseconds their number does not depend on what
else the host does.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from bench.bare import Bare, restored, template
from bench.copies import config
from bench.floor import Floor
from bench.result import Result

_COUNT = re.compile(r"TB count\s+(\d+)")
# In this order: each finds translated what those before it needed too.
_STEPS = ("attach", "configure", "first-cell", "second-cell")


async def blocks(floor: Floor, n: int) -> list[Result]:
    """Blocks of each step, in a bare copy. Nothing where nothing is translated."""
    if floor.hardware.accelerator != "tcg":
        return []
    counts: dict[str, list[float]] = {step: [] for step in _STEPS}
    async with template(floor, config()) as saved:
        for _ in range(n):
            with (
                tempfile.TemporaryDirectory(dir=floor.beside) as name,
                restored(floor, saved, Path(name)) as machine,
            ):
                known = _translated(machine)
                for step in _STEPS:
                    _take(machine, step)
                    now = _translated(machine)
                    counts[step].append(now - known)
                    known = now
    return [Result(f"blocks-{step}", "blocks", samples) for step, samples in counts.items()]


def _take(machine: Bare, step: str) -> None:
    if step == "attach":
        machine.port.attach()
    elif step == "configure":
        machine.port.configure()
    else:
        machine.port.cell("6*7")


def _translated(machine: Bare) -> int:
    told = machine.monitor.execute("human-monitor-command", **{"command-line": "info jit"})
    found = _COUNT.search(told)
    assert found is not None, told
    return int(found[1])
