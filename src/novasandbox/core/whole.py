"""Steps that a cancelled caller must not cut in two."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """Do all of `work`, also where the caller is cancelled meanwhile: he is told afterwards.

    For what ends by itself, soon: each of its steps has a deadline.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # The cancellation is what the caller hears of.
        raise
