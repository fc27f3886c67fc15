"""The host's end of the protocol: the handshake, requests, output and input."""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import Callable

import pytest

from novasandbox.errors import (
    FileError,
    GuestUnreachable,
    InvalidRequest,
    ProtocolViolation,
    VmmCrashed,
)
from novasandbox.guest.files import Files
from novasandbox.guest.protocol import MAX_WINDOW, STDERR, STDOUT, Frame, Op, Tag
from support.linked import Linked, roundtrip, started
from support.peer import (
    DEADLINE,
    HOLDER,
    LONGEST,
    WINDOW,
    Connection,
    Peer,
    credit,
    data,
    end,
    fields,
    frame,
    noise,
    reply,
    state,
)

# Connecting.


async def test_the_host_waits_for_hello_and_then_names_itself(peer: Peer) -> None:
    channel = peer.channel()
    opening = asyncio.create_task(channel.open(DEADLINE))
    connection = await peer.accept()
    await connection.attach(next_stream=9)
    found = await opening
    nonce, holder, version = struct.unpack("<16s16sH", connection.attach_payload)
    assert (holder, version) == (HOLDER, 1)
    assert len(set(nonce)) > 4
    assert connection.padding == 0
    assert found.number(Tag.NEXT_STREAM) == 9
    assert channel.connected
    assert channel.request(Op.PING).id == 9


async def test_a_guest_of_another_version_is_refused(peer: Peer) -> None:
    opening = asyncio.create_task(peer.channel().open(DEADLINE))
    connection = await peer.accept()
    connection.hello(version=3, least=2)
    with pytest.raises(ProtocolViolation, match="no version"):
        await opening
    await connection.ended()


async def test_a_guest_that_says_nothing_is_unreachable(peer: Peer) -> None:
    opening = asyncio.create_task(peer.channel().open(0.05))
    connection = await peer.accept()
    with pytest.raises(GuestUnreachable, match=r"within 0\.05 s"):
        await opening
    assert await connection.ended() == b""


async def test_a_guest_that_greets_and_falls_silent_is_unreachable(peer: Peer) -> None:
    opening = asyncio.create_task(peer.channel().open(0.3))
    connection = await peer.accept()
    connection.hello()
    await connection.expect(Frame.ATTACH)
    with pytest.raises(GuestUnreachable):
        await opening


async def test_nobody_who_listens_is_an_oserror(peer: Peer) -> None:
    peer.stop()
    with pytest.raises(FileNotFoundError):
        await peer.channel().open(DEADLINE)


@pytest.mark.parametrize(
    "answer",
    [
        lambda c: frame(Frame.ATTACHED, 0, b"NOVA-ATT" + bytes(16)),
        lambda c: frame(Frame.ATTACHED, 0, b""),
        lambda c: frame(Frame.REPLY, 1, bytes(4)),
        lambda c: frame(Frame.GOAWAY, 0, b"no"),
        lambda c: c.attached_frame() + frame(0x77, 1),
        lambda c: c.attached_frame(window=MAX_WINDOW + 1),
        lambda c: c.attached_frame(next_stream=2**32),
        lambda c: frame(Frame.ATTACHED, 0, b"NOVA-ATT" + c.attach_payload[:16] + b"\1\0\0\0\4"),
        lambda c: frame(
            Frame.ATTACHED, 0, b"NOVA-ATT" + c.attach_payload[:16] + fields((Tag.WINDOW, b"x"))
        ),
    ],
)
async def test_a_wrong_answer_to_attach_is_a_violation(
    peer: Peer, answer: Callable[[Connection], bytes]
) -> None:
    channel = peer.channel()
    opening = asyncio.create_task(channel.open(DEADLINE))
    connection = await peer.accept()
    connection.hello()
    connection.attach_payload = (await connection.expect(Frame.ATTACH)).payload
    connection.send(answer(connection))
    with pytest.raises(ProtocolViolation):
        await opening
    assert not channel.connected


async def test_a_takeover_finds_its_answer_in_what_was_in_flight_before(peer: Peer) -> None:
    channel = peer.channel(takeover=True)
    opening = asyncio.create_task(channel.open(DEADLINE))
    connection = await peer.accept()
    # The end of a frame, the answer to somebody else, and bytes that look like an answer.
    connection.send(noise(5_000) + frame(Frame.ATTACHED, 0, b"NOVA-ATT" + bytes(16)))
    await connection.flush()
    heard = await connection.expect(Frame.ATTACH)
    assert connection.padding >= LONGEST + 12
    connection.attach_payload = heard.payload
    connection.send(data(3, 0, noise(30_000))[:-7])
    answer = connection.attached_frame(next_stream=4)
    for at in range(0, len(answer), 10):
        connection.send(answer[at : at + 10])
        await connection.flush()
    await opening
    await asyncio.gather(roundtrip(channel, connection))


# Requests.


async def test_a_request_and_its_reply(linked: Linked) -> None:
    channel, connection = linked
    call = asyncio.create_task(channel.call(Op.METRICS, [(Tag.NAME, "x")]))
    heard = await connection.request(Op.METRICS)
    assert heard.fields == {Tag.NAME: [b"x"]}
    connection.send(reply(heard.stream, 0, (Tag.CPUS, 4)))
    assert (await call).fields.number(Tag.CPUS) == 4


async def test_a_reply_is_released_with_the_next_frame_or_soon(linked: Linked) -> None:
    channel, connection = linked
    await roundtrip(channel, connection)
    assert (await connection.expect(Frame.RELEASE)).stream == 1


async def test_the_status_of_a_reply_is_handed_on(linked: Linked) -> None:
    channel, connection = linked
    call = asyncio.create_task(Files(channel, "box").stat("/missing"))
    heard = await connection.request(Op.STAT)
    connection.send(reply(heard.stream, errno.ENOENT))
    with pytest.raises(FileError) as caught:
        await call
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == "/missing"
    assert caught.value.sandbox_id == "box"


async def test_a_request_that_does_not_fit_a_frame_is_the_callers_mistake(linked: Linked) -> None:
    channel, connection = linked
    with pytest.raises(InvalidRequest, match="too long"):
        channel.request(Op.CONFIGURE, [(Tag.ENV, "A=" + "x" * LONGEST)])
    await roundtrip(channel, connection)


async def test_requests_after_close_raise_what_closed_it(linked: Linked) -> None:
    channel, connection = linked
    pending = asyncio.create_task(channel.call(Op.PING))
    await connection.request(Op.PING)
    await channel.close(VmmCrashed("gone"))
    await channel.close()
    for attempt in (pending, channel.call(Op.PING)):
        with pytest.raises(VmmCrashed, match="gone"):
            await attempt
    assert not channel.connected


async def test_one_error_raised_often_keeps_no_traceback_of_all(linked: Linked) -> None:
    channel, _ = linked
    await channel.close()
    depths = set()
    for _ in range(5):
        try:
            channel.request(Op.PING)
        except GuestUnreachable as error:
            depth, trace = 0, error.__traceback__
            while trace is not None:
                depth, trace = depth + 1, trace.tb_next
            depths.add(depth)
    assert len(depths) == 1


async def test_a_cancelled_call_is_released_in_the_guest(linked: Linked) -> None:
    channel, connection = linked
    call = asyncio.create_task(channel.call(Op.PING))
    heard = await connection.request(Op.PING)
    call.cancel()
    assert (await connection.expect(Frame.RELEASE)).stream == heard.stream
    with pytest.raises(asyncio.CancelledError):
        await call
    # What crosses the release is for nobody, and no mistake.
    connection.send(state(heard.stream) + data(heard.stream, 0, b"x") + reply(heard.stream))
    await roundtrip(channel, connection)


# Output.


async def test_output_arrives_in_order_and_ends(linked: Linked) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    connection.send(
        data(stream.id, 0, b"out1"),
        data(stream.id, 0, b"err1", 2),
        data(stream.id, 4, b"out2"),
        end(stream.id, 8),
        end(stream.id, 4, 2),
        reply(stream.id),
    )
    got = []
    while (piece := await stream.read()) is not None:
        got.append(piece)
    assert got == [(STDOUT, b"out1"), (STDERR, b"err1"), (STDOUT, b"out2")]
    assert (await stream.result()).status == 0


async def test_the_host_gives_credit_only_for_what_was_read(linked: Linked) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    body = noise(WINDOW)
    for at in range(0, WINDOW, 32_768):
        connection.send(data(stream.id, at, body[at : at + 32_768]))
    await roundtrip(channel, connection)
    out = stream.outputs[STDOUT]
    got = b""
    while len(got) < WINDOW // 2:
        got += await out.read()
    heard = await connection.read()
    while heard.type == Frame.RELEASE:
        heard = await connection.read()
    assert (heard.type, heard.channel) == (Frame.CREDIT, STDOUT)
    assert heard.offset == len(got)
    assert heard.second == len(got) + WINDOW
    while len(got) < WINDOW:
        got += await out.read()
    assert got == body


async def test_a_slow_reader_holds_up_its_own_stream_only(linked: Linked) -> None:
    channel, connection = linked
    slow = await started(channel, connection)
    quick = await started(channel, connection)
    connection.send(*[data(slow.id, at, bytes(32_768)) for at in range(0, WINDOW, 32_768)])
    connection.send(data(quick.id, 0, b"quick"))
    assert await quick.outputs[STDOUT].read() == b"quick"
    await roundtrip(channel, connection)
    assert slow.outputs[STDOUT].limit == WINDOW


async def test_two_readers_of_two_channels_do_not_wake_each_other_up_for_nothing(
    linked: Linked,
) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    out = asyncio.create_task(stream.outputs[STDOUT].read())
    err = asyncio.create_task(stream.outputs[STDERR].read())
    connection.send(data(stream.id, 0, b"e", 2))
    assert await err == b"e"
    connection.send(data(stream.id, 0, b"o"))
    assert await out == b"o"


async def test_a_guest_that_dribbles_costs_about_what_it_sends(linked: Linked) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    for at in range(20_000):
        connection.send(data(stream.id, at, b"x", 1), data(stream.id, at, b"y", 2))
    await connection.flush()
    await roundtrip(channel, connection)
    assert sum(len(output._pieces) for output in stream.outputs.values()) < 3_000
    got = {STDOUT: b"", STDERR: b""}
    while len(got[STDOUT]) + len(got[STDERR]) < 40_000:
        piece = await stream.read()
        assert piece is not None
        got[piece[0]] += piece[1]
    assert got == {STDOUT: b"x" * 20_000, STDERR: b"y" * 20_000}


async def test_a_cancelled_read_loses_nothing(linked: Linked) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    reading = asyncio.create_task(stream.outputs[STDOUT].read())
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait((reading,))
    connection.send(data(stream.id, 0, b"still here"))
    assert await stream.outputs[STDOUT].read() == b"still here"


# Input.


async def test_the_host_sends_no_more_than_the_guest_takes(linked: Linked) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    body = noise(WINDOW + 1_000)
    sending = asyncio.create_task(stream.input.send(body))
    got = await connection.input(WINDOW)
    await roundtrip(channel, connection)
    assert not sending.done()
    connection.send(credit(stream.id, 500, WINDOW + 500))
    got += (await connection.expect(Frame.DATA)).data
    connection.send(credit(stream.id, WINDOW, WINDOW + 5_000))
    got += (await connection.expect(Frame.DATA)).data
    await sending
    assert got == body
    stream.input.end()
    assert (await connection.expect(Frame.END)).offset == len(body)


async def test_a_guest_does_not_choose_how_much_the_host_keeps(linked: Linked) -> None:
    """All that is sent is kept until it is consumed, so limits without end are not taken."""
    channel, connection = linked
    stream = await started(channel, connection)
    connection.send(credit(stream.id, 0, 2**64 - 1))
    sending = asyncio.create_task(stream.input.send(bytes(2 * MAX_WINDOW)))
    await connection.input(MAX_WINDOW)
    await roundtrip(channel, connection)
    assert stream.input.sent == MAX_WINDOW
    assert not sending.done()
    stream.release()
    with pytest.raises(BrokenPipeError):
        await sending


async def test_who_sends_to_an_operation_that_is_over_is_told_at_once(linked: Linked) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    sending = asyncio.create_task(stream.input.send(bytes(WINDOW + 1)))
    await connection.input(WINDOW)
    connection.send(reply(stream.id, errno.ENOSPC))
    with pytest.raises(BrokenPipeError):
        await sending
    with pytest.raises(BrokenPipeError):
        await stream.input.send(b"x")
    await stream.input.send(b"")


async def test_closing_the_input_ends_a_sender_that_waits(linked: Linked) -> None:
    channel, connection = linked
    stream = await started(channel, connection)
    sending = asyncio.create_task(stream.input.send(bytes(WINDOW + 1)))
    await connection.input(WINDOW)
    stream.input.end()
    with pytest.raises(BrokenPipeError):
        await sending
