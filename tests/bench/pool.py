"""A sandbox taken from a pool, to the result of its first cell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench.bare import Saved, restored, template
from bench.copies import config
from bench.floor import DISK_MIB, MEMORY_MIB, VCPUS, Floor, milliseconds
from bench.result import Result, Target
from novasandbox import Pool
from novasandbox.core import sockets
from novasandbox.core.member import warm_interpreter
from novasandbox.guest.channel import Channel
from novasandbox.guest.client import Guest
from novasandbox.guest.contexts import Contexts
from novasandbox.guest.files import Files
from novasandbox.guest.processes import Processes
from novasandbox.guest.python import Interpreter

_WARM_UP = 2
# Seconds until the machine that was made last is at rest: it is taken by somebody who comes later.
_REST = 0.3


async def taken(floor: Floor, n: int) -> list[Result]:
    """Acquire to the first cell's result, against a bare QEMU that is warm and asked by hand."""
    figures, floors = [], []
    async with (
        Pool(size=1, vcpus=VCPUS, memory_mib=MEMORY_MIB, disk_mib=DISK_MIB) as pool,
        template(floor, config()) as saved,
    ):
        for turn in range(_WARM_UP + n):
            bare_one, ours = await _bare_taken(floor, saved, pool), await _our_taken(pool)
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


async def _bare_taken(floor: Floor, saved: Saved, pool: Pool) -> float:
    """The same two round trips: an identity of its own, and a cell."""
    async with _bare(floor, saved) as (guest, contexts):
        await guest.configure(hostname="floor")
        await warm_interpreter(contexts)
        await pool.ready()
        await asyncio.sleep(_REST)
        start = time.perf_counter()
        await guest.configure(hostname="taken")
        assert (await contexts.run("6*7")).text == "42"
        return milliseconds(start)


@contextlib.asynccontextmanager
async def _bare(floor: Floor, saved: Saved) -> AsyncIterator[tuple[Guest, Contexts]]:
    """A bare machine that is spoken to as by us, since it is to be warmed like ours."""
    with (
        tempfile.TemporaryDirectory(dir=floor.beside) as name,
        restored(floor, saved, Path(name)) as machine,
    ):
        channel = Channel(
            lambda protocol: sockets.dial(machine.agent, protocol),
            holder=os.urandom(16),
            takeover=True,
        )
        try:
            await channel.open(30)
            processes, files = Processes(channel, ""), Files(channel, "")
            interpreter = Interpreter(channel, processes, files, "")
            yield Guest(channel, ""), Contexts(channel, interpreter, "")
        finally:
            await channel.close()
