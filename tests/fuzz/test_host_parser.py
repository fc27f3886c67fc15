"""Guests that send anything at all: the host stays bounded, ends every call, and keeps its tree."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from novasandbox.errors import NovaError
from novasandbox.guest import channel as channel_module
from novasandbox.guest.channel import Channel
from novasandbox.guest.files import Files
from novasandbox.guest.launch import Launch
from novasandbox.guest.processes import Processes
from novasandbox.guest.protocol import DEFAULT_WINDOW, MAX_WINDOW, Frame, Op, Tag
from novasandbox.guest.stream import Stream
from support.peer import (
    Connection,
    Peer,
    credit,
    data,
    end,
    fields,
    frame,
    record,
    reply,
    state,
)

pytestmark = pytest.mark.fuzz

# `make fuzz` can be told to take its time.
EXAMPLES = int(os.environ.get("NOVA_FUZZ_EXAMPLES", "60"))
PATIENCE = 20.0

STREAMS = st.integers(0, 9)
NUMBERS = st.one_of(
    st.integers(0, 40),
    st.sampled_from([DEFAULT_WINDOW, MAX_WINDOW, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]),
)
TAGS = st.sampled_from([int(tag) for tag in Tag] + [999])
FIELDS = st.lists(st.tuples(TAGS, st.one_of(NUMBERS, st.binary(max_size=12))), max_size=4)
CUT = b"cut"

FRAMES = st.one_of(
    st.builds(state, STREAMS).map(bytes),
    st.builds(lambda n, pairs: state(n, *pairs), STREAMS, FIELDS),
    st.builds(
        lambda n, first, received: state(
            n, (Tag.PID, 5), (Tag.FIRST1, first), (Tag.RECEIVED, received)
        ),
        STREAMS,
        NUMBERS,
        NUMBERS,
    ),
    st.builds(lambda n, s, pairs: reply(n, s, *pairs), STREAMS, st.integers(0, 4_095), FIELDS),
    st.builds(
        lambda n, at, size, channel: data(n, at, bytes(size), channel),
        STREAMS,
        NUMBERS,
        st.integers(0, 65_000),
        st.integers(0, 3),
    ),
    st.builds(
        lambda n, pairs: data(n, 0, record(*pairs)),
        STREAMS,
        FIELDS,
    ),
    st.builds(end, STREAMS, NUMBERS, st.integers(0, 2)),
    st.builds(credit, STREAMS, NUMBERS, NUMBERS),
    st.builds(
        lambda t, n, payload, channel: frame(t, n, payload, channel),
        st.integers(1, 0x23),
        STREAMS,
        st.binary(max_size=40),
        st.integers(0, 3),
    ),
    st.binary(max_size=60),
    st.integers(1, 5_000).map(bytes),
    st.just(CUT),
)


async def _use(channel: Channel) -> list[object]:
    """Every kind of operation at once; how each of them ended."""
    files, processes = Files(channel, "box"), Processes(channel, "box")

    async def talk() -> None:
        process = await processes.start(Launch(("cat",), stdin=True))
        await process.stdin.write(bytes(50_000))
        async for _ in process:
            pass
        await process.wait()

    async def watch() -> None:
        async for _ in files.watch("/"):
            pass

    calls: list[Awaitable[object]] = [
        processes.run(Launch(("x",), stdin=True), bytes(300_000), True),
        talk(),
        processes.list(),
        processes.attach(5),
        files.read("/f"),
        files.write("/f", bytes(300_000)),
        files.list("/"),
        files.stat("/"),
        watch(),
        channel.call(Op.METRICS),
    ]
    return await asyncio.gather(*calls, return_exceptions=True)


async def _meet(sent: list[bytes], seed: int) -> None:
    choose = random.Random(seed)
    strange: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: strange.append(context))
    with tempfile.TemporaryDirectory() as folder:
        async with Peer(Path(folder) / "s") as peer:
            channel, connection = await peer.connect()
            using = asyncio.create_task(_use(channel))
            await asyncio.sleep(0)
            try:
                async with asyncio.timeout(PATIENCE):
                    await _send_all(peer, connection, channel, sent, choose)
                    peer.stop()
                    ended = await using
            finally:
                using.cancel()
                await asyncio.gather(using, return_exceptions=True)
            for each in ended:
                if isinstance(each, BaseException):
                    assert isinstance(each, (NovaError, BrokenPipeError)), repr(each)
    assert strange == []


async def _send_all(
    peer: Peer, connection: Connection, channel: Channel, sent: list[bytes], choose: random.Random
) -> None:
    for piece in sent:
        if piece == CUT:
            connection.cut()
            if channel._error is not None:
                return
            again = await _accepted(peer, channel)
            if again is None:
                return
            connection = again
        elif choose.random() < 0.3:
            middle = choose.randint(0, len(piece))
            connection.send(piece[:middle])
            await asyncio.sleep(0)
            connection.send(piece[middle:])
        else:
            connection.send(piece)
        await asyncio.sleep(0)
        _check_bounds(channel)
    with contextlib.suppress(ConnectionError):  # The host has hung up by then.
        await connection.flush()
    for _ in range(10):
        await asyncio.sleep(0)
        _check_bounds(channel)
    connection.cut()


async def _accepted(peer: Peer, channel: Channel) -> Connection | None:
    """The host's next connection, unless it has given up."""
    coming = asyncio.create_task(peer.accept())
    while not coming.done():
        if channel._error is not None:
            coming.cancel()
            await asyncio.wait((coming,))
            return None
        await asyncio.wait((coming,), timeout=0.01)
    connection = coming.result()
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        await connection.attach(next_stream=20)
        return connection
    return None


def _check_bounds(channel: Channel) -> None:
    if channel._link is not None:
        assert len(channel._link._parser._rest) <= 65_536 + 12
    for stream in channel._streams.values():
        assert isinstance(stream, Stream)
        for output in stream.outputs.values():
            held = sum(len(piece) for _, piece in output._pieces)
            assert held <= output._window
            assert len(output._pieces) <= 1_100 + held // 8_000
        assert sum(len(piece) for _, piece in stream.input._unacknowledged) <= MAX_WINDOW


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(FRAMES, max_size=25), st.integers(0, 2**32))
def test_a_guest_that_sends_anything_ends_in_an_error_of_the_tree_or_in_a_result(
    sent: list[bytes], seed: int
) -> None:
    before = Channel.reconnect_deadline, channel_module._RECONNECT_PAUSE
    Channel.reconnect_deadline, channel_module._RECONNECT_PAUSE = 0.15, 0.005
    try:
        asyncio.run(_meet(sent, seed))
    finally:
        Channel.reconnect_deadline, channel_module._RECONNECT_PAUSE = before


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_a_conversation_with_a_bit_turned_over_ends_too(seed: int) -> None:
    """Frames that would be right one after the other, with one byte of all of them changed."""
    right = b"".join(
        [
            state(1, (Tag.PID, 5), (Tag.RECEIVED, 0)),
            data(1, 0, b"x" * 500),
            state(3),
            data(3, 0, record((Tag.STREAM, 1), (Tag.PID, 5), (Tag.ARG, b"x"))),
            end(3, len(record((Tag.STREAM, 1), (Tag.PID, 5), (Tag.ARG, b"x")))),
            reply(3),
            state(5),
            data(5, 0, b"y" * 700),
            end(5, 700),
            reply(5, 0, (Tag.SIZE, 700)),
            credit(1, 100, 300_000),
            end(1, 500),
            end(1, 0, 2),
            reply(1, 0, (Tag.EXIT, 3)),
            frame(Frame.HELLO, 0, fields((Tag.VERSION, 1))),
        ]
    )
    choose = random.Random(seed)
    changed = bytearray(right)
    changed[choose.randrange(len(right))] ^= 1 << choose.randrange(8)
    before = Channel.reconnect_deadline, channel_module._RECONNECT_PAUSE
    Channel.reconnect_deadline, channel_module._RECONNECT_PAUSE = 0.15, 0.005
    try:
        asyncio.run(_meet([bytes(changed)], seed))
    finally:
        Channel.reconnect_deadline, channel_module._RECONNECT_PAUSE = before
