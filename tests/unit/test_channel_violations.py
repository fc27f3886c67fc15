"""A guest that breaks the protocol ends its connection, and nothing else."""

from __future__ import annotations

import asyncio
import gc
import struct
from collections.abc import Callable

import pytest

from novasandbox.errors import (
    NovaError,
    ProtocolViolation,
    VmmCrashed,
)
from novasandbox.guest.protocol import STDOUT, Frame, Op
from novasandbox.guest.stream import Stream
from support.linked import Linked, roundtrip, started
from support.peer import (
    DEADLINE,
    LONGEST,
    WINDOW,
    Peer,
    credit,
    data,
    end,
    frame,
    reply,
)


def _violations() -> dict[str, Callable[[int], bytes]]:
    big = bytes(32_768)
    return {
        "an unknown type": lambda n: frame(0x55, n),
        "too long": lambda n: struct.pack("<BBHII", Frame.DATA, 1, 0, n, LONGEST + 1),
        "no stream": lambda n: frame(Frame.REPLY, 0, bytes(4)),
        "a reserved field": lambda n: struct.pack("<BBHII", Frame.DATA, 1, 1, n, 9) + bytes(9),
        "channel 3": lambda n: data(n, 0, b"x", 3),
        "data for the guest": lambda n: data(n, 0, b"x", 0),
        "no data": lambda n: data(n, 0, b""),
        "a gap": lambda n: data(n, 1, b"x"),
        "a frame twice": lambda n: data(n, 0, b"xy") * 2,
        "another order": lambda n: data(n, 2, b"cd") + data(n, 0, b"ab"),
        "beyond the credit": lambda n: b"".join(
            data(n, at, big) for at in range(0, WINDOW + 1, len(big))
        ),
        "after the end": lambda n: end(n, 0) + data(n, 0, b"x"),
        "an early end": lambda n: data(n, 0, b"xyz") + end(n, 1),
        "a late end": lambda n: end(n, 1),
        "an end of a wrong size": lambda n: frame(Frame.END, n, bytes(7), 1),
        "credit never earned": lambda n: credit(n, 9 * WINDOW, 9 * WINDOW),
        "credit below what is consumed": lambda n: credit(n, 0, 0) + credit(n, 5, 4),
        "credit for output": lambda n: credit(n, 0, WINDOW, 1),
        "half a credit": lambda n: frame(Frame.CREDIT, n, bytes(8)),
        "half a status": lambda n: frame(Frame.REPLY, n, bytes(3)),
        "no error number": lambda n: reply(n, 2**32 - 1),
        "broken fields": lambda n: frame(Frame.REPLY, n, bytes(4) + b"\1\0\0\0\xff\0\0\0x"),
        "a request": lambda n: frame(Frame.REQUEST, n, bytes(2)),
        "a release": lambda n: frame(Frame.RELEASE, n),
        "a stream that nobody opened": lambda n: reply(n + 50),
        "attached again": lambda n: frame(Frame.ATTACHED, 0, bytes(24)),
        "attach": lambda n: frame(Frame.ATTACH, 0, bytes(34)),
        "goaway": lambda n: frame(Frame.GOAWAY, 0, b"you broke the protocol"),
    }


@pytest.mark.parametrize("kind", _violations())
async def test_a_violation_ends_every_pending_call_with_it(linked: Linked, kind: str) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    pending = [
        asyncio.create_task(channel.call(Op.PING)),
        asyncio.create_task(stream.input.send(bytes(2 * WINDOW))),
        asyncio.create_task(_drained(stream)),
        asyncio.create_task(stream.result()),
    ]
    await connection.request(Op.PING)
    connection.send(_violations()[kind](stream.id))
    async with asyncio.timeout(DEADLINE):
        ended = await asyncio.gather(*pending, return_exceptions=True)
    assert [type(each) for each in ended] == [ProtocolViolation] * 4
    await connection.ended()
    with pytest.raises(ProtocolViolation):
        channel.request(Op.PING)


async def _drained(stream: Stream) -> None:
    await asyncio.sleep(0)
    # Reads nothing before the end, so that credit is not given back.
    await stream.result()


async def test_output_of_an_operation_that_has_not_begun_is_a_violation(linked: Linked) -> None:
    channel, connection = linked
    stream = channel.request(Op.EXEC)
    connection.send(data((await connection.request(Op.EXEC)).stream, 0, b"x"))
    with pytest.raises(ProtocolViolation):
        await stream.result()


async def test_a_truncated_frame_waits_for_its_rest(linked: Linked) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    whole = data(stream.id, 0, b"whole")
    connection.send(whole[:-2])
    reading = asyncio.create_task(stream.outputs[STDOUT].read())
    await connection.flush()
    await asyncio.sleep(0)
    assert not reading.done()
    connection.send(whole[-2:])
    assert await reading == b"whole"


async def test_a_second_reply_changes_nothing(linked: Linked) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    connection.send(reply(stream.id, 0), reply(stream.id, 5), data(stream.id, 9, b"x"))
    await roundtrip(channel, connection)
    assert (await stream.result()).status == 0


async def test_a_violation_is_told_to_the_holder_which_names_the_error(peer: Peer) -> None:
    told: list[BaseException] = []

    async def on_lost(reason: BaseException) -> NovaError:
        told.append(reason)
        return VmmCrashed("what really happened")

    channel = peer.channel(on_lost=on_lost)
    opening = asyncio.create_task(channel.open(DEADLINE))
    connection = await peer.accept()
    await connection.attach()
    await opening
    call = asyncio.create_task(channel.call(Op.PING))
    connection.send(frame(0x66, 1))
    with pytest.raises(VmmCrashed, match="really"):
        await call
    assert isinstance(told[0], ProtocolViolation)


async def test_when_asking_for_the_error_fails_nobody_hangs(peer: Peer) -> None:
    async def on_lost(reason: BaseException) -> NovaError:
        raise RuntimeError("no idea")

    channel = peer.channel(on_lost=on_lost)
    opening = asyncio.create_task(channel.open(DEADLINE))
    connection = await peer.accept()
    await connection.attach()
    await opening
    call = asyncio.create_task(channel.call(Op.PING))
    failures: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    try:
        connection.send(frame(0x66, 1))
        with pytest.raises(ProtocolViolation):
            await call
        await asyncio.sleep(0)
        channel._reconnecting = None
        gc.collect()
    finally:
        loop.set_exception_handler(None)
