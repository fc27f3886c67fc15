"""Measures of many sandboxes: one after the other, all at once, and idle beside each other."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench import usage
from bench.bare import template
from bench.copies import by_us, config, idle_copy, sandbox_of
from bench.floor import Floor, milliseconds
from bench.result import Result, Target
from novasandbox import Sandbox

_MIB = 1 << 20
# Until caches, threads and modules are what they will be.
_FIRST = 20
_COUNTS: dict[str, Callable[[], int]] = {
    "processes": usage.children,
    "descriptors": usage.descriptors,
    "files": usage.files,
}
_RESIDENT_MIB = 1.0
"""What a heap may move by and still be called the same."""
_IDLE_FOR = 10.0
# After its first answer a guest has things to put away.
_SETTLE = 5.0


async def row(n: int) -> list[Result]:
    """Sandboxes made, asked and killed one after the other; and what there is more of after it."""
    took = []
    for _ in range(_FIRST):
        await by_us()
    before, resident = _counts(), _resident()
    for _ in range(n):
        start = time.perf_counter()
        await by_us()
        took.append(milliseconds(start))
    more = {name: count - before[name] for name, count in _counts().items()}
    return [
        Result("row", "ms", took),
        *(
            Result(f"row-{name}", "more", [number], target=Target("p50", "<=", 0))
            for name, number in more.items()
        ),
        Result(
            "row-memory",
            "MiB more",
            [(_resident() - resident) / _MIB],
            target=Target("p50", "<=", _RESIDENT_MIB),
        ),
    ]


def _counts() -> dict[str, int]:
    return {name: count() for name, count in _COUNTS.items()}


def _resident() -> int:
    gc.collect()
    return usage.resident()


@dataclass(frozen=True)
class _Idle:
    """What each of many idle machines takes: MiB before and after its first cell, % of a CPU."""

    fresh: float
    used: float
    cpu: float


async def alive(floor: Floor, n: int) -> list[Result]:
    """`n` sandboxes alive at once: each answers; memory and CPU of each when all are idle.

    CPU: of its QEMU, its supervisor and its part of this process, against that of a bare clone.
    Memory: of its QEMU and supervisor, and what this process grew by for it.
    """
    bare = await _bare(floor, n)
    async with contextlib.AsyncExitStack() as stack:
        resident = _resident()
        sandboxes = [await stack.enter_async_context(sandbox_of()) for _ in range(n)]
        pids = usage.processes_of_ours()

        def memory() -> float:
            return (usage.memory(pids) + max(0, _resident() - resident)) / n / _MIB

        await asyncio.sleep(_SETTLE)
        fresh = memory()
        before, own = usage.cpu_seconds(pids), time.process_time()
        await asyncio.sleep(_IDLE_FOR)
        idle = usage.cpu_seconds(pids) - before + time.process_time() - own
        await asyncio.gather(*(_answers(each, number) for number, each in enumerate(sandboxes)))
        await asyncio.sleep(_SETTLE)
        used = memory()
        answered = []
        for number, each in enumerate(sandboxes):
            start = time.perf_counter()
            await _answers(each, number)
            answered.append(milliseconds(start))
    return [
        Result("alive-answer", "ms", answered),
        Result("alive-memory", "MiB", [fresh], [bare.fresh], Target("p50", "<=", 24)),
        Result("alive-memory-used", "MiB", [used], [bare.used]),
        Result("alive-cpu", "%", [_percent(idle / n)], [bare.cpu], Target("ratio", "<=", 1.1)),
    ]


async def _answers(sandbox: Sandbox, number: int) -> None:
    assert (await sandbox.run_code(f"{number} * 2")).text == str(number * 2)


async def _bare(floor: Floor, n: int) -> _Idle:
    """What each of `n` bare clones takes while all are idle."""
    async with template(floor, config()) as saved:
        with contextlib.ExitStack() as stack:
            machines = [stack.enter_context(idle_copy(floor, saved)) for _ in range(n)]
            pids = [machine.child.pid for machine in machines]
            await asyncio.sleep(_SETTLE)
            fresh, before = usage.memory(pids), usage.cpu_seconds(pids)
            await asyncio.sleep(_IDLE_FOR)
            idle = usage.cpu_seconds(pids) - before
            for machine in machines:
                assert b"42" in machine.port.cell("6*7")
            await asyncio.sleep(_SETTLE)
            used = usage.memory(pids)
    return _Idle(fresh / n / _MIB, used / n / _MIB, _percent(idle / n))


def _percent(seconds: float) -> float:
    return 100 * seconds / _IDLE_FOR


async def at_once(n: int, count: int = 20) -> list[Result]:
    """So many made at once: the slowest's first result, against that of one made alone."""
    alone, slowest = [], []
    for _ in range(n):
        alone.append(await by_us())
        slowest.append(max(await asyncio.gather(*(by_us() for _ in range(count)))))
    return [Result(f"at-once-{count}", "ms", slowest, alone, Target("ratio", "<=", count))]
