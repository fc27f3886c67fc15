"""QMP over a socket of ours, connected when it is first needed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

from novasandbox.core.sockets import connect
from novasandbox.errors import OperationFailed, VmmCrashed

_DEADLINE = 20.0


class Qmp:
    """Commands to one QEMU. path: its monitor's socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._client: Any = None
        self._connecting = asyncio.Lock()
        self._is_closed = False
        self._given_back: set[tuple[int, int | None]] = set()

    async def execute(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        descriptor: int | None = None,
    ) -> Any:
        """Run a command; gives what it returns. descriptor: sent along; QEMU gets a copy.

        Raises OperationFailed where QEMU refuses, VmmCrashed when it is gone.
        """
        from qemu.qmp import ExecuteError, QMPError

        try:
            async with asyncio.timeout(_DEADLINE):
                client = await self._connected()
                if descriptor is not None:
                    client.send_fd_scm(descriptor)
                return await client.execute(command, arguments)
        except ExecuteError as error:
            raise OperationFailed(
                f"QEMU refused the command {command!r}", why=str(error)
            ) from error
        except (OSError, EOFError, QMPError, TimeoutError) as error:
            await self._disconnect()
            raise VmmCrashed(
                f"QEMU did not take the command {command!r}", why=str(error) or repr(error)
            ) from error

    async def give_back(self, fdset: int, fd: int | None = None) -> None:
        """Have QEMU close a descriptor of a set that it was given; fd None: all of the set.

        It closes none while the guest stands still, without a word (monitor/fds.c): then
        `close_given_back` does it once the guest runs.

        Raises OperationFailed where there is none, VmmCrashed.
        """
        numbers = {"fdset-id": fdset} | ({} if fd is None else {"fd": fd})
        await self.execute("remove-fd", numbers)
        self.give_back_later(fdset, fd)

    def give_back_later(self, fdset: int, fd: int | None = None) -> None:
        """The same of a guest that stands still, when it runs again."""
        self._given_back.add((fdset, fd))

    async def close_given_back(self) -> None:
        """Have QEMU, whose guest runs, close what it was to give back. Raises VmmCrashed."""
        while self._given_back:
            fdset, fd = self._given_back.pop()
            # What was closed at once is not found any more.
            with contextlib.suppress(OperationFailed):
                await self.execute(
                    "remove-fd", {"fdset-id": fdset} | ({} if fd is None else {"fd": fd})
                )

    async def _connected(self) -> Any:
        from qemu.qmp import QMPClient

        async with self._connecting:
            if self._is_closed:
                raise ConnectionAbortedError("the machine was given up meanwhile")
            if self._client is None:
                channel: socket.socket = await connect(self._path)
                client = QMPClient("novasandbox")
                try:
                    await client.connect(channel)
                except BaseException:
                    channel.close()
                    raise
                self._client = client
            return self._client

    async def close(self) -> None:
        """Close the connection for good. Harmless when repeated or when QEMU is gone."""
        self._is_closed = True
        await self._disconnect()

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            from qemu.qmp import QMPError

            # Where QEMU is gone already, that is what was wanted.
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()
