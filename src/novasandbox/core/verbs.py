"""The verbs of a holder, by name: what other processes ask of it, and its own handle too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, TypeVar

from novasandbox.core import copying, creation, sleeping
from novasandbox.core.holder import Holder
from novasandbox.core.hypervisor import SandboxState
from novasandbox.errors import IllegalTransition, InvalidRequest

T = TypeVar("T")


async def perform(holder: Holder, name: str, arguments: dict[str, Any]) -> Any:
    """Do one of the holder's own verbs. Raises InvalidRequest for an unknown one.

    One that sleeps by itself is woken for it, unless it shall sleep or end.
    """
    if name == "kill":
        return await holder.kill()
    if name == "hibernate" and holder.record.rests and holder.state is SandboxState.HIBERNATED:
        return await holder.slumber.for_good()
    if name == "hibernate":
        return await sleeping.hibernate(holder)
    return await awake(holder, lambda: _do(holder, name, arguments))


async def awake(holder: Holder, work: Callable[[], Awaitable[T]]) -> T:
    """Do something with a sandbox that is woken for it, and that is not idle meanwhile."""
    assert holder.channel is not None
    while True:
        holder.channel.uses += 1
        try:
            await holder.slumber.end()
            return await work()
        except IllegalTransition as error:
            # Its time was over just then. Nothing was done yet.
            if error.current is not SandboxState.HIBERNATED:
                raise
        finally:
            holder.channel.uses += 1


async def _do(holder: Holder, name: str, arguments: dict[str, Any]) -> Any:
    match name:
        case "set_timeout":
            return await holder.lifetime.set(arguments["seconds"])
        case "pause":
            return await holder.pause()
        case "resume":
            return await holder.resume()
        case "wake":
            return None
        case "rollback":
            return await creation.rollback(holder, str(arguments["snapshot"]))
        case "snapshot":
            return asdict(await copying.snapshot(holder, arguments["name"]))
        case "fork":
            return [child.id for child in await creation.fork(holder, int(arguments["count"]))]
        case "metrics":
            return await holder.machine_metrics()
        case "expose":
            return await holder.doors.expose(int(arguments["port"]), int(arguments["host_port"]))
        case "unexpose":
            return await holder.doors.unexpose(int(arguments["port"]))
    raise InvalidRequest(f"the holder knows no verb {name!r}")
