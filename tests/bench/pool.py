"""A sandbox taken from a pool, to the result of its first cell."""

from __future__ import annotations

import asyncio
import time

from bench.copies import CONFIG, bare
from bench.floor import DISK_MIB, MEMORY_MIB, VCPUS, Floor, milliseconds
from bench.result import Result, Target
from novasandbox import Pool
from novasandbox.core import provider_choice, template_snapshot
from novasandbox.core.member import warm_interpreter
from novasandbox.core.preparation import prepare
from novasandbox.core.template_snapshot import Origin

_WARM_UP = 2
# Seconds until the machine that was made last is at rest: it is taken by somebody who comes later.
_REST = 0.3


async def taken(floor: Floor, n: int) -> list[Result]:
    """Acquire to the first cell's result, against a bare QEMU that is warm and asked by hand."""
    provider, _ = await provider_choice.choose("auto")
    figures, floors = [], []
    async with Pool(size=1, vcpus=VCPUS, memory_mib=MEMORY_MIB, disk_mib=DISK_MIB) as pool:
        with await prepare(CONFIG) as prepared:
            origin = await template_snapshot.obtain(provider, prepared, CONFIG)
            assert origin is not None
            for turn in range(_WARM_UP + n):
                bare_one, ours = await _bare_taken(floor, origin, pool), await _our_taken(pool)
                if turn >= _WARM_UP:
                    floors.append(bare_one)
                    figures.append(ours)
    return [Result("pool", "ms", figures, floors, Target("p50", "<=", 4))]


async def _our_taken(pool: Pool) -> float:
    await pool.ready()
    await asyncio.sleep(_REST)
    start = time.perf_counter()
    async with await pool.acquire() as sandbox:
        assert (await sandbox.run_code("6*7")).text == "42"
        return milliseconds(start)


async def _bare_taken(floor: Floor, origin: Origin, pool: Pool) -> float:
    """The same two round trips: an identity of its own, and a cell."""
    async with bare(floor, origin) as (guest, contexts):
        await guest.configure(hostname="floor")
        await warm_interpreter(contexts)
        await pool.ready()
        await asyncio.sleep(_REST)
        start = time.perf_counter()
        await guest.configure(hostname="taken")
        assert (await contexts.run("6*7")).text == "42"
        return milliseconds(start)
