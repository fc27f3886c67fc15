"""A lost connection is noticed by no stream, and a stream can change its reader."""

from __future__ import annotations

import asyncio
import errno

import pytest

from novasandbox.errors import (
    GuestUnreachable,
    ProtocolViolation,
)
from novasandbox.guest import channel as channel_module
from novasandbox.guest.channel import Channel
from novasandbox.guest.files import Files
from novasandbox.guest.protocol import STDERR, STDOUT, Frame, Op, Tag
from support.echo import EchoAgent
from support.linked import Linked, roundtrip, started
from support.peer import (
    DEADLINE,
    WINDOW,
    Peer,
    credit,
    data,
    end,
    frame,
    noise,
    reply,
    state,
)

# Lost connections.


async def test_a_lost_connection_is_dialled_again_and_calls_go_on(
    peer: Peer, linked: Linked
) -> None:
    channel, connection = linked
    call = asyncio.create_task(channel.call(Op.PING))
    first = await connection.request(Op.PING)
    connection.cut()
    connection = await peer.reconnected()
    again = await connection.request(Op.PING)
    assert again == first
    connection.send(reply(again.stream))
    await call


async def test_a_request_made_while_there_is_no_connection_is_sent_with_the_next(
    peer: Peer, linked: Linked
) -> None:
    channel, connection = linked
    connection.cut()
    lost = await peer.accept()
    call = asyncio.create_task(channel.call(Op.PING))
    await lost.attach()
    heard = await lost.request(Op.PING)
    lost.send(reply(heard.stream))
    await call


async def test_output_goes_on_where_it_stood(peer: Peer, linked: Linked) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    connection.send(data(stream.id, 0, b"abcdef"), data(stream.id, 0, b"E", 2))
    assert await stream.outputs[STDOUT].read() == b"abcdef"
    connection.cut()
    connection = await peer.reconnected()
    heard = await connection.expect(Frame.RESUME)
    # One byte of channel 2 was not read: the guest still holds it, so it is asked for again.
    assert (heard.offset, heard.second) == (6, 0)
    connection.send(state(stream.id, (Tag.RECEIVED, 0), (Tag.FIRST1, 6), (Tag.FIRST2, 0)))
    connection.send(data(stream.id, 0, b"E", 2), data(stream.id, 6, b"ghi"))
    connection.send(end(stream.id, 9), end(stream.id, 1, 2), reply(stream.id))
    assert await stream.outputs[STDOUT].read() == b"ghi"
    assert await stream.outputs[STDERR].read() == b"E"
    assert await stream.outputs[STDOUT].read() == b""


async def test_breaking_the_connection_time_and_again_earns_no_credit(
    peer: Peer, linked: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "_RECONNECT_PAUSE", 0.0)
    channel, connection = linked
    stream = await started(channel, connection)
    body = [data(stream.id, at, bytes(32_768)) for at in range(0, WINDOW, 32_768)]
    for _ in range(5):
        connection.send(*body)
        await connection.flush()
        connection.cut()
        connection = await peer.reconnected()
        heard = await connection.expect(Frame.RESUME)
        assert heard.offset == 0
        connection.send(state(stream.id, (Tag.RECEIVED, 0)))
    connection.send(*body)
    await roundtrip(channel, connection)
    assert stream.outputs[STDOUT].received == WINDOW
    connection.send(data(stream.id, WINDOW, b"x"))
    with pytest.raises(ProtocolViolation):
        await stream.result()


async def test_input_that_got_lost_is_sent_again_once(peer: Peer, linked: Linked) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    body = noise(100_000)
    await stream.input.send(body)
    stream.input.end()
    await connection.input(len(body))
    connection.send(credit(stream.id, 40_000, 40_000 + WINDOW))
    await roundtrip(channel, connection)
    connection.cut()
    connection = await peer.reconnected()
    await connection.expect(Frame.RESUME)
    connection.send(state(stream.id, (Tag.RECEIVED, 55_555)))
    assert await connection.input(len(body) - 55_555) == body[55_555:]
    assert (await connection.expect(Frame.END)).offset == len(body)


async def test_nothing_is_sent_before_the_guest_has_said_where_to_go_on(
    peer: Peer, linked: Linked
) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    await stream.input.send(b"first")
    connection.cut()
    connection = await peer.reconnected()
    await connection.expect(Frame.RESUME)
    await stream.input.send(b"second")
    stream.input.end()
    await roundtrip(channel, connection)  # Whatever else was sent would be before it.
    connection.send(state(stream.id, (Tag.RECEIVED, 2)))
    assert await connection.input(9) == b"rstsecond"
    assert (await connection.expect(Frame.END)).offset == 11


async def test_input_sent_with_a_request_that_got_lost_is_sent_again(
    peer: Peer, linked: Linked
) -> None:
    channel, connection = linked
    writing = asyncio.create_task(Files(channel, "box").write("/f", b"0123456789"))
    await connection.request(Op.WRITE)
    await connection.input(10)
    connection.cut()
    connection = await peer.reconnected()
    heard = await connection.request(Op.WRITE)
    connection.send(state(heard.stream, (Tag.RECEIVED, 0)))
    assert await connection.input(10) == b"0123456789"
    await connection.expect(Frame.END)
    connection.send(state(heard.stream, (Tag.RECEIVED, 10)), reply(heard.stream, 0, (Tag.SIZE, 10)))
    await writing


async def test_the_first_bytes_leave_with_the_request_and_are_sent_again_once(
    peer: Peer, linked: Linked
) -> None:
    channel, connection = linked
    stream = channel.request(Op.CONNECT, [(Tag.PATH, b"\0name")], data=b"first")
    heard = await connection.request(Op.CONNECT)
    assert heard.fields == {Tag.PATH: [b"\0name"]}
    assert await connection.input(5) == b"first"
    connection.cut()
    connection = await peer.reconnected()
    assert (await connection.request(Op.CONNECT)).fields == heard.fields
    connection.send(state(stream.id, (Tag.RECEIVED, 2)))
    assert await connection.input(3) == b"rst"
    await stream.input.send(b"second")
    assert await connection.input(6) == b"second"
    stream.release()


async def test_nobody_waits_for_a_stream_that_rests(linked: Linked) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    seen = [channel.busy]
    for over in (False, True, False):
        channel.rest(stream, over=over)
        seen.append(channel.busy)
    assert seen == [True, False, True, False]
    stream.release()
    assert not channel.busy


@pytest.mark.parametrize("received", [3, 11])
async def test_a_guest_that_lost_input_or_made_some_up_breaks_the_protocol(
    peer: Peer, linked: Linked, received: int
) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    await stream.input.send(b"0123456789")
    await connection.input(10)
    connection.send(credit(stream.id, 5, WINDOW))
    await roundtrip(channel, connection)
    connection.cut()
    connection = await peer.reconnected()
    await connection.expect(Frame.RESUME)
    connection.send(state(stream.id, (Tag.RECEIVED, received)))
    with pytest.raises(ProtocolViolation):
        await stream.result()


async def test_output_may_not_be_skipped_by_a_guest_that_was_read_from(
    peer: Peer, linked: Linked
) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    connection.cut()
    connection = await peer.reconnected()
    await connection.expect(Frame.RESUME)
    connection.send(state(stream.id, (Tag.RECEIVED, 0), (Tag.FIRST1, 10)))
    with pytest.raises(ProtocolViolation, match="missing"):
        await stream.result()


async def test_a_cancel_that_got_lost_is_sent_again(peer: Peer, linked: Linked) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    connection.cut()
    lost = await peer.accept()
    stream.cancel()
    await lost.attach()
    assert (await lost.expect(Frame.RESUME)).stream == stream.id
    assert (await lost.expect(Frame.CANCEL)).stream == stream.id


@pytest.mark.parametrize("farewell", [Frame.RELEASE, Frame.DETACH])
async def test_who_lets_go_while_there_is_no_connection_is_heard_later(
    peer: Peer, linked: Linked, farewell: Frame
) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    connection.cut()
    lost = await peer.accept()
    stream.release() if farewell is Frame.RELEASE else stream.detach()
    await lost.attach()
    heard = await lost.read()
    assert (heard.type, heard.stream) == (farewell, stream.id)
    await roundtrip(channel, lost)


async def test_a_sender_waits_for_the_connection_to_come_back(peer: Peer, linked: Linked) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    connection.cut()
    lost = await peer.accept()
    body = noise(WINDOW)
    sending = asyncio.create_task(stream.input.send(body))
    await lost.attach()
    await lost.expect(Frame.RESUME)
    lost.send(state(stream.id, (Tag.RECEIVED, 0)))
    assert await lost.input(WINDOW) == body
    await sending


async def test_a_guest_that_was_started_anew_is_another(peer: Peer, linked: Linked) -> None:
    channel, connection = linked
    call = asyncio.create_task(channel.call(Op.PING))
    await connection.request(Op.PING)
    connection.cut()
    connection = await peer.accept()
    await connection.attach(boot_id=b"another boot")
    with pytest.raises(GuestUnreachable, match="anew"):
        await call


async def test_what_cannot_be_dialled_again_fails_within_its_deadline(
    peer: Peer, linked: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Channel, "reconnect_deadline", 0.1)
    channel, connection = linked
    call = asyncio.create_task(channel.call(Op.PING))
    await connection.request(Op.PING)
    peer.stop()
    connection.cut()
    with pytest.raises(GuestUnreachable, match="lost"):
        await call


async def test_a_guest_that_always_hangs_up_is_given_up(
    peer: Peer, linked: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Channel, "reconnect_deadline", 0.3)
    channel, connection = linked
    call = asyncio.create_task(channel.call(Op.PING))

    async def hang_up() -> None:
        connection.cut()
        while True:
            again = await peer.accept()
            await again.attach()
            await again.flush()
            again.cut()

    hanging_up = asyncio.create_task(hang_up())
    try:
        with pytest.raises(GuestUnreachable):
            await call
    finally:
        hanging_up.cancel()
        await asyncio.gather(hanging_up, return_exceptions=True)


async def test_closing_while_it_is_dialled_again_ends_that(peer: Peer, linked: Linked) -> None:
    channel, connection = linked
    connection.cut()
    lost = await peer.accept()
    await channel.close()
    assert await lost.ended() is not None
    with pytest.raises(GuestUnreachable):
        channel.request(Op.PING)


@pytest.mark.parametrize("seed", range(4))
async def test_streams_survive_connections_that_break_at_random(
    peer: Peer, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, doubled or run twice, in neither direction."""
    monkeypatch.setattr(channel_module, "_RECONNECT_PAUSE", 0.0)
    agent = EchoAgent(peer, seed, patience=(1, 25), cuts=25)
    serving = asyncio.create_task(agent.run())
    channel = peer.channel()
    try:
        await channel.open(DEADLINE)
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*[_echoed(channel, 60_000 + 90_000 * n) for n in range(4)])
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    assert agent.cuts < 25


async def _echoed(channel: Channel, size: int) -> None:
    body = noise(size)
    stream = channel.request(Op.EXEC, [(Tag.STDIN, 1)])

    async def feed() -> None:
        for at in range(0, size, 10_000):
            await stream.input.send(body[at : at + 10_000])
        stream.input.end()

    feeding = asyncio.create_task(feed())
    got = bytearray()
    while piece := await stream.outputs[STDOUT].read():
        got += piece
    await feeding
    assert got == body
    assert (await stream.result()).fields.number(Tag.EXIT) == 7
    stream.release()


# Streams that somebody else has opened.


async def test_an_adopted_stream_says_what_was_lost_and_goes_on(linked: Linked) -> None:
    channel, connection = linked
    stream = channel.adopt(0x41)
    heard = await connection.expect(Frame.RESUME)
    assert (heard.stream, heard.offset, heard.second) == (0x41, 0, 0)
    connection.send(state(0x41, (Tag.RECEIVED, 1_000), (Tag.FIRST1, 5_000), (Tag.FIRST2, 0)))
    connection.send(credit(0x41, 1_000, 1_000 + WINDOW), data(0x41, 5_000, b"late"))
    await stream.started()
    assert await stream.outputs[STDOUT].read() == b"late"
    assert stream.outputs[STDOUT].lost == 5_000
    await stream.input.send(b"more")
    assert (await connection.expect(Frame.DATA)).offset == 1_000


async def test_what_was_in_flight_to_the_reader_before_is_passed_over(linked: Linked) -> None:
    channel, connection = linked
    stream = channel.adopt(5)
    await connection.expect(Frame.RESUME)
    connection.send(data(5, 700, b"in flight"), credit(5, 10, 20), end(5, 709), reply(5, 0))
    connection.send(state(5, (Tag.RECEIVED, 0)), data(5, 0, b"again"))
    assert await stream.outputs[STDOUT].read() == b"again"


async def test_a_guest_skips_output_only_where_it_goes_on(linked: Linked) -> None:
    channel, connection = linked
    stream = channel.adopt(5)
    await connection.expect(Frame.RESUME)
    connection.send(state(5, (Tag.FIRST1, 10)), data(5, 10, b"x"), data(5, 20, b"y"))
    with pytest.raises(ProtocolViolation, match="offset 20"):
        await stream.result()


@pytest.mark.parametrize("tag", [Tag.FIRST1, Tag.RECEIVED])
async def test_offsets_that_no_stream_reaches_are_refused(linked: Linked, tag: Tag) -> None:
    channel, connection = linked
    stream = channel.adopt(5)
    await connection.expect(Frame.RESUME)
    connection.send(state(5, (tag, 2**64 - 1)))
    with pytest.raises(ProtocolViolation):
        await stream.result()


async def test_a_stream_that_is_gone_cannot_be_adopted(linked: Linked) -> None:
    channel, connection = linked
    stream = channel.adopt(5)
    await connection.expect(Frame.RESUME)
    connection.send(reply(5, errno.ESTALE))
    assert await stream.started() is None
    assert (await stream.result()).status == errno.ESTALE


async def test_adopting_what_this_channel_carries_shares_it(linked: Linked) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    assert channel.adopt(stream.id) is stream
    await roundtrip(channel, connection)


async def test_a_stream_without_input_refuses_it(linked: Linked) -> None:
    channel, connection = linked
    stream = channel.adopt(5)
    await connection.expect(Frame.RESUME)
    connection.send(state(5, (Tag.PID, 1)))
    await stream.started()
    with pytest.raises(BrokenPipeError):
        await stream.input.send(b"x")


class Carried:
    """A stream of another process, as the holder's gate carries it."""

    adoptable = True

    def __init__(self, number: int) -> None:
        self.id = number
        self.finished = False
        self.heard: list[Frame] = []

    def take(self, message: object) -> None:
        self.heard.append(message.type)  # type: ignore[attr-defined]

    def resume(self) -> bytes:
        return b""

    def fail(self, error: BaseException) -> None:
        self.finished = True


async def test_who_is_followed_by_another_reader_is_told(linked: Linked) -> None:
    channel, connection = linked
    mine = await started(channel, connection)
    first, second = Carried(mine.id), Carried(mine.id)
    channel.forward(first, frame(Frame.RESUME, mine.id, bytes(16)))
    channel.forward(second, frame(Frame.RESUME, mine.id, bytes(16)))
    assert (await mine.result()).status == errno.ESTALE
    assert first.heard == [Frame.REPLY]
    mine.release()  # Its number is another's now.
    channel.drop_forwarded(first, detach=False)
    connection.send(data(mine.id, 0, b"x"))
    await roundtrip(channel, connection)
    assert second.heard == [Frame.DATA]
