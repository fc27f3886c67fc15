"""A sandbox that is there already; one that sleeps is woken."""

from __future__ import annotations

import asyncio

from novasandbox.core import registry
from novasandbox.core.hypervisor import SandboxState
from novasandbox.core.keeper import wake_detached
from novasandbox.core.sandbox import Sandbox


async def connect(box: str) -> Sandbox:
    """The sandbox of that id or name. Raises what `Sandbox.connect` raises.

    One that is hibernated is woken by the keeper, detached or not: were it woken by us, it
    would end with this command.
    """
    record = await asyncio.to_thread(registry.find, box)
    if record.state is SandboxState.HIBERNATED:
        await wake_detached(record.id)
    return await Sandbox.connect(record.id)
