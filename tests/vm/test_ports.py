"""Ports of the guest on this host: what answers, what is refused, when they are gone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novasandbox import Process, Sandbox
from novasandbox.errors import HostResourceExhausted, InvalidConfig
from waiting import until

pytestmark = pytest.mark.vm

# Says where it listens and then gives back what it gets, after a greeting.
ECHO = """
import asyncio, sys
async def serve(reader, writer):
    writer.write(b"hello\\n")
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write(b"goodbye\\n")
    writer.close()
async def main():
    servers = [await asyncio.start_server(serve, host, int(port))
               for host, port in zip(sys.argv[1::2], sys.argv[2::2])]
    print("listening", flush=True)
    await asyncio.gather(*(s.serve_forever() for s in servers))
asyncio.run(main())
"""
HOSTS = {7001: "127.0.0.1", 7002: "0.0.0.0", 7003: "::1", 7004: "::"}


async def _serve(sandbox: Sandbox) -> Process:
    words = [word for port, host in HOSTS.items() for word in (host, str(port))]
    process = await sandbox.start(["python3", "-c", ECHO, *words])
    async for output in process:
        assert output.text == "listening\n"
        break
    return process


@pytest.fixture(scope="module")
async def served(sandbox: Sandbox) -> AsyncIterator[Sandbox]:
    """The shared sandbox, with an echo server on each kind of address."""
    process = await _serve(sandbox)
    yield sandbox
    for port in HOSTS:
        await sandbox.unexpose(port)
    await process.kill()
    await process.wait()


async def _talk(address: str, data: bytes) -> bytes:
    """All that a server answers to `data` and the end of it."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        answer = asyncio.create_task(reader.read(-1))
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(60):
            return await answer
    finally:
        writer.close()
        await writer.wait_closed()


def _is_refused(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("port", HOSTS)
async def test_a_server_on_any_address_answers(served: Sandbox, port: int) -> None:
    address = await served.expose(port)
    assert address.startswith("127.0.0.1:")
    assert await _talk(address, b"ping\n") == b"hello\nping\ngoodbye\n"
    assert await served.expose(port) == address
    assert (await served.info()).ports[port] == address


async def test_large_data_goes_both_ways_on_many_connections(served: Sandbox) -> None:
    address = await served.expose(7001)
    pieces = [bytes([number]) * 300_000 for number in range(6)]
    answers = await asyncio.gather(*(_talk(address, piece) for piece in pieces))
    assert answers == [b"hello\n" + piece + b"goodbye\n" for piece in pieces]


async def test_a_port_that_nobody_serves_ends_the_connection(served: Sandbox) -> None:
    address = await served.expose(7999)
    try:
        answer = await _talk(address, b"anybody?")
    except (ConnectionResetError, BrokenPipeError):
        answer = b""
    assert answer == b""
    await served.unexpose(7999)
    assert _is_refused(address)


async def test_a_client_that_reads_slowly_holds_up_nobody_else(served: Sandbox) -> None:
    address = await served.expose(7001)
    host, _, port = address.rpartition(":")
    _, slow_writer = await asyncio.open_connection(host, int(port))
    flooding = asyncio.create_task(_flood(slow_writer))
    assert await _talk(address, b"quick") == b"hello\nquickgoodbye\n"
    assert (await served.exec("echo on")).stdout == "on\n"
    flooding.cancel()
    slow_writer.transport.abort()
    await asyncio.wait((flooding,))
    assert await _talk(address, b"after") == b"hello\naftergoodbye\n"


async def _flood(writer: asyncio.StreamWriter) -> None:
    for _ in range(128):
        writer.write(bytes(65_536))
        await writer.drain()


async def test_a_taken_port_of_the_host_is_named(served: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(HostResourceExhausted, match=str(number)):
            await served.expose(7005, host_port=number)
    assert await served.expose(7005, host_port=number) == f"127.0.0.1:{number}"
    await served.unexpose(7005)


@pytest.mark.parametrize("port", [0, -1, 65_536])
async def test_what_is_no_port_is_refused(served: Sandbox, port: int) -> None:
    with pytest.raises(InvalidConfig):
        await served.expose(port)


async def test_only_this_hosts_loopback_is_listened_on(served: Sandbox) -> None:
    address = await served.expose(7001)
    port = int(address.rpartition(":")[2])
    listening = [
        line.split()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"]


async def test_a_mapping_goes_with_its_sandbox_and_none_waits_for_its_name(
    own_sandbox: Sandbox,
) -> None:
    process = await own_sandbox.start(["python3", "-c", ECHO, "127.0.0.1", "7001"])
    address = await own_sandbox.expose(7001)
    host, _, port = address.rpartition(":")

    async def answers() -> bool:
        try:
            return (await _talk(address, b"x")).startswith(b"hello")
        except ConnectionError:
            return False

    await until(answers)
    reader, writer = await asyncio.open_connection(host, int(port))
    assert await reader.readline() == b"hello\n"
    await own_sandbox.kill()
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read(-1) == b""
    writer.close()
    assert _is_refused(address)
    assert process.pid
