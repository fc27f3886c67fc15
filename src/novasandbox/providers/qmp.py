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
            await self.close()
            raise VmmCrashed(
                f"QEMU did not take the command {command!r}", why=str(error) or repr(error)
            ) from error

    async def _connected(self) -> Any:
        from qemu.qmp import QMPClient

        async with self._connecting:
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
        """Close the connection. Harmless when repeated or when QEMU is gone."""
        client, self._client = self._client, None
        if client is not None:
            from qemu.qmp import QMPError

            # Where QEMU is gone already, that is what was wanted.
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()
