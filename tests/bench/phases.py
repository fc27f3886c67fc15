"""Where time goes inside: timers around the steps of a copy, a fork, a sleep and a waking.

Steps overlap and hold each other, so they do not add up. Named by where they are in the
library: one that is renamed there is renamed here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from bench.copies import WARM_UP, by_us, sandbox_of
from bench.floor import milliseconds
from bench.result import Result

Times = dict[str, list[float]]

STEPS = {
    "prepare": "novasandbox.core.creation:prepare",
    "template": "novasandbox.core.template_snapshot:obtain",
    "record": "novasandbox.core.registry:save",
    "jail": "novasandbox.providers.qemu:launch",
    "agent": "novasandbox.guest.channel:Channel.open",
    "configure": "novasandbox.guest.client:Guest.configure",
    "renew": "novasandbox.guest.client:Guest.renew",
    "cell": "novasandbox.guest.contexts:Contexts.run",
    "stop": "novasandbox.providers.qemu:QemuMachine.pause",
    "devices": "novasandbox.providers.qemu_state:devices",
    "pages": "novasandbox.providers.qemu_state:write",
    "layer": "novasandbox.providers.qemu_disk:lay_on",
    "freeze": "novasandbox.core.copying:_freeze",
    "take": "novasandbox.core.copying:take",
    "seal": "novasandbox.core.sleeping:_lie_down",
    "end": "novasandbox.providers.qemu:QemuMachine.kill",
    "check": "novasandbox.core.sleeping:_check",
}


async def copy(n: int) -> list[Result]:
    """Of create to the first result."""
    times: Times = defaultdict(list)
    for turn in range(WARM_UP + n):
        with _timed(times if turn >= WARM_UP else {}):
            await by_us()
    times.pop("end", None)
    return _results("phases-copy", times)


async def fork(n: int) -> list[Result]:
    """Of a fork to the child's first result."""
    times: Times = defaultdict(list)
    async with sandbox_of() as sandbox:
        await sandbox.run_code("x = 42")
        for turn in range(WARM_UP + n):
            with _timed(times if turn >= WARM_UP else {}):
                (child,) = await sandbox.fork()
                await child.run_code("x")
            await child.kill()
    return _results("phases-fork", times)


async def sleep(n: int) -> list[Result]:
    """Of falling asleep, and of waking to the first result."""
    asleep: Times = defaultdict(list)
    awake: Times = defaultdict(list)
    async with sandbox_of() as sandbox:
        await sandbox.run_code("x = 42")
        for turn in range(WARM_UP + n):
            with _timed(asleep if turn >= WARM_UP else {}):
                await sandbox.hibernate()
            with _timed(awake if turn >= WARM_UP else {}):
                await sandbox.run_code("x")
    # The cell that wakes it is all of it.
    awake["all"] = awake.pop("cell")
    return _results("phases-hibernate", asleep) + _results("phases-wake", awake)


def _results(name: str, times: Times) -> list[Result]:
    return [Result(f"{name}-{step}", "ms", samples) for step, samples in times.items()]


def find(place: str) -> tuple[Any, str]:
    """The module or class in which a step is, and the step's name there."""
    module, _, path = place.partition(":")
    *classes, name = path.split(".")
    return functools.reduce(getattr, classes, importlib.import_module(module)), name


@contextlib.contextmanager
def _timed(times: Times) -> Iterator[None]:
    """In this block each step's milliseconds are noted, those of several calls together."""
    took: dict[str, float] = defaultdict(float)
    with contextlib.ExitStack() as stack:
        for step, place in STEPS.items():
            stack.enter_context(_wrapped(place, step, took))
        yield
    for step, milliseconds_ in took.items():
        times.setdefault(step, []).append(milliseconds_)


@contextlib.contextmanager
def _wrapped(place: str, step: str, took: dict[str, float]) -> Iterator[None]:
    owner, name = find(place)
    function = getattr(owner, name)
    setattr(owner, name, _timer(function, step, took))
    try:
        yield
    finally:
        setattr(owner, name, function)


def _timer(function: Callable[..., Any], step: str, took: dict[str, float]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def waited_for(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return await function(*arguments, **named)
        finally:
            took[step] += milliseconds(start)

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            took[step] += milliseconds(start)

    return waited_for if inspect.iscoroutinefunction(function) else called
