"""Pools that stay: the keeper holds them, and whatever process comes takes from them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from novasandbox.core import keeper, reaching, registry
from novasandbox.core.holder import Holder
from novasandbox.core.hypervisor import DEFAULT_TEMPLATE, SandboxConfig
from novasandbox.core.member import LATE
from novasandbox.core.pool import Pool
from novasandbox.core.sandbox import Sandbox
from novasandbox.core.session import RemoteChannel, RemoteSession, call
from novasandbox.errors import CapacityExceeded, InvalidConfig, InvalidRequest, SandboxFailed

_SHOWN = ("template", "snapshot", "vcpus", "memory_mib", "disk_mib")
_ANSWER_DEADLINE = 15.0


class Standing:
    """The keeper's pools, by name."""

    def __init__(self) -> None:
        self._pools: dict[str, tuple[SandboxConfig, Pool]] = {}

    def __len__(self) -> int:
        return len(self._pools)

    async def start(self, name: str, size: int, settings: Mapping[str, Any]) -> None:
        """Keep `size` sandboxes ready; returns as soon as one is.

        Raises InvalidConfig; InvalidRequest for a name that is taken; what `Sandbox.create`
        raises where none can be made, and then there is no pool.
        """
        kind = _kind(SandboxConfig(**settings))
        if size < 1:
            raise InvalidConfig(f"size={size}", why="a pool keeps one sandbox ready or more")
        if name in self._pools:
            raise InvalidRequest(
                f"there is a pool {name!r} already",
                fix=f"Choose another name, or end that one: nova pool stop {name}",
            )
        early = {e.name: getattr(kind, e.name) for e in fields(kind) if e.name not in LATE}
        pool = Pool(size=size, name=name, **early)
        self._pools[name] = kind, pool
        try:
            await pool.ready(1)
        except BaseException:
            del self._pools[name]
            await pool.close()
            raise

    async def stop(self, name: str) -> None:
        """End a pool and what nobody has taken from it. Raises InvalidRequest."""
        if name not in self._pools:
            raise _unknown(name)
        _, pool = self._pools.pop(name)
        await pool.close()

    async def close(self) -> None:
        """End all of them."""
        for name in list(self._pools):
            await self.stop(name)

    def list(self) -> list[dict[str, Any]]:
        """Each as data, the oldest first."""
        return [
            {"name": name, "ready": pool.idle, "size": pool.size}
            | {each: getattr(kind, each) for each in _SHOWN}
            for name, (kind, pool) in self._pools.items()
        ]

    async def take(self, config: SandboxConfig) -> Holder | None:
        """A sandbox of a pool of its kind; None where none is ready.

        Raises InvalidConfig, NameTaken.
        """
        wanted = _kind(config)
        for kind, pool in self._pools.values():
            if kind == wanted and pool.idle:
                try:
                    return (await pool.assigned(config, 0)).holder
                except (CapacityExceeded, SandboxFailed):
                    continue  # It died as it was taken, and was the last.
        return None


def _kind(config: SandboxConfig) -> SandboxConfig:
    """What is settled when a sandbox is made, all else as it usually is."""
    usual = SandboxConfig()
    late = {name: getattr(usual, name) for name in LATE}
    from_template = config.image is None and config.snapshot is None
    template = config.template or (DEFAULT_TEMPLATE if from_template else None)
    return replace(config, template=template, **late)


def _unknown(name: str) -> InvalidRequest:
    return InvalidRequest(f"there is no pool {name!r}", fix="nova pool ls lists those there are.")


class _Lent(RemoteSession):
    """A way to a sandbox that the keeper ends when `lease` is closed, or dies with us."""

    ends_with_handle = True
    lease: RemoteChannel

    async def close(self) -> None:
        await super().close()
        await self.lease.close()


async def start(name: str, size: int, config: SandboxConfig) -> None:
    """Have the keeper keep a pool; see `Standing.start`. Cancelling takes it back."""
    await keeper.ask("pool_start", name=name, size=size, settings=reaching.settled(config))


async def stop(name: str) -> None:
    """End a pool of the keeper's. Raises InvalidRequest where there is none of that name."""
    channel = await _running_keeper()
    if channel is None:
        raise _unknown(name)
    try:
        await call(channel, "pool_stop", name=name)
    finally:
        await channel.close()


async def all_pools() -> list[dict[str, Any]]:
    """The keeper's pools; see `Standing.list`."""
    channel = await _running_keeper()
    if channel is None:
        return []
    try:
        found: list[dict[str, Any]] = await call(channel, "pool_list")
        return found
    finally:
        await channel.close()


async def take(config: SandboxConfig) -> Sandbox | None:
    """A sandbox of a pool of this kind; None where none is ready.

    Unless it is detached it ends with the handle, and with this process.

    Raises InvalidConfig, NameTaken; the SandboxFailed kinds.
    """
    lease = await _running_keeper()
    if lease is None:
        return None
    identity = None
    try:
        identity = await call(lease, "take", settings=reaching.settled(config))
        if identity is None:
            await lease.close()
            return None
        if not config.detach:
            session = await _Lent.connect(registry.get(identity))
            session.lease = lease
            return Sandbox(session, session.record())
        sandbox = Sandbox(*await reaching.reach(identity))
    except BaseException:
        if identity is not None:
            await keeper.take_back(identity)
        await lease.close()
        raise
    await lease.close()
    return sandbox


async def _running_keeper() -> RemoteChannel | None:
    """A connection to the keeper; None where none runs, and there are no pools then."""
    channel = RemoteChannel(keeper.dial_running, holder=os.urandom(16))
    try:
        await channel.open(_ANSWER_DEADLINE)
    except (ConnectionRefusedError, FileNotFoundError):
        return None
    return channel
