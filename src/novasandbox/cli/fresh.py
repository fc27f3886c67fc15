"""A fresh sandbox for one command: its template built in sight, then made."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

from novasandbox.cli.output import note
from novasandbox.cli.progress import build, shown
from novasandbox.core.hypervisor import DEFAULT_TIMEOUT, SandboxConfig
from novasandbox.core.sandbox import Sandbox

# A copy is made in a fraction of it; what takes longer waits for its template's snapshot.
_LONG = 1.0


async def make(settings: Mapping[str, Any], *, quiet: bool, pool: bool = False) -> Sandbox:
    """A sandbox; a template that has to be built first is seen being built.

    pool: it is taken from one where that has any.
    """
    create = Sandbox.create(**settings)  # checked before anything is built
    if pool:
        from novasandbox.core import standing

        taken = await standing.take(SandboxConfig(**settings))
        if taken is not None:
            return taken
    if settings.get("snapshot") is None:
        await build(settings.get("template"), kernel=settings.get("kernel"), quiet=quiet)
    with shown(quiet=quiet or not os.isatty(2)) as progress:
        if progress is None:
            return await create
        step = "making the sandbox; the first of its template and sizes takes longer"
        told = asyncio.get_running_loop().call_later(_LONG, progress, step, 0, None)
        try:
            return await create
        finally:
            told.cancel()


@contextlib.asynccontextmanager
async def fresh(
    settings: Mapping[str, Any], *, detach: bool, quiet: bool, pool: bool = False
) -> AsyncIterator[Sandbox]:
    """A sandbox that is gone after the block; with `detach` it stays for another while.

    One that stays has its time-to-live renewed as long as we are here, so that it goes when
    we are killed.
    """
    lifetime = DEFAULT_TIMEOUT if detach else None
    settings = {**settings, "timeout": lifetime, "detach": detach}
    sandbox = await make(settings, quiet=quiet, pool=pool)
    async with sandbox:
        if not detach:
            yield sandbox
            return
        renewing = asyncio.create_task(_renew(sandbox))
        try:
            yield sandbox
        finally:
            renewing.cancel()
            await asyncio.wait((renewing,))
        await sandbox.set_timeout(DEFAULT_TIMEOUT)
        note(sandbox.id if quiet else f"nova: sandbox {sandbox.id} stays for 5 minutes")


async def _renew(sandbox: Sandbox) -> None:
    while True:
        await asyncio.sleep(DEFAULT_TIMEOUT / 3)
        await sandbox.set_timeout(DEFAULT_TIMEOUT)
