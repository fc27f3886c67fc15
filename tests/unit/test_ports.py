"""Ports of a guest on the host's loopback, whatever happens while one is opened or used."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from novasandbox.core.hypervisor import SandboxState
from novasandbox.core.ports import Ports
from novasandbox.errors import (
    GuestUnreachable,
    HostResourceExhausted,
    IllegalTransition,
    InvalidRequest,
)
from support.linked import Linked


@pytest.fixture
async def ports(linked: Linked) -> AsyncIterator[Ports]:
    """Nothing is exposed yet."""
    opened = Ports(linked[0], "box")
    yield opened
    await opened.close()


async def test_two_calls_at_once_give_one_address(ports: Ports) -> None:
    first, second = await asyncio.gather(ports.expose(80), ports.expose(80))
    assert first == second
    await ports.unexpose(80)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(first.rpartition(":")[2]))


async def test_a_port_that_opens_while_the_sandbox_ends_is_closed_again(
    ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, servers = asyncio.start_server, []

    async def slow(*arguments: Any, **more: Any) -> asyncio.Server:
        servers.append(await start(*arguments, **more))
        await ports.close()
        return servers[0]

    monkeypatch.setattr(asyncio, "start_server", slow)
    with pytest.raises(GuestUnreachable, match="ended"):
        await ports.expose(80)
    assert not servers[0].is_serving()
    assert ports.table == {}


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, InvalidRequest),
        (errno.EADDRINUSE, HostResourceExhausted),
        (errno.EADDRNOTAVAIL, HostResourceExhausted),
        (errno.EMFILE, HostResourceExhausted),
    ],
)
async def test_a_port_that_the_host_refuses_says_what_to_do(
    ports: Ports, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    async def refused(*arguments: Any) -> asyncio.Server:
        raise OSError(number, "refused")

    monkeypatch.setattr(asyncio, "start_server", refused)
    with pytest.raises(kind, match="host choose"):
        await ports.expose(80, 443)


async def test_a_port_that_is_taken_is_told(ports: Ports) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(HostResourceExhausted, match="taken"),
    ):
        await ports.expose(80, taken.getsockname()[1])


async def test_a_connection_to_a_paused_sandbox_ends_quietly(linked: Linked, ports: Ports) -> None:
    channel, _ = linked
    channel.refusal = IllegalTransition(
        "cannot", current=SandboxState.PAUSED, required=(SandboxState.RUNNING,)
    )
    loop = asyncio.get_running_loop()
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    try:
        host, _, port = (await ports.expose(80)).rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await reader.read() == b""
        writer.close()
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(None)
    assert unhandled == []
