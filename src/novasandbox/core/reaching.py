"""Ways to a sandbox: a new one, one that runs for somebody else, one that sleeps."""

from __future__ import annotations

import asyncio
import os
from dataclasses import fields
from typing import Any

from novasandbox.core import creation, registry
from novasandbox.core.exhaustion import host_limits
from novasandbox.core.hypervisor import SandboxConfig, SandboxState
from novasandbox.core.keeper import create_detached, ensure_keeper, take_back, wake_detached
from novasandbox.core.making import is_strict
from novasandbox.core.registry import Record
from novasandbox.core.session import LocalSession, RemoteSession, Session, woken_by_its_holder
from novasandbox.errors import GuestUnreachable, IllegalTransition, SandboxFailed, SandboxNotFound

Way = tuple[Session, Record]
_LOOK_EVERY = 0.05
_KILL_DEADLINE = 30.0


async def create(config: SandboxConfig) -> Way:
    """Make a sandbox, here or by the keeper. Raises as `creation.create` does."""
    if not config.detach:
        holder = await creation.create(config)
        return LocalSession(holder), holder.record
    identity = await create_detached(settled(config))
    try:
        return await reach(identity)
    except BaseException:
        # Nobody would come to know of it.
        await asyncio.shield(asyncio.ensure_future(take_back(identity)))
        raise


def settled(config: SandboxConfig) -> dict[str, Any]:
    """A configuration as data for the keeper, whose folder and environment are not ours."""
    settings = {each.name: getattr(config, each.name) for each in fields(config)}
    settings |= {"env": dict(config.env), "metadata": dict(config.metadata)}
    kernel = config.kernel or os.environ.get("NOVA_KERNEL")
    if kernel:
        settings["kernel"] = os.path.abspath(kernel)
    if config.template and ("/" in config.template or config.template.endswith(".json")):
        settings["template"] = os.path.abspath(config.template)
    settings["strict"] = is_strict(config)
    if config.provider == "auto":
        settings["provider"] = os.environ.get("NOVA_PROVIDER") or "auto"
    return settings


async def reach(id_or_name: str) -> Way:
    """Find a sandbox and connect to it, or wake it. See `Sandbox.connect`."""
    record = await _made(await asyncio.to_thread(registry.find, id_or_name))
    if record.state is SandboxState.HIBERNATED:
        return await _woken(record)
    try:
        return await RemoteSession.connect(record), record
    except OSError:
        await asyncio.to_thread(registry.collect_leftovers)
    except IllegalTransition:
        pass  # It was being put to sleep.
    record = await asyncio.to_thread(registry.get, record.id)
    if record.state is SandboxState.HIBERNATED:
        return await _woken(record)
    if record.config.get("detach"):
        await ensure_keeper(adopt=record.id)
        record = await asyncio.to_thread(registry.get, record.id)
    try:
        return await RemoteSession.connect(record), record
    except OSError as error:
        raise GuestUnreachable(
            "the process that holds the sandbox does not answer",
            why=str(error),
            sandbox_id=record.id,
        ) from error


async def end(id_or_name: str) -> str:
    """End a sandbox, without waking one that sleeps; gives its id.

    Raises SandboxNotFound, or how it had ended.
    """
    record = await asyncio.to_thread(registry.find, id_or_name)
    if record.state is not SandboxState.HIBERNATED:
        session, _ = await reach(record.id)
    else:
        try:
            # Whoever holds one that fell asleep by itself is to know.
            session = await RemoteSession.connect(record)
        except (OSError, IllegalTransition):
            await asyncio.to_thread(registry.end_unheld, record.id)
            return record.id
    await finish(session, record.id)
    return record.id


async def finish(session: Session, identity: str) -> None:
    """End a sandbox; harmless when it has ended. A holder that does not answer is done without."""
    try:
        async with asyncio.timeout(_KILL_DEADLINE):
            await session.control("kill")
    except (GuestUnreachable, TimeoutError):
        await asyncio.to_thread(registry.end_unheld, identity)
    except (SandboxFailed, SandboxNotFound):
        pass  # It has ended meanwhile, or by this very call.
    await session.close()


async def _made(record: Record) -> Record:
    """The record once the sandbox is no longer being made, or its maker is gone."""
    while record.state is SandboxState.CREATING and record.owner and record.owner.alive:
        await asyncio.sleep(_LOOK_EVERY)
        record = await asyncio.to_thread(registry.get, record.id)
    return record


async def _woken(record: Record) -> Way:
    """A way to a hibernated sandbox, which is awake then."""
    session = await woken_by_its_holder(record)
    if session is not None:
        return session, await asyncio.to_thread(registry.get, record.id)
    holder = None
    if record.config.get("detach"):
        await wake_detached(record.id)
    else:
        with host_limits():
            holder = await creation.wake(record.id)
    if holder is not None:
        return LocalSession(holder), holder.record
    record = await asyncio.to_thread(registry.get, record.id)
    return await RemoteSession.connect(record), record
