"""Other processes use a sandbox through its holder, and notice none of its lost connections."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from novasandbox.core import sockets, verbs
from novasandbox.core.gate import Gate
from novasandbox.core.hypervisor import SandboxState
from novasandbox.core.session import RemoteChannel, call
from novasandbox.core.sleeping import asleep_error
from novasandbox.errors import (
    GuestUnreachable,
    HostResourceExhausted,
    IllegalTransition,
    InvalidRequest,
    NovaError,
    OperationFailed,
    ProtocolViolation,
)
from novasandbox.guest import channel as channel_module
from novasandbox.guest.channel import Channel
from novasandbox.guest.launch import Launch
from novasandbox.guest.processes import Processes
from novasandbox.guest.protocol import MAX_WINDOW, STDOUT, Frame, Op, Tag
from support.echo import EchoAgent
from support.linked import Linked
from support.peer import DEADLINE, Peer, data, end, noise, record, reply, state
from waiting import until


@dataclass
class Held:
    """What the gate asks of a holder."""

    channel: Channel
    id: str = "0123456789ab"
    failure: NovaError | None = None
    state: SandboxState = SandboxState.RUNNING


class Door:
    """A gate, and the clients that came through it."""

    def __init__(self, channel: Channel, path: Path) -> None:
        self._path = path
        self._gate = Gate(cast("Any", Held(channel)), path)
        self._clients: list[RemoteChannel] = []

    async def open(self) -> None:
        await self._gate.open()

    async def client(self) -> RemoteChannel:
        """Another process's channel."""

        async def dial(protocol: asyncio.Protocol) -> asyncio.Transport:
            return await sockets.dial(self._path, protocol)

        client = RemoteChannel(dial, holder=b"a-client-process")
        await client.open(DEADLINE)
        self._clients.append(client)
        return client

    async def leave(self) -> None:
        """The holder goes: the sandbox sleeps."""
        await self._gate.close(asleep_error("0123456789ab"))

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        await self._gate.close(GuestUnreachable("the test is over"))


@pytest.fixture
async def door(linked: Linked, tmp_path: Path) -> AsyncIterator[Door]:
    """A gate before a guest that the test plays."""
    opened = Door(linked[0], tmp_path / "api.sock")
    await opened.open()
    yield opened
    await opened.close()


async def test_a_client_starts_a_process_and_waits_for_it(linked: Linked, door: Door) -> None:
    _, connection = linked
    client = await door.client()
    running = asyncio.create_task(Processes(client, "box").run(Launch(("x",)), None, False))
    number = (await connection.request(Op.EXEC)).stream
    connection.send(state(number, (Tag.PID, 7)), data(number, 0, b"out"))
    connection.send(end(number, 3), end(number, 0, 2), reply(number, 0, (Tag.EXIT, 4)))
    result = await running
    assert (result.stdout, result.exit_code) == ("out", 4)
    assert (await connection.expect(Frame.RELEASE)).stream == number


async def test_two_clients_have_numbers_of_their_own(linked: Linked, door: Door) -> None:
    _, connection = linked
    calls = [
        asyncio.create_task((await door.client()).call(Op.PING, [(Tag.NAME, name)]))
        for name in ("a", "b")
    ]
    for _ in calls:
        heard = await connection.request(Op.PING)
        connection.send(reply(heard.stream, 0, (Tag.NAME, heard.fields[Tag.NAME][0])))
    assert [(await call).fields.text(Tag.NAME) for call in calls] == ["a", "b"]


async def test_attaching_from_another_process_does_not_disturb_its_other_streams(
    linked: Linked, door: Door
) -> None:
    """The guest's number of a process may be one that the client uses for something else."""
    holders, connection = linked
    holders.request(Op.EXEC)
    assert (await connection.request(Op.EXEC)).stream == 1
    connection.send(state(1, (Tag.PID, 31)))
    client = await door.client()
    pending = asyncio.create_task(client.call(Op.METRICS))
    metrics = (await connection.request(Op.METRICS)).stream
    attaching = asyncio.create_task(Processes(client, "box").attach(31))
    number = (await connection.request(Op.PROCESSES)).stream
    # The process has the guest's number 1, as the client's METRICS has the client's 1.
    body = record((Tag.STREAM, 1), (Tag.PID, 31), (Tag.ARG, b"x"))
    connection.send(state(number), data(number, 0, body), end(number, len(body)), reply(number))
    heard = await connection.expect(Frame.RESUME)
    assert heard.stream == 1
    connection.send(state(1, (Tag.PID, 31)), data(1, 0, b"held"))
    process = await attaching
    connection.send(reply(metrics, 0, (Tag.CPUS, 3)))
    connection.send(end(1, 4), end(1, 0, 2), reply(1, 0, (Tag.EXIT, 0)))
    assert (await process.wait()).stdout == "held"
    assert (await pending).fields.number(Tag.CPUS) == 3


async def test_the_reader_before_is_told_when_another_attaches(linked: Linked, door: Door) -> None:
    _, connection = linked
    first, second = await door.client(), await door.client()
    starting = asyncio.create_task(Processes(first, "box").start(Launch(("x",), background=True)))
    number = (await connection.request(Op.EXEC)).stream
    connection.send(state(number, (Tag.PID, 7)))
    process = await starting
    waiting = asyncio.create_task(process.wait())
    stream = second.adopt(number)
    await connection.expect(Frame.RESUME)
    connection.send(data(number, 5, b"in flight"), state(number, (Tag.PID, 7)))
    connection.send(data(number, 0, b"hello"))
    assert await stream.outputs[STDOUT].read() == b"hello"
    with pytest.raises(NovaError, match="no longer ours"):
        await waiting


@pytest.mark.parametrize("seed", range(3))
async def test_clients_notice_no_connection_that_the_holder_loses(
    peer: Peer, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "_RECONNECT_PAUSE", 0.0)
    agent = EchoAgent(peer, seed, patience=(1, 25), cuts=20)
    serving = asyncio.create_task(agent.run())
    channel = peer.channel()
    door = Door(channel, tmp_path / "api.sock")
    try:
        await channel.open(DEADLINE)
        await door.open()
        client = await door.client()
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*[_echoed(client, 50_000 + 150_000 * n) for n in range(3)])
    finally:
        await door.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    assert agent.cuts < 20


async def _echoed(channel: Channel, size: int) -> None:
    body = noise(size)
    stream = channel.request(Op.EXEC, [(Tag.STDIN, 1)])
    await stream.started()

    async def feed() -> None:
        await stream.input.send(body)
        stream.input.end()

    feeding = asyncio.create_task(feed())
    try:
        got = bytearray()
        while piece := await stream.outputs[STDOUT].read():
            got += piece
        assert got == body
        assert (await stream.result()).fields.number(Tag.EXIT) == 7
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    stream.release()


async def test_a_cancel_and_a_release_reach_a_guest_that_was_away(
    peer: Peer, linked: Linked, door: Door
) -> None:
    _, connection = linked
    client = await door.client()
    streams = [client.request(Op.EXEC) for _ in range(2)]
    numbers = []
    for _ in streams:
        numbers.append((await connection.request(Op.EXEC)).stream)
        connection.send(state(numbers[-1], (Tag.PID, 7)))
    for stream in streams:
        await stream.started()
    connection.cut()
    away = await peer.accept()
    streams[0].cancel()
    streams[1].release()
    # An answer of the holder's own: what went before it has arrived there.
    third = client.request(0x8001, [(Tag.MESSAGE, "{}")])
    await third.result()
    await away.attach()
    heard = [await away.read() for _ in range(3)]
    assert {(each.type, each.stream) for each in heard} == {
        (Frame.RESUME, numbers[0]),
        (Frame.CANCEL, numbers[0]),
        (Frame.RELEASE, numbers[1]),
    }
    away.send(reply(numbers[0], errno.ECANCELED))
    assert (await streams[0].result()).status == errno.ECANCELED


async def test_a_guest_cannot_speak_for_its_holder(linked: Linked, door: Door) -> None:
    _, connection = linked
    client = await door.client()
    call = asyncio.create_task(client.call(Op.PING))
    number = (await connection.request(Op.PING)).stream
    told = b'{"type": "SandboxExpired", "what": "it is over"}'
    connection.send(reply(number, errno.EAGAIN, (Tag.FAILURE, told)))
    with pytest.raises(ProtocolViolation, match="speaks for its holder"):
        await call


async def test_a_verb_that_fails_in_any_way_is_answered(
    linked: Linked, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await door.client()
    for error, kind in (
        (OSError(errno.ENOSPC, "full"), HostResourceExhausted),
        (OSError(errno.EIO, "broken"), OperationFailed),
        (RuntimeError("unforeseen"), OperationFailed),
        (InvalidRequest("no", why="\U0001f600" * 9_000, fix="\x01" * 9_000), InvalidRequest),
    ):

        async def fails(*arguments: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(verbs, "perform", fails)
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(kind):
                await call(client, "pause")


@pytest.mark.parametrize("text", [b"", b"[1]", b"\xff", b"[" * 50_000, b'{"errno": 1e999}', b"5"])
async def test_an_error_of_a_holder_that_cannot_be_read_ends_the_call_alone(
    peer: Peer, text: bytes
) -> None:
    client = RemoteChannel(peer.dial, holder=b"a-client-process")
    opening = asyncio.create_task(client.open(DEADLINE))
    connection = await peer.accept()
    await connection.attach()
    await opening
    try:
        if text:
            asked = asyncio.create_task(client.call(Op.PING))
            number = (await connection.request(Op.PING)).stream
            connection.send(reply(number, errno.EIO, (Tag.FAILURE, text)))
            with pytest.raises(NovaError):
                await asked
        asked_verb = asyncio.create_task(call(client, "pause"))
        heard = await connection.expect(Frame.REQUEST)
        connection.send(reply(heard.stream, 0, (Tag.MESSAGE, text)))
        with pytest.raises(NovaError):
            await asked_verb
        assert client.connected
    finally:
        await client.close()


async def test_a_client_is_not_dropped_for_output_that_it_asked_for(
    linked: Linked, door: Door
) -> None:
    """Twelve streams of 1 MiB each, that nobody reads while they are sent."""
    _, connection = linked
    client = await door.client()
    streams = [client.request(Op.READ, window=MAX_WINDOW) for _ in range(12)]
    transport = client._link._transport  # type: ignore[union-attr]
    assert transport is not None
    transport.pause_reading()
    piece = noise(2**15)
    for _ in streams:
        number = (await connection.request(Op.READ)).stream
        connection.send(state(number))
        connection.send(*(data(number, at, piece) for at in range(0, MAX_WINDOW, len(piece))))
        connection.send(end(number, MAX_WINDOW), end(number, 0, 2), reply(number))
    await connection.flush()
    await asyncio.sleep(0.2)
    transport.resume_reading()
    async with asyncio.timeout(DEADLINE):
        for stream in streams:
            assert (await stream.result()).status == 0


@pytest.mark.parametrize("number", [0, 2**31, 2**40])
async def test_a_number_that_no_stream_has_ends_the_attaching_alone(
    linked: Linked, door: Door, number: int
) -> None:
    _, connection = linked
    client = await door.client()
    stream = client.adopt(number)
    with pytest.raises(ProtocolViolation):
        await stream.result()
    asked = asyncio.create_task(client.call(Op.PING))
    connection.send(reply((await connection.request(Op.PING)).stream))
    await asked


async def test_a_request_of_a_client_is_nobodys_process(linked: Linked, door: Door) -> None:
    _, connection = linked
    client = await door.client()
    asked = asyncio.create_task(client.call(Op.METRICS))
    number = (await connection.request(Op.METRICS)).stream
    with pytest.raises(ProtocolViolation, match="is none"):
        await (await door.client()).adopt(number).result()
    connection.send(reply(number, 0, (Tag.CPUS, 3)))
    assert (await asked).fields.number(Tag.CPUS) == 3


async def test_a_request_that_a_leaving_holder_did_not_take_is_run_once_by_the_next(
    linked: Linked, door: Door
) -> None:
    _, connection = linked
    client = await door.client()
    woken = []

    async def wake() -> None:
        woken.append(1)
        await door.open()

    client.wake = wake
    taken = asyncio.create_task(client.call(Op.PING))
    first = await connection.request(Op.PING)
    leaving = asyncio.create_task(door.leave())
    # On its way while the holder says goodbye, after it, and when all is over.
    calls = []
    for _ in range(40):
        calls.append(asyncio.create_task(client.call(Op.METRICS)))
        await asyncio.sleep(0)
    with pytest.raises(IllegalTransition, match="hibernated"):
        await taken
    await leaving
    calls.append(asyncio.create_task(client.call(Op.METRICS)))
    numbers = set()
    for _ in calls:
        heard = await connection.request(Op.METRICS)
        numbers.add(heard.stream)
        connection.send(reply(heard.stream))
    await asyncio.gather(*calls)
    assert len(numbers) == len(calls)
    assert first.stream not in numbers
    assert woken


async def test_who_rests_is_told_to_the_holder_and_roused_by_the_next_write(
    linked: Linked, door: Door
) -> None:
    holders, connection = linked
    client = await door.client()
    starting = asyncio.create_task(
        Processes(client, "box").start(Launch(("x",), background=True, stdin=True))
    )
    number = (await connection.request(Op.EXEC)).stream
    connection.send(state(number, (Tag.PID, 7), (Tag.RECEIVED, 0)))
    process = await starting
    await until(lambda: not holders.busy, within=DEADLINE)
    roused = []

    async def rouse() -> None:
        roused.append(1)

    holders.stand_by(rouse)
    await process.stdin.write(b"word")
    heard = await connection.expect(Frame.DATA)
    assert (heard.stream, heard.data, roused) == (number, b"word", [1])
    waiting = asyncio.create_task(process.wait())
    await until(lambda: holders.busy, within=DEADLINE)
    connection.send(end(number, 0), end(number, 0, 2), reply(number, 0, (Tag.EXIT, 0)))
    assert (await waiting).exit_code == 0
