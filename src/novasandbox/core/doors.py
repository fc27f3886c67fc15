"""The ways into a sandbox from outside its holder's process: its gate and its exposed ports."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from novasandbox.core import registry
from novasandbox.core.gate import Gate
from novasandbox.core.hypervisor import SandboxState
from novasandbox.core.ports import Ports
from novasandbox.errors import NovaError
from novasandbox.guest.channel import Channel

if TYPE_CHECKING:
    from novasandbox.core.holder import Holder


class Doors:
    """The open doors of a sandbox in the hands of this process."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._ports: Ports | None = None
        self._gate: Gate | None = None
        self._closing: asyncio.Task[None] | None = None

    async def open(self, channel: Channel) -> None:
        """Open the gate; ports can be exposed. What is open stays so."""
        if self._ports is None or self._ports.is_closed:
            self._ports = Ports(channel, self._holder.id)
        if self._gate is None:
            self._gate = Gate(self._holder, self._holder.record.directory / "api.sock")
            await self._gate.open()

    @property
    def is_used(self) -> bool:
        """Whether another process is connected."""
        return self._gate is not None and self._gate.is_used

    async def expose(self, port: int, host_port: int = 0) -> str:
        """Open a port on loopback that reaches the guest's; gives `host:port`."""
        holder = self._holder
        holder.require(SandboxState.RUNNING, SandboxState.PAUSED, verb="expose a port")
        assert self._ports is not None
        address = await self._ports.expose(port, host_port)
        self._remember_ports()
        holder.note("exposed", port=port, address=address)
        return address

    async def unexpose(self, port: int) -> None:
        """Close what `expose` opened. Harmless when there is nothing."""
        if self._ports is not None:
            await self._ports.unexpose(port)
            self._remember_ports()

    def _remember_ports(self) -> None:
        assert self._ports is not None
        if self._holder.is_ending:
            return
        ports = {str(port): host for port, host in self._ports.table.items()}
        self._holder.record = registry.change(self._holder.record, ports=ports)

    async def reopen_ports(self) -> None:
        """Expose again what was exposed for another holder, or before a rollback."""
        assert self._ports is not None
        if not self._holder.record.ports:
            return
        for port, host_port in self._holder.record.ports.items():
            with contextlib.suppress(NovaError, OSError):
                await self._ports.expose(int(port), int(host_port))
        with contextlib.suppress(OSError):
            self._remember_ports()

    async def close_ports(self) -> None:
        """End every connection to a port, and listen no more."""
        if self._ports is not None:
            await self._ports.close()

    def dismiss(self, error: BaseException) -> None:
        """Close the gate, and tell its clients why."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.shut()
            # Apart, since a call through the gate may wait for this very task.
            self._closing = asyncio.create_task(gate.close(error))

    async def close(self, error: BaseException | None) -> None:
        """Close the gate. error: what its clients are told; None: to look for the next holder."""
        gate, self._gate = self._gate, None
        if gate is not None:
            await gate.close(error)
