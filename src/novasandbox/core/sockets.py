"""Unix sockets in a sandbox's directory, however long its path is.

A socket's address holds 108 bytes, a path may have more; so the directory is opened and
the socket is reached through that descriptor where the system has /proc.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_LONGEST = 100


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`, mode 0600; one that a dead process left is replaced."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as name:
            server.bind(name)
        path.chmod(0o600)
        server.listen(128)
        server.setblocking(False)
    except BaseException:
        server.close()
        raise
    return server


async def connect(path: Path) -> socket.socket:
    """A socket connected to the one at `path`. Raises OSError."""
    loop = asyncio.get_running_loop()
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.setblocking(False)
    try:
        with _short(path) as name:
            await loop.sock_connect(client, name)
    except BaseException:
        client.close()
        raise
    return client


async def dial(path: Path, protocol: asyncio.Protocol) -> asyncio.Transport:
    """Connect `protocol` to the socket at `path`. Raises OSError."""
    client = await connect(path)
    try:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_unix_connection(lambda: protocol, sock=client)
    except BaseException:
        client.close()
        raise
    return transport
