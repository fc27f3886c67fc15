"""The small requests to a guest: settings, clock, metrics, shutdown."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from novasandbox.errors import GuestUnreachable, InvalidConfig, OperationFailed
from novasandbox.guest.channel import Channel
from novasandbox.guest.frames import Fields, FieldValue
from novasandbox.guest.launch import check_env
from novasandbox.guest.protocol import Op, Tag

_DEADLINE = 30.0


@dataclass(frozen=True, slots=True)
class GuestMetrics:
    """What the guest says of itself; sizes in bytes, times in seconds."""

    cpus: int
    cpu_seconds: float
    memory_total: int
    memory_available: int
    disk_total: int
    disk_used: int
    processes: int
    uptime: float
    load: float
    network_received: int
    network_sent: int
    out_of_memory_kills: int


class Guest:
    """Asks the agent for what concerns the guest as a whole."""

    def __init__(self, channel: Channel, sandbox_id: str) -> None:
        self._channel = channel
        self._sandbox_id = sandbox_id

    async def configure(
        self,
        *,
        hostname: str,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Make the guest itself: name, user, environment, and an identity of its own.

        Clock, entropy and machine-id come from the host, so that no two guests share them.
        user, cwd, env: None leaves them as they were set before.
        Raises InvalidConfig where the guest refuses, as for a user that it does not know.
        """
        fields: list[tuple[Tag, FieldValue]] = [
            (Tag.HOSTNAME, hostname),
            (Tag.MACHINE_ID, os.urandom(16).hex()),
            (Tag.ENTROPY, os.urandom(64)),
            *check_env(env),
        ]
        if user is not None:
            fields.append((Tag.USER, user))
        if cwd is not None:
            fields.append((Tag.CWD, cwd))
        fields.append((Tag.CLOCK, time.time_ns()))
        reply = await self._ask(Op.CONFIGURE, fields)
        if reply is not None:
            raise InvalidConfig(
                "the guest refused its settings", why=reply, sandbox_id=self._sandbox_id
            )

    async def ping(self, timeout: float = _DEADLINE) -> float:
        """Seconds for a round trip. Raises GuestUnreachable after `timeout` seconds."""
        start = time.perf_counter()
        await self._call(Op.PING, (), timeout)
        return time.perf_counter() - start

    async def renew(self) -> None:
        """Fresh entropy and the right time, for a guest that goes on after a sleep."""
        await self._call(Op.ENTROPY, [(Tag.ENTROPY, os.urandom(64))])
        await self.set_clock()

    async def set_clock(self) -> None:
        """Set the guest's clock to the host's."""
        await self._call(Op.CLOCK, [(Tag.CLOCK, time.time_ns())])

    async def metrics(self) -> GuestMetrics:
        """CPU, memory, disk, load and network, as the guest sees them."""
        fields = await self._call(Op.METRICS, ())
        number = fields.number
        return GuestMetrics(
            cpus=number(Tag.CPUS),
            cpu_seconds=number(Tag.CPU_USEC) / 1e6,
            memory_total=number(Tag.MEM_TOTAL),
            memory_available=number(Tag.MEM_AVAILABLE),
            disk_total=number(Tag.DISK_TOTAL),
            disk_used=number(Tag.DISK_USED),
            processes=number(Tag.PROCESSES),
            uptime=number(Tag.UPTIME_USEC) / 1e6,
            load=number(Tag.LOAD) / 1000,
            network_received=number(Tag.NET_RX),
            network_sent=number(Tag.NET_TX),
            out_of_memory_kills=number(Tag.OOM_KILLS),
        )

    async def shutdown(self) -> None:
        """Ask the guest to end its processes, write its disk, and power off."""
        await self._call(Op.SHUTDOWN, ())

    async def _call(
        self,
        op: Op,
        fields: tuple[()] | list[tuple[Tag, FieldValue]],
        timeout: float = _DEADLINE,
    ) -> Fields:
        try:
            reply = await self._channel.call(op, fields, timeout=timeout)
        except TimeoutError as error:
            raise GuestUnreachable(
                f"the guest did not answer within {timeout:g} s", sandbox_id=self._sandbox_id
            ) from error
        if reply.status:
            raise OperationFailed(
                f"the guest could not do {op.name}",
                why=os.strerror(reply.status),
                sandbox_id=self._sandbox_id,
            )
        return reply.fields

    async def _ask(self, op: Op, fields: list[tuple[Tag, FieldValue]]) -> str | None:
        """None when it was done, else why not."""
        try:
            reply = await self._channel.call(op, fields, timeout=_DEADLINE)
        except TimeoutError as error:
            raise GuestUnreachable(
                "the guest did not take its settings", sandbox_id=self._sandbox_id
            ) from error
        if not reply.status:
            return None
        return reply.fields.text(Tag.MESSAGE)[:300] or os.strerror(reply.status)
