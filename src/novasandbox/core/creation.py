"""How a sandbox comes into the hands of this process: made, copied, taken over, or woken."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from novasandbox.core import (
    admission,
    copying,
    making,
    provider_choice,
    registry,
    resting,
    sleeping,
    snapshots,
    template_snapshot,
    warming,
)
from novasandbox.core.admission import Room
from novasandbox.core.exhaustion import host_limits
from novasandbox.core.ground import Ground
from novasandbox.core.holder import Holder
from novasandbox.core.hypervisor import BaseHypervisor, SandboxConfig, SandboxState
from novasandbox.core.making import Made
from novasandbox.core.owner import Owner
from novasandbox.core.preparation import Prepared, prepare
from novasandbox.core.registry import Record
from novasandbox.core.template_snapshot import Origin
from novasandbox.core.whole import whole
from novasandbox.errors import (
    GuestUnreachable,
    InvalidConfig,
    NovaError,
    SnapshotInvalid,
    VmmCrashed,
)
from novasandbox.guest.client import Guest

# How long somebody may take to put a sandbox to sleep, or back, once its record says so.
_TRANSIT = 60.0
_LOOK_EVERY = 0.02


async def create(config: SandboxConfig) -> Holder:
    """Make a sandbox and hold it. Whatever goes wrong, nothing is left behind.

    Raises InvalidConfig, TemplateNotFound, NameTaken, SnapshotInvalid, Unavailable kinds,
    BootFailed, GuestPanicked.
    """
    with host_limits():
        await asyncio.to_thread(registry.collect_leftovers)
        if config.snapshot is not None:
            return await _from_snapshot(config, config.snapshot)
        config = idle_like(config)
        provider, _ = await provider_choice.choose(config.provider)
        with await prepare(config) as found:
            async with _admitted(config, found) as prepared:
                holder = await _recorded(config, provider, template=prepared.ground.template)
                async with holder.abandoned_on_failure():
                    holder.has(await _make(holder, provider, config, prepared))
                    await holder.settle(config, prepared.ground, template=prepared.template)
            return holder


@contextlib.asynccontextmanager
async def _admitted(config: SandboxConfig, found: Prepared) -> AsyncIterator[Prepared]:
    """What a machine needs, together with a place on this host, which it keeps while it lives.

    Raises CapacityExceeded.
    """
    async with admission.admitted(config) as (room,):
        yield _with(found, room)


def _with(found: Prepared, room: Room) -> Prepared:
    return replace(found, holds=(*found.holds, room))


async def _make(
    holder: Holder, provider: BaseHypervisor, config: SandboxConfig, prepared: Prepared
) -> Made:
    origin = None if config.cold else await template_snapshot.obtain(provider, prepared, config)
    try:
        return await making.make(provider, holder.place(config), prepared, origin)
    finally:
        if origin is not None and origin.hold is not None:
            origin.hold.close()


async def _from_snapshot(config: SandboxConfig, name: str) -> Holder:
    kept = await asyncio.to_thread(snapshots.find, name)
    config = idle_like(_sized_like(config, kept.settings), kept.settings)
    former = kept.settings.user or kept.ground.user
    config = replace(config, user=config.user or kept.settings.user)
    async with (
        copying.of_snapshot(kept) as (found, origin),
        _admitted(config, found) as prepared,
    ):
        return await copy(
            config,
            kept.provider,
            prepared,
            origin,
            came_from=kept.id,
            env=config.env,
            has_other_user=config.user not in (None, former),
        )


async def copy(
    config: SandboxConfig,
    provider_name: str,
    prepared: Prepared,
    origin: Origin,
    *,
    came_from: str | None,
    env: Mapping[str, str] | None = None,
    has_other_user: bool = False,
) -> Holder:
    """Make a sandbox that goes on where another one stood, as one of its own.

    prepared: with a place on this host. env: instead of the other's, where it has any.
    has_other_user: cells of code shall not run as the other's. Raises as `create` does.
    """
    provider = provider_choice.load(provider_name)
    # From here on nobody removes what it stands on.
    holder = await _recorded(config, provider, origin=came_from, ground=origin.ground)
    async with holder.abandoned_on_failure():
        try:
            made = await making.copy(provider, holder.place(config), prepared, origin)
        except FileNotFoundError as error:
            raise SnapshotInvalid(
                "what the sandbox was to be copied from was removed meanwhile", why=str(error)
            ) from error
        holder.has(made)
        if has_other_user:
            await warming.end_interpreter(made.channel)
        await holder.settle(config, None, env)
    return holder


async def fork(parent: Holder, count: int) -> list[Holder]:
    """Make `count` sandboxes that go on where this one stands, from one moment.

    Either all are made, or none. Raises as `create` does.
    """
    config = replace(parent.record.settings, name=None)
    provider, origin = str(parent.record.provider), parent.record.origin
    children: list[Holder] = []
    try:
        with host_limits():
            # Before the parent is stopped, which is of no use where there is no room.
            async with (
                admission.admitted(config, count) as rooms,
                copying.moment(parent) as (found, saved),
            ):
                tasks = [
                    asyncio.create_task(
                        copy(config, provider, _with(found, room), saved, came_from=origin)
                    )
                    for room in rooms
                ]
                children = await _all_or_none(tasks)
    except BaseException:
        await whole(_end_all(children))
        raise
    for child in children:
        if parent.on_child is not None:
            parent.on_child(child)
    return children


async def _all_or_none(tasks: list[asyncio.Task[Holder]]) -> list[Holder]:
    """What all tasks give; where one fails, or the caller is cancelled, nothing is left of any."""
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        return [task.result() for task in tasks]
    except BaseException:
        await whole(_undo(tasks))
        raise


async def _undo(tasks: list[asyncio.Task[Holder]]) -> None:
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await _end_all([each for each in results if isinstance(each, Holder)])


async def _end_all(holders: list[Holder]) -> None:
    await asyncio.gather(*(each.kill() for each in holders))


async def adopt(record: Record) -> Holder:
    """Take over a sandbox whose holder died.

    Raises VmmCrashed when its machine is gone. Whatever else goes wrong is raised too, and
    leaves the sandbox as it was: the next one may try.
    """
    if record.provider is None or record.machine is None:
        raise VmmCrashed("the sandbox never got a machine", sandbox_id=record.id)
    holder = Holder(record)
    provider = provider_choice.load(record.provider)
    try:
        machine = await provider.adopt(record.directory, record.machine)
        await holder.take_over(machine)
        if record.state is SandboxState.PAUSED and record.rests is not None:
            await resting.stand_again(holder)
        holder.record = replace(record, owner=Owner.self())
        await holder.merging.settle()
        holder.record = registry.save(holder.record)
        await holder.serve()
        holder.lifetime.watch()
        holder.merging.begin()
        await holder.doors.reopen_ports()
    except VmmCrashed as error:
        await holder.abandon(error)
        raise
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(holder.let_go()))
        with contextlib.suppress(OSError):
            registry.save(replace(holder.record, owner=record.owner))
        raise
    holder.note("adopted")
    return holder


async def wake(identity: str, holder: Holder | None = None) -> Holder | None:
    """Wake a sandbox and hold it; None when somebody else has done so meanwhile.

    holder: the one who put it to sleep, if this process did.

    Raises SnapshotInvalid where what was saved is damaged or does not fit this host, and what
    `create` raises. It then sleeps on.
    """
    deadline = asyncio.timeout(_TRANSIT)
    try:
        async with deadline:
            while True:
                async with sleeping.alone(identity):
                    slept = await asyncio.to_thread(registry.get, identity)
                    if not sleeping.is_asleep(slept):
                        return None
                    if not sleeping.is_in_hands(slept, holder):
                        deadline.reschedule(None)
                        return await _wake_or_tell(slept, holder or Holder(slept))
                await asyncio.sleep(_LOOK_EVERY)
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise GuestUnreachable(
            "the process that puts the sandbox to sleep does not come to an end with it",
            fix=f"End that process, or the sandbox: nova kill {identity}",
            sandbox_id=identity,
        ) from error


async def _wake_or_tell(slept: Record, holder: Holder) -> Holder:
    try:
        with host_limits():
            return await _wake(slept, holder)
    except (NovaError, OSError):
        # Where somebody has ended it meanwhile, that is why.
        await asyncio.to_thread(registry.get, slept.id)
        raise


async def _wake(slept: Record, holder: Holder) -> Holder:
    # What goes on here as well is not another holder's to the guest.
    goes_on = slept.rests is not None and holder.channel is not None
    is_same = goes_on and holder.record.token == slept.token
    token = slept.token if is_same else secrets.token_hex(16)
    holder.record = replace(slept, owner=Owner.self(), token=token)
    async with (
        sleeping.saved(slept) as (found, origin),
        _admitted(slept.settings, found) as prepared,
    ):
        try:
            await _awaken(holder, slept, prepared, origin)
        except BaseException:
            await whole(holder.slumber.sleep_on(slept))
            raise
    # It is awake, and what woke it is of no use any more.
    await whole(asyncio.to_thread(sleeping.forget, slept))
    await holder.doors.reopen_ports()
    holder.note("woken")
    return holder


async def rollback(holder: Holder, snapshot: str) -> None:
    """Put a sandbox back to where it stood at a snapshot. Raises as `wake` does."""
    kept = await asyncio.to_thread(snapshots.find, snapshot)
    if (kept.settings.vcpus, kept.settings.memory_mib, kept.settings.disk_mib) != (
        holder.record.settings.vcpus,
        holder.record.settings.memory_mib,
        holder.record.settings.disk_mib,
    ):
        raise InvalidConfig(
            "the snapshot is of a sandbox of other sizes",
            fix=f"Start another one from it: Sandbox.create(snapshot={snapshot!r}).",
            sandbox_id=holder.id,
        )
    before = copying.ground_of(holder.record)
    await sleeping.go_back(holder, kept)
    assert holder.channel is not None
    try:
        await whole(holder.channel.roused())
    finally:
        await whole(asyncio.to_thread(registry.let_go_of, before))
    holder.note("rolled back", snapshot=kept.id)


async def _awaken(holder: Holder, slept: Record, prepared: Prepared, origin: Origin) -> None:
    provider = provider_choice.load(str(slept.provider))
    made = await making.copy(provider, holder.place(slept.settings), prepared, origin)
    holder.holds(made)
    asleep = slept.asleep or {}
    guest = Guest(made.channel, holder.id)
    if asleep.get("copied"):
        await guest.configure(hostname=slept.settings.name or f"nova-{slept.id}")
    else:
        await guest.renew()
    remaining = asleep.get("remaining")
    is_paused = bool(asleep.get("paused"))
    if is_paused:
        await holder.stand_still()
    if slept.config.get("detach"):
        made.machine.outlive_owner()
    await holder.serve()
    # The moment at which it is awake: nothing after it may fail.
    holder.record = registry.change(
        holder.record,
        state=SandboxState.PAUSED if is_paused else SandboxState.RUNNING,
        deadline=None if remaining is None else time.time() + remaining,
        ground=made.ground.as_data(),
        disk=made.disk.stem,
        asleep=None,
        rests=None,
    )
    holder.lifetime.watch()
    holder.merging.begin()


async def _recorded(
    config: SandboxConfig,
    provider: BaseHypervisor,
    *,
    origin: str | None = None,
    ground: Ground | None = None,
    template: str | None = None,
) -> Holder:
    stands_on = None if ground is None else ground.as_data()
    record = await _new_record(config, provider=provider.name, origin=origin, ground=stands_on)
    holder = Holder(record)
    holder.note("created", template=template, snapshot=origin)
    return holder


def _sized_like(config: SandboxConfig, saved: SandboxConfig) -> SandboxConfig:
    """A configuration with a snapshot's sizes. Raises InvalidConfig where others are asked for."""
    usual = SandboxConfig()
    sizes = {}
    for name in ("vcpus", "memory_mib", "disk_mib"):
        wanted, given = getattr(config, name), getattr(saved, name)
        if wanted not in (given, getattr(usual, name)):
            raise InvalidConfig(
                f"{name}={wanted} cannot be had",
                why=f"the snapshot was taken with {name}={given}",
                fix="Leave it out: what is restored has the sizes that it was saved with.",
            )
        sizes[name] = given
    return replace(config, **sizes)


def idle_like(config: SandboxConfig, saved: SandboxConfig | None = None) -> SandboxConfig:
    """A configuration that says itself what happens when it is idle, not as a snapshot did."""
    if config.idle_timeout == math.inf:
        return replace(config, idle_timeout=None)
    if config.idle_timeout is not None or saved is None:
        return config
    return replace(config, idle_timeout=saved.idle_timeout, on_idle=saved.on_idle)


async def _new_record(config: SandboxConfig, **more: Any) -> Record:
    """A record on disk; when the caller is cancelled meanwhile, none."""
    making = asyncio.ensure_future(asyncio.to_thread(registry.create, config, Owner.self(), **more))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        record = await making
        await asyncio.to_thread(registry.bury, record, SandboxState.FAILED, "it was given up")
        raise
