"""Ports of the guest, opened on the host's loopback and carried over the channel."""

from __future__ import annotations

import asyncio
import contextlib
import errno

from novasandbox.errors import (
    GuestUnreachable,
    HostResourceExhausted,
    InvalidConfig,
    InvalidRequest,
    NovaError,
)
from novasandbox.guest.channel import Channel
from novasandbox.guest.protocol import STDOUT, Op, Tag

_CHUNK = 65_536
_MOST_CONNECTIONS = 256


class Ports:
    """The exposed ports of one sandbox."""

    def __init__(self, channel: Channel, sandbox_id: str) -> None:
        self._channel = channel
        self._sandbox_id = sandbox_id
        self._servers: dict[int, asyncio.Server] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()
        self.is_closed = False
        self.table: dict[int, int] = {}

    async def expose(self, port: int, host_port: int = 0) -> str:
        """Listen on 127.0.0.1 for guest port `port`; again gives the same address.

        host_port: 0 lets the host choose. Raises InvalidConfig for a number that is no port,
        InvalidRequest for one that only root may use, HostResourceExhausted when `host_port`
        is taken, GuestUnreachable when the sandbox ends meanwhile.
        """
        for number, low in ((port, 1), (host_port, 0)):
            if not low <= number <= 65_535:
                raise InvalidConfig(f"{number} is not a port", fix="Ports are 1 to 65535.")
        # Two calls at once for one port are to give one address.
        async with self._changing:
            if port not in self._servers:
                await self._listen(port, host_port)
            return f"127.0.0.1:{self.table[port]}"

    async def _listen(self, port: int, host_port: int) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._accept(port, reader, writer)

        try:
            server = await asyncio.start_server(accept, "127.0.0.1", host_port)
        except OSError as error:
            raise self._refused(host_port, error) from error
        if self.is_closed:  # It was, while we waited.
            server.close()
            raise GuestUnreachable(
                f"port {port} cannot be exposed: the sandbox ended", sandbox_id=self._sandbox_id
            )
        self._servers[port] = server
        self.table[port] = server.sockets[0].getsockname()[1]

    def _refused(self, host_port: int, error: OSError) -> NovaError:
        """Why the host does not listen there."""
        other = "or none to let the host choose."
        if error.errno in (errno.EACCES, errno.EPERM):
            return InvalidRequest(
                f"port {host_port} of this host is not yours to open",
                why=str(error),
                fix=f"Ports below 1024 are root's: give one from 1024 up, {other}",
                sandbox_id=self._sandbox_id,
            )
        if error.errno == errno.EADDRINUSE:
            what, why = f"port {host_port} of this host is taken", None
        else:
            what, why = f"this host cannot listen on port {host_port} of 127.0.0.1", str(error)
        return HostResourceExhausted(
            what, why=why, fix=f"Give another one, {other}", sandbox_id=self._sandbox_id
        )

    async def _accept(
        self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) <= _MOST_CONNECTIONS:
                await self._carry(port, reader, writer)
        except (OSError, NovaError, asyncio.CancelledError):
            # The peer sees its connection end; nobody waits for this task. A NovaError: the
            # sandbox is paused, or gone.
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort() if writer.is_closing() else writer.close()

    async def _carry(
        self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        stream = self._channel.request(Op.CONNECT, [(Tag.PORT, port)])
        try:
            if await stream.started() is None:
                writer.transport.abort()
                return

            async def inward() -> None:
                with contextlib.suppress(BrokenPipeError):
                    while data := await reader.read(_CHUNK):
                        await stream.input.send(data)
                stream.input.end()

            async def outward() -> None:
                while data := await stream.outputs[STDOUT].read():
                    writer.write(data)
                    await writer.drain()
                with contextlib.suppress(OSError):
                    writer.write_eof()

            into, out = asyncio.create_task(inward()), asyncio.create_task(outward())
            try:
                await asyncio.gather(into, out)
            finally:
                into.cancel()
                out.cancel()
                await asyncio.wait((into, out))
        finally:
            stream.release()

    async def unexpose(self, port: int) -> None:
        """Stop listening for `port`; connections that are open go on."""
        async with self._changing:
            self._stop(port)

    def _stop(self, port: int) -> None:
        server = self._servers.pop(port, None)
        self.table.pop(port, None)
        if server is not None:
            server.close()

    async def close(self) -> None:
        """Stop listening and end every connection."""
        self.is_closed = True
        for port in list(self._servers):
            self._stop(port)
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
