"""Waiting for what shall come true, instead of for a time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

import psutil


async def until(
    holds: Callable[[], object] | Callable[[], Awaitable[object]], within: float = 30.0
) -> None:
    """Wait until `holds` gives something true; fails the test when it takes too long."""
    try:
        async with asyncio.timeout(within):
            while True:
                answer = holds()
                if inspect.isawaitable(answer):
                    answer = await answer
                if answer:
                    return
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise AssertionError(f"it did not come true within {within:g} s") from error


def is_gone(pid: int) -> bool:
    """Whether no process has this id, a zombie aside."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
