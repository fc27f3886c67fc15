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
from novasandbox.core.events import EventLog, read_events
from novasandbox.core.gate import Gate
from novasandbox.core.ground import Ground
from novasandbox.core.hypervisor import (
    Machine,
    SandboxConfig,
    SandboxState,
    check_transition,
    require_state,
)
from novasandbox.core.lifetime import Lifetime
from novasandbox.core.making import Made, Place
from novasandbox.core.ports import Ports
from novasandbox.core.registry import Record
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
        self._ports: Ports | None = None
        self._gate: Gate | None = None
        self._watches: list[asyncio.Task[None]] = []
        self._ending: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.moving = asyncio.Lock()
        self.merging = merging.Merging(self)
        self.lifetime = Lifetime(self)
        self._failure: NovaError | None = None
        self._events = EventLog(record.directory / "events.jsonl")
        self.ended = asyncio.Event()
        self.on_end: Callable[[Holder], None] | None = None
        self.on_child: Callable[[Holder], None] | None = None

    # How it comes to be: see `creation.py`.

    @contextlib.asynccontextmanager
    async def abandoned_on_failure(self) -> AsyncIterator[None]:
        """What goes wrong in this block is the end of a half-made sandbox."""
        try:
            yield
        except BaseException as error:
            await self.abandon(error)
            raise

    async def sleep_on(self, slept: Record) -> None:
        """A waking went wrong: what was begun is given back, and the record is as before."""
        gate, self._gate = self._gate, None
        if gate is not None:
            await gate.close(None)
        await self._close_ports()
        if self.channel is not None:
            await self.channel.withdraw()
        await self._drop_machine()
        with contextlib.suppress(OSError):
            registry.save(replace(slept, machine=None, owner=None))

    async def fall_asleep(self, reason: NovaError, *, briefly: bool = False) -> None:
        """Give back the machine of a sandbox whose record says that it is hibernated.

        The next request through this process wakes it. briefly: this process wakes it at once,
        and the doors stay open.
        """
        await whole(self._fall_asleep(reason, briefly))

    async def _fall_asleep(self, reason: NovaError, briefly: bool) -> None:
        await self._close_ports()
        # Before the machine ends, which is no loss now.
        assert self.channel is not None
        self.channel.doze(reason, self.rouse)
        machine, self._machine = self._machine, None
        if machine is not None:
            await machine.kill()
        if self._failure is not None:
            raise self._failure
        if briefly:
            return
        # On a full disk it sleeps all the same: the record says so, and its machine has ended.
        with contextlib.suppress(OSError):
            self.record = registry.change(self.record, machine=None, owner=None)
        self.note("hibernated")
        self._dismiss(reason)
        if self.on_end is not None:
            self.on_end(self)

    async def rouse(self) -> None:
        """Wake it again, which this process had put to sleep."""
        from novasandbox.core import creation  # It stands on this module.

        # A call may come before it has fallen asleep to the end.
        async with self.moving:
            if self.state is SandboxState.HIBERNATED and await creation.wake(self.id, self) is None:
                raise GuestUnreachable(
                    "another process holds the sandbox now",
                    fix=f"Sandbox.connect({self.id!r}) reaches it there.",
                    sandbox_id=self.id,
                )

    async def come_back(self) -> None:
        """Wake a sandbox that was put to sleep briefly, with its ports."""
        assert self.channel is not None
        await self.channel.roused()
        await self.reopen_ports()

    async def take_over(self, machine: Machine) -> None:
        """Attach to a guest that ran for another holder; a paused one runs for that long.

        It is resumed in any case: the other one may have died in the middle of a pause.
        """
        self._machine = machine
        self.channel = self._new_channel(machine, takeover=True)
        await machine.resume()
        await self.channel.open(_ANSWER_DEADLINE)
        if self.state is SandboxState.PAUSED:
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
        self._ports = Ports(self.channel, self.id)
        if self._gate is None:
            self._gate = Gate(self, self.record.directory / "api.sock")
            await self._gate.open()
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
    def failure(self) -> NovaError | None:
        """Why it has ended or is ending; None while it lives."""
        return self._failure

    async def pause(self) -> None:
        """Stop the vCPUs. Raises IllegalTransition unless it runs."""
        async with self.moving:
            self.require(SandboxState.RUNNING, verb="pause")
            await whole(self._pause())

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
        assert self.channel is not None
        await self._machine.pause()
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
        self.become(SandboxState.RUNNING)
        # Its time may have been over while it was paused.
        self.lifetime.watch()

    async def machine_metrics(self) -> dict[str, Any]:
        """What the machine's process costs the host."""
        machine = self.require_machine()
        metrics = await machine.metrics()
        return {name: getattr(metrics, name) for name in metrics.__dataclass_fields__}

    async def expose(self, port: int, host_port: int = 0) -> str:
        """Open a port on loopback that reaches the guest's; gives `host:port`."""
        self.require(SandboxState.RUNNING, SandboxState.PAUSED, verb="expose a port")
        assert self._ports is not None
        address = await self._ports.expose(port, host_port)
        self._remember_ports()
        self.note("exposed", port=port, address=address)
        return address

    async def unexpose(self, port: int) -> None:
        """Close what `expose` opened. Harmless when there is nothing."""
        if self._ports is not None:
            await self._ports.unexpose(port)
            self._remember_ports()

    def _remember_ports(self) -> None:
        assert self._ports is not None
        if self._ending is not None:
            return
        ports = {str(port): host for port, host in self._ports.table.items()}
        self.record = registry.change(self.record, ports=ports)

    async def reopen_ports(self) -> None:
        """Expose again what was exposed for another holder."""
        assert self._ports is not None
        for port, host_port in self.record.ports.items():
            with contextlib.suppress(NovaError, OSError):
                await self._ports.expose(int(port), int(host_port))
        self._remember_ports()

    async def kill(self) -> None:
        """End it now. Harmless when repeated."""
        if self.state is SandboxState.HIBERNATED:
            self._failure = SandboxFailed("the sandbox was ended", sandbox_id=self.id)
            # Whoever may hold it by now: it has no time to see it coming.
            await asyncio.to_thread(registry.end_unheld, self.id)
            await self._close_doors(self._failure)
            # It may be falling asleep just now.
            await self._drop_machine()
            self._dismiss(self._failure)
            self.record = replace(self.record, state=SandboxState.STOPPED)
            if self.on_end is not None:
                self.on_end(self)
            return
        await self._end(SandboxState.STOPPED, "it was killed")

    async def let_go(self) -> None:
        """Stop holding without ending it: the next holder takes over."""
        if self._gate is not None:
            await self._gate.close(None)
        await self._close_doors(GuestUnreachable("the holder has let go", sandbox_id=self.id))
        if self._machine is not None:
            await self._machine.let_go()
        self.ended.set()

    @contextlib.asynccontextmanager
    async def still(
        self, before: Callable[[Machine], Awaitable[None]] | None = None
    ) -> AsyncIterator[Machine]:
        """In this block the guest stands still and has taken whole frames only.

        before: done while it runs yet.

        Raises IllegalTransition unless it runs or is paused.
        """
        async with self.moving:
            self.require(SandboxState.RUNNING, SandboxState.PAUSED, verb="save it")
            machine, channel = self.require_machine(), self.channel
            assert channel is not None
            if before is not None:
                await before(machine)
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

    def become(self, state: SandboxState) -> None:
        """Go on to a state, on disk too. Raises IllegalTransition."""
        check_transition(self.state, state, self.id)
        self.record = registry.change(self.record, state=state)
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
            await self._drop_machine()
            self.record = await asyncio.to_thread(
                registry.bury, self.record, state, reason, expired=expired
            )
        finally:
            self._dismiss(error)
            self.ended.set()
            if self.on_end is not None:
                self.on_end(self)

    def _dismiss(self, error: BaseException) -> None:
        """Close the gate, and tell its clients why."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.shut()
            # Apart, since a call through the gate may wait for this very task.
            self._closing = asyncio.create_task(gate.close(error))

    async def abandon(self, error: BaseException) -> None:
        """Give back what a half-made sandbox holds."""
        reason = str(error) or type(error).__name__
        await asyncio.shield(asyncio.ensure_future(self._finish_abandoned(reason)))

    async def _finish_abandoned(self, reason: str) -> None:
        self._ending = asyncio.current_task()
        failure = SandboxFailed("the sandbox was never made", why=reason)
        await self._close_doors(failure)
        if self._gate is not None:
            await self._gate.close(failure)
        await self._drop_machine()
        await asyncio.to_thread(registry.bury, self.record, SandboxState.FAILED, reason)
        self.ended.set()

    async def _close_ports(self) -> None:
        self.lifetime.stop()
        for watch in self._watches:
            watch.cancel()
        await self.merging.end()
        if self._ports is not None:
            await self._ports.close()

    async def _close_doors(self, error: BaseException) -> None:
        await self._close_ports()
        if self.channel is not None:
            await self.channel.close(error)

    async def _drop_machine(self) -> None:
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
