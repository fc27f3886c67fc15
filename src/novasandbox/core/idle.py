"""Noticing that nobody uses a sandbox: no call, no stream, no process that computes.

What its processes do is read off the hypervisor's own CPU time. The guest is not asked: that
would wake it, and a hostile one would answer what it likes. It can keep itself awake by
computing, until its time-to-live is over.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from novasandbox.core.hypervisor import SandboxState
from novasandbox.errors import NovaError
from novasandbox.guest.channel import Channel

if TYPE_CHECKING:
    from novasandbox.core.holder import Holder

IDLE, TIMEOUT = "idle", "timeout"
"""Why a sandbox is at rest by itself."""
_LOOKS = 4
_SHORTEST_LOOK = 0.05
# Of one host CPU. A guest in which all wait takes 1 % with emulation, less with KVM; a shell
# that sleeps a second time and again 3 %.
_BUSY = 0.05
# The kernel counts CPU time in ticks: this much may be an earlier look's.
_TICKS = 0.02


class NotDue(Exception):
    """A sandbox that was to be put to rest is in use again."""


async def watch(holder: Holder) -> None:
    """Put a sandbox to rest, or end it, once it was idle for its `idle_timeout`; for ever."""
    loop, channel = asyncio.get_running_loop(), holder.channel
    assert channel is not None
    patience = float(holder.record.config["idle_timeout"])
    wish = str(holder.record.config["on_idle"])
    look = max(patience / _LOOKS, _SHORTEST_LOOK)
    uses = since = -1.0
    try:
        machine = holder.require_machine()
        spent, at = await machine.cpu_seconds(), loop.time()
        while True:
            await asyncio.sleep(look)
            before, then = spent, at
            spent, at = await machine.cpu_seconds(), loop.time()
            computes = spent - before > _BUSY * (at - then) + _TICKS
            runs = holder.state is SandboxState.RUNNING
            if computes or channel.busy or channel.uses != uses or not runs:
                uses, since = channel.uses, at
            elif at - since >= patience:
                await _lapse(holder, channel, wish, patience)
                since = at
    except NovaError:
        return  # It has ended.


async def _lapse(holder: Holder, channel: Channel, wish: str, patience: float) -> None:
    if wish == "kill":
        holder.lifetime.end(f"nobody used it for {patience:g} s")
        return
    uses = channel.uses

    def is_due() -> bool:
        return channel.uses == uses and not channel.busy

    await holder.lifetime.rest(wish, IDLE, is_due)
