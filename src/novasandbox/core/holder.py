"""The one process that holds a sandbox: its machine, its channel, its time-to-live.

The holder is the creator, or the keeper for what is detached. Every other process of the
user reaches the sandbox through the holder's socket (`gate.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from novasandbox.core import merging, registry, warming, watching
from novasandbox.core.doors import Doors
from novasandbox.core.events import EventLog, read_events
from novasandbox.core.ground import Ground
from novasandbox.core.hypervisor import (
    Machine,
    SandboxConfig,
    SandboxState,
    check_transition,
    require_state,
)
from novasandbox.core.idle import NotDue
from novasandbox.core.lifetime import Lifetime
from novasandbox.core.making import Made, Place
from novasandbox.core.registry import Record
from novasandbox.core.sleeping import asleep_error
from novasandbox.core.slumber import Slumber
from novasandbox.core.whole import whole
from novasandbox.errors import (
    GuestUnreachable,
    IllegalTransition,
    NovaError,
    OperationFailed,
    SandboxExpired,
    SandboxFailed,
    VmmCrashed,
)
from novasandbox.guest.channel import Channel
from novasandbox.guest.client import Guest

if TYPE_CHECKING:
    from novasandbox.core.template import Template

log = logging.getLogger(__name__)

_ANSWER_DEADLINE = 15.0
# A guest that takes longer to read what was sent to it may be saved in the middle of a frame.
_BARRIER_DEADLINE = 1.0


class Holder:
    """A sandbox in the hands of this process."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.channel: Channel | None = None
        self._machine: Machine | None = None
        self.doors = Doors(self)
        self._watches: list[asyncio.Task[None]] = []
        self._ending: asyncio.Task[None] | None = None
        self.moving = asyncio.Lock()
        self.merging = merging.Merging(self)
        self.slumber = Slumber(self)
        self.lifetime = Lifetime(self)
        self._failure: NovaError | None = None
        self._events = EventLog(record.directory / "events.jsonl")
        self.ended = asyncio.Event()
        self.on_end: Callable[[Holder], None] | None = None
        self.on_child: Callable[[Holder], None] | None = None
        self.on_turn: Callable[[Holder], None] | None = None
        """Told when it fell asleep by itself, or was woken here: it is still in our hands."""

    # How it comes to be: see `creation.py`.

    @contextlib.asynccontextmanager
    async def abandoned_on_failure(self) -> AsyncIterator[None]:
        """What goes wrong in this block is the end of a half-made sandbox."""
        try:
            yield
        except BaseException as error:
            await self.abandon(error)
            raise

    @property
    def is_wanted(self) -> bool:
        """Whether a request waits for the guest to be there again."""
        return self.channel is not None and self.channel.is_wanted

    @property
    def is_used(self) -> bool:
        """Whether anything here needs this process: a machine, a client, an exposed port."""
        is_asleep = self.state is SandboxState.HIBERNATED
        return not is_asleep or bool(self.record.ports) or self.doors.is_used

    async def take_over(self, machine: Machine) -> None:
        """Attach to a guest that ran for another holder; a paused one runs for that long.

        It is resumed in any case: the other one may have died in the middle of a pause.
        """
        self._machine = machine
        self.channel = self._new_channel(machine, takeover=True)
        await machine.resume()
        await self.channel.open(_ANSWER_DEADLINE)
        if self.state is SandboxState.PAUSED and self.record.rests is None:
            await self.stand_still()

    def place(self, config: SandboxConfig) -> Place:
        """Where its machine is made."""
        return Place(self.id, self.record.directory, config, self._starting)

    def holds(self, made: Made) -> None:
        """This is its machine from here on."""
        self._machine, self.channel = made.machine, made.channel

    def has(self, made: Made) -> None:
        """This is its machine, for good: it is written down."""
        self.holds(made)
        self.record = registry.change(
            self.record, ground=made.ground.as_data(), disk=made.disk.stem
        )

    def _starting(self, machine: Machine, takeover: bool) -> Channel:
        """The machine's process runs: from here on somebody else could find and end it."""
        self.record = registry.change(
            self.record,
            accelerator=machine.accelerator,
            machine=machine.record(),
        )
        return self._new_channel(machine, takeover=takeover)

    def _new_channel(self, machine: Machine, *, takeover: bool) -> Channel:
        token = bytes.fromhex(self.record.token)
        if self.channel is not None:
            # It slept; whoever has a handle goes on with it.
            self.channel.renew(machine.dial, holder=token)
            return self.channel
        return Channel(
            machine.dial,
            holder=token,
            takeover=takeover,
            on_lost=self._reason_for_loss,
        )

    async def settle(
        self,
        config: SandboxConfig,
        ground: Ground | None,
        env: Mapping[str, str] | None = None,
        template: Template | None = None,
    ) -> None:
        """Make the guest ours, then open the doors.

        ground: what the template sets. None: the guest keeps what it had as another's, but
        for what `config` names and for `env`. template: the one whose hooks are run.
        """
        assert self.channel is not None
        await Guest(self.channel, self.id).configure(
            hostname=config.name or f"nova-{self.id}",
            user=config.user or (ground.user if ground else None),
            cwd=config.cwd or (ground.cwd if ground else None),
            env={**ground.env, **config.env} if ground else env,
        )
        if ground is not None and config.user not in (None, ground.user):
            await warming.end_interpreter(self.channel)
        if template is not None:
            await warming.after_restore(self.channel, template)
        # Before anybody can read that it runs.
        await self.serve()
        self.record = registry.change(
            self.record, state=SandboxState.RUNNING, deadline=self.lifetime.deadline_anew()
        )
        if config.detach:
            assert self._machine is not None
            # Until now it would have died with us; from here on the next holder finds it.
            self._machine.outlive_owner()
        self.lifetime.watch()
        self.merging.begin()
        self.note("running", accelerator=self.record.accelerator)

    async def serve(self) -> None:
        """Open the doors, and watch machine and guest."""
        assert self.channel is not None
        assert self._machine is not None
        await self.doors.open(self.channel)
        self._watches = watching.watch(self, self._machine, self.channel)

    # What others ask of it.

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self.record.id

    @property
    def state(self) -> SandboxState:
        """The sandbox's state."""
        return self.record.state

    @property
    def is_ending(self) -> bool:
        """Whether it ends or has ended."""
        return self._ending is not None

    @property
    def failure(self) -> NovaError | None:
        """Why it has ended or is ending; None while it lives."""
        return self._failure

    async def pause(self) -> None:
        """Stop the vCPUs until `resume`. Raises IllegalTransition unless it runs, or rests."""
        async with self.moving:
            if self.state is SandboxState.PAUSED and self.record.rests is not None:
                self._stay_paused()
                return
            self.require(SandboxState.RUNNING, verb="pause")
            await whole(self._pause())

    def _stay_paused(self) -> None:
        assert self.channel is not None
        deadline = self.lifetime.deadline_after_rest()
        self.record = registry.change(self.record, rests=None, deadline=deadline)
        self.lifetime.watch()
        self._refuse_requests()
        self.channel.get_up()

    async def _pause(self) -> None:
        await self.stand_still()
        try:
            self.become(SandboxState.PAUSED)
        except BaseException:
            await self._go_on()
            raise

    async def _go_on(self) -> None:
        assert self._machine is not None
        assert self.channel is not None
        await self._machine.resume()
        self.channel.refusal = None
        self.channel.get_up()

    async def stand_still(self) -> None:
        """Stop the vCPUs, and refuse requests as long as they stand."""
        assert self._machine is not None
        await self._machine.pause()
        self._refuse_requests()

    def _refuse_requests(self) -> None:
        assert self.channel is not None
        self.channel.refusal = IllegalTransition(
            "the guest takes no requests",
            current=SandboxState.PAUSED,
            required=(SandboxState.RUNNING,),
            sandbox_id=self.id,
        )

    async def resume(self) -> None:
        """Let the vCPUs run again; the guest's clock is set right."""
        async with self.moving:
            self.require(SandboxState.PAUSED, verb="resume")
            await whole(self._resume())
        self.merging.begin()
        assert self.channel is not None
        await Guest(self.channel, self.id).set_clock()

    async def _resume(self) -> None:
        await self._go_on()
        self.lifetime.go_on()

    async def machine_metrics(self) -> dict[str, Any]:
        """What the machine's process costs the host."""
        machine = self.require_machine()
        metrics = await machine.metrics()
        return {name: getattr(metrics, name) for name in metrics.__dataclass_fields__}

    async def kill(self) -> None:
        """End it now. Harmless when repeated."""
        if self.state is SandboxState.HIBERNATED:
            error = SandboxFailed("the sandbox was ended", sandbox_id=self.id)
            # It may be falling asleep just now, and shall not be woken either.
            self._failure = error
            # Whoever may hold it by now: it has no time to see it coming.
            await asyncio.to_thread(registry.end_unheld, self.id)
            await self.is_gone(error)
            return
        await self._end(SandboxState.STOPPED, "it was killed")

    async def is_gone(self, error: NovaError) -> None:
        """It was ended while it slept."""
        self._failure = error
        await self._close_doors(error)
        await self.drop_machine()
        self.record = replace(self.record, state=SandboxState.STOPPED)
        self.doors.dismiss(error)
        self.ended.set()
        if self.on_end is not None:
            self.on_end(self)

    async def let_go(self) -> None:
        """Stop holding without ending it: the next holder takes over, or wakes it."""
        asleep = self.state is SandboxState.HIBERNATED
        await self.doors.close(asleep_error(self.id) if asleep else None)
        await self._close_doors(GuestUnreachable("the holder has let go", sandbox_id=self.id))
        if self._machine is not None:
            await self._machine.let_go()
        self.ended.set()

    @contextlib.asynccontextmanager
    async def still(
        self,
        before: Callable[[Machine], Awaitable[None]] | None = None,
        *,
        is_due: Callable[[], bool] = lambda: True,
    ) -> AsyncIterator[Machine]:
        """In this block the guest stands still and has taken whole frames only.

        before: done while it runs yet. is_due: asked when nothing can come between any more.

        Raises NotDue where `is_due` gives False, IllegalTransition unless it runs or is paused.
        """
        async with self.moving:
            self.require(SandboxState.RUNNING, SandboxState.PAUSED, verb="save it")
            machine, channel = self.require_machine(), self.channel
            assert channel is not None
            if before is not None:
                await before(machine)
            if not is_due():
                raise NotDue
            if not self._runs():
                yield machine
                return
            async with channel.held(_BARRIER_DEADLINE):
                try:
                    await machine.pause()
                    yield machine
                except (OSError, OperationFailed, VmmCrashed):
                    # Where it was ended meanwhile, that is why.
                    if self._failure is not None:
                        raise self._failure from None
                    raise
                finally:
                    if self._machine is machine and self._failure is None:
                        await whole(machine.resume())
            if self._machine is machine:
                # It has missed that time. What was done is done, whether it answers or not.
                with contextlib.suppress(NovaError):
                    await Guest(channel, self.id).set_clock()

    def _runs(self) -> bool:
        return self.record.state is SandboxState.RUNNING

    def require(self, *states: SandboxState, verb: str) -> None:
        """Raise IllegalTransition in any other state, or how it ended."""
        if self._failure is not None:
            raise self._failure
        require_state(self.state, states, verb, self.id)

    def require_machine(self) -> Machine:
        """Its machine. Raises how it ended."""
        if self._failure is not None:
            raise self._failure
        if self._machine is None:
            raise SandboxFailed("the sandbox has no machine any more", sandbox_id=self.id)
        return self._machine

    def become(self, state: SandboxState, **more: Any) -> None:
        """Go on to a state, on disk too. more: of its record. Raises IllegalTransition."""
        check_transition(self.state, state, self.id)
        self.record = registry.change(self.record, state=state, **more)
        self.note(state.value)

    # How it ends.

    async def _reason_for_loss(self, reason: BaseException) -> NovaError:
        error = self._failure or await watching.why_lost(self.id, self._machine, reason)
        self.fail(error)
        return self._failure or error

    def fail(self, error: NovaError, reason: str | None = None) -> None:
        """It has ended by itself, or is as good as gone. reason: the error's words, if None."""
        if self.state is SandboxState.HIBERNATED:
            return  # It was being woken, and sleeps on: what was saved is whole.
        if self._ending is None:
            self._failure = self._failure or error
            self._start_ending(SandboxState.FAILED, reason or str(error))

    def expire(self, error: SandboxExpired, reason: str) -> None:
        """Its time is over."""
        if self._ending is None:
            self._failure = error
            self._start_ending(SandboxState.STOPPED, reason, expired=True)

    def _start_ending(self, state: SandboxState, reason: str, *, expired: bool = False) -> None:
        if self._ending is None:
            # Known here at once; on disk when all is given back.
            self.record = replace(self.record, state=state, reason=reason, expired=expired)
            self._ending = asyncio.create_task(self._finish(state, reason, expired))

    async def _end(self, state: SandboxState, reason: str) -> None:
        self._start_ending(state, reason)
        assert self._ending is not None
        await asyncio.shield(self._ending)

    async def _finish(self, state: SandboxState, reason: str, expired: bool) -> None:
        error = self._failure or SandboxFailed(
            "the sandbox was ended", why=reason, sandbox_id=self.id
        )
        self._failure = error
        try:
            if state is SandboxState.STOPPED and self._machine is not None:
                await self._machine.kill()
            await self._close_doors(error)
            await self.drop_machine()
            self.record = await asyncio.to_thread(
                registry.bury, self.record, state, reason, expired=expired
            )
        finally:
            self.doors.dismiss(error)
            self.ended.set()
            if self.on_end is not None:
                self.on_end(self)

    async def abandon(self, error: BaseException) -> None:
        """Give back what a half-made sandbox holds."""
        reason = str(error) or type(error).__name__
        await asyncio.shield(asyncio.ensure_future(self._finish_abandoned(reason)))

    async def _finish_abandoned(self, reason: str) -> None:
        self._ending = asyncio.current_task()
        failure = SandboxFailed("the sandbox was never made", why=reason)
        await self._close_doors(failure)
        await self.doors.close(failure)
        await self.drop_machine()
        await asyncio.to_thread(registry.bury, self.record, SandboxState.FAILED, reason)
        self.ended.set()

    async def stop_watching(self) -> None:
        """Watch machine, guest and time no longer, and merge no more."""
        self.lifetime.stop()
        for watch in self._watches:
            watch.cancel()
        await self.merging.end()

    async def _close_doors(self, error: BaseException) -> None:
        await self.stop_watching()
        await self.doors.close_ports()
        if self.channel is not None:
            await self.channel.close(error)

    async def drop_machine(self) -> None:
        """End its machine's process."""
        machine, self._machine = self._machine, None
        if machine is not None:
            await machine.kill()

    def note(self, kind: str, **detail: Any) -> None:
        """Write an event down."""
        with contextlib.suppress(OSError):
            self._events.add(kind, **detail)


def events_of(directory: Path) -> list[Mapping[str, Any]]:
    """A sandbox's events as plain data."""
    return [
        {"time": event.time, "kind": event.kind, **event.detail}
        for event in read_events(directory / "events.jsonl")
    ]
