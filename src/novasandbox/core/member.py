"""A sandbox that was made ahead: warm, nobody's yet, and somebody's own when it is taken."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from novasandbox.core import creation, registry, warming
from novasandbox.core.exhaustion import host_limits
from novasandbox.core.ground import Ground
from novasandbox.core.holder import Holder
from novasandbox.core.hypervisor import SandboxConfig, SandboxState
from novasandbox.core.registry import Record
from novasandbox.core.sandbox import Sandbox
from novasandbox.core.session import LocalSession
from novasandbox.errors import OperationFailed, SandboxFailed
from novasandbox.guest.client import Guest
from novasandbox.guest.contexts import Contexts

log = logging.getLogger(__name__)

# What a taker may still say; everything else is settled when it is made.
LATE = (
    "name",
    "env",
    "metadata",
    "timeout",
    "on_timeout",
    "idle_timeout",
    "on_idle",
    "cwd",
    "user",
    "detach",
)
# The paths that most cells take: an expression, and statements that print.
_CELLS = ("6 * 7", "x = 1\nprint(x)\nx")
# Python rewrites what has run eight times, and then it is other code that is emulated.
_ROUNDS = 8
_WARM_DEADLINE = 60.0
# With less memory to spare the interpreter starts when it is first asked for.
_INTERPRETER = 64 << 20
# A guest that does not take its settings by then is as good as gone.
_ASSIGN_DEADLINE = 10.0


class Member:
    """A sandbox without a taker. It ends with this process, and has no time-to-live."""

    def __init__(self, holder: Holder, config: SandboxConfig) -> None:
        self._holder = holder
        self._config = config
        # Those that have a connection at hand, once it is warm.
        self._contexts: Contexts | None = None

    @classmethod
    async def make(cls, config: SandboxConfig, label: dict[str, str]) -> Member:
        """Make one. label: its metadata until it is taken.

        Raises as `Sandbox.create` does. Whatever goes wrong, nothing is left.
        """
        idle = replace(config, name=None, metadata=label, timeout=None, detach=False)
        holder = await creation.create(idle)
        holder.lifetime.stop()  # It is not idle as long as nobody has taken it.
        return cls(holder, idle)

    async def warm(self) -> None:
        """Run what a first cell would run first, where nobody sees it: emulation is slow once.

        Raises the SandboxFailed kinds. Whatever goes wrong, it is ended.
        """
        assert self._holder.channel is not None
        guest = Guest(self._holder.channel, self.id)
        sandbox = Sandbox(LocalSession(self._holder), self._holder.record)
        try:
            self._contexts = await _warm(sandbox, guest)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self.end()))
            raise

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self._holder.id

    @property
    def is_usable(self) -> bool:
        """Whether it runs, as far as this process knows."""
        return self._holder.failure is None and self._holder.state is SandboxState.RUNNING

    def on_end(self, tell: Callable[[], None] | None) -> None:
        """Have `tell` called when it ends, or falls asleep. None: nobody."""
        self._holder.on_end = None if tell is None else lambda _: tell()

    async def end(self) -> None:
        """End it. Harmless when repeated."""
        self.on_end(None)
        await self._holder.kill()

    @property
    def holder(self) -> Holder:
        """Who holds it."""
        return self._holder

    def sandbox(self) -> Sandbox:
        """It as its taker sees it."""
        sandbox = Sandbox(LocalSession(self._holder), self._holder.record)
        if self._contexts is not None:
            sandbox.contexts = self._contexts  # With the connection that it has at hand.
        return sandbox

    async def assign(self, config: SandboxConfig) -> None:
        """Give it to somebody: an identity of its own, his settings, a life that begins now.

        config: as it was made, but for what a taker may say. Raises NameTaken, and it is as
        before. After anything else that is raised it must be ended: InvalidConfig (the guest
        refuses the settings), the SandboxFailed kinds (it is gone).
        """
        holder = self._holder
        config = creation.idle_like(config, holder.record.settings)
        with host_limits():
            async with holder.moving:
                if not self.is_usable:
                    raise holder.failure or SandboxFailed(
                        "the sandbox does not run", sandbox_id=holder.id
                    )
                try:
                    await self._write_and_configure(config)
                except OSError:
                    if holder.failure is not None:  # Its directory went with it.
                        raise holder.failure from None
                    raise
            if config.user != self._config.user:
                await self._end_interpreter()
        self.on_end(None)
        holder.lifetime.watch()
        if config.detach:
            holder.require_machine().outlive_owner()

    async def _write_and_configure(self, config: SandboxConfig) -> None:
        if config.name is not None:
            # First, since a name that is taken leaves the guest as it is.
            await self._write_named(config)
            self._holder.note("taken")
            await self._configure(config)
            return
        configuring = asyncio.ensure_future(self._configure(config))
        try:
            # The channel sends at the loop's next turn; the guest works while we write.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self._is_now(self._written(config))
            self._holder.note("taken")
        except BaseException:
            configuring.cancel()
            raise
        await configuring

    async def _write_named(self, config: SandboxConfig) -> None:
        """Where another one may have the name: all records are read for that."""
        writing = asyncio.ensure_future(asyncio.to_thread(self._written, config))
        try:
            self._is_now(await asyncio.shield(writing))
        except asyncio.CancelledError:
            await asyncio.wait((writing,))  # It shall not write into what is being removed.
            raise

    def _written(self, config: SandboxConfig) -> Record:
        late = {key: value for key, value in registry.config_data(config).items() if key in LATE}
        deadline = None if config.timeout is None else time.time() + config.timeout
        return registry.assign(
            self._holder.record, {**self._holder.record.config, **late}, deadline
        )

    def _is_now(self, written: Record) -> None:
        # What has happened to it meanwhile stays as it is.
        self._holder.record = replace(
            self._holder.record, config=written.config, deadline=written.deadline
        )

    async def _configure(self, config: SandboxConfig) -> None:
        holder, own = self._holder, self._config
        assert holder.channel is not None
        env: dict[str, str] | None = None
        if config.env != own.env:
            env = {**_template_env(holder.record), **config.env}
        try:
            async with asyncio.timeout(_ASSIGN_DEADLINE):
                await Guest(holder.channel, holder.id).configure(
                    hostname=config.name or f"nova-{holder.id}",
                    user=config.user if config.user != own.user else None,
                    cwd=config.cwd if config.cwd != own.cwd else None,
                    env=env,
                )
        except TimeoutError as error:
            raise SandboxFailed(
                "the guest did not take its settings",
                why=f"it did not answer within {_ASSIGN_DEADLINE:g} s",
                sandbox_id=holder.id,
            ) from error

    async def _end_interpreter(self) -> None:
        """The taker's user is another, and shall have an interpreter of his own."""
        assert self._holder.channel is not None
        if self._contexts is not None:
            await self._contexts.restart()  # Lets go of the connection at hand.
            self._contexts = None
        await warming.end_interpreter(self._holder.channel)


def _template_env(record: Record) -> dict[str, Any]:
    """What the template sets; nothing where the guest goes on where another one stood."""
    ground = Ground.load(record.ground) if record.config.get("snapshot") is None else None
    return dict(ground.env) if ground is not None else {}


async def _warm(sandbox: Sandbox, guest: Guest) -> Contexts | None:
    """The contexts that have a connection at hand; None where there is no Python, or no room."""
    try:
        if (await guest.metrics()).memory_available >= _INTERPRETER:
            async with asyncio.timeout(_WARM_DEADLINE):
                await warm_interpreter(sandbox.contexts)
            return sandbox.contexts
    except (OperationFailed, TimeoutError) as error:
        log.info("%s: the interpreter was not warmed: %s", sandbox.id, error)
    try:
        await sandbox.exec(["/bin/true"], timeout=_WARM_DEADLINE)
    except OperationFailed as error:  # An image need not have it.
        log.info("%s was not warmed: %s", sandbox.id, error)
    return None


async def warm_interpreter(contexts: Contexts) -> None:
    """Have the first cell of the default context find everything at hand."""
    # Emulated code is translated when it first runs: that is paid for where nobody looks.
    private = await contexts.create()
    for cell in _CELLS:
        await contexts.run(cell, context=private)
    await contexts.remove(private)
    # The default context is a process of its own, with memory of its own once it writes to it.
    for _ in range(_ROUNDS):
        for cell in _CELLS:
            await contexts.rehearse(cell)
