"""Files of the guest, as their handle and the wire see them."""

from __future__ import annotations

import asyncio
import errno

import pytest

from novasandbox.errors import (
    FileError,
    InvalidRequest,
    ProtocolViolation,
)
from novasandbox.guest.files import Files
from novasandbox.guest.protocol import Frame, Op, Tag
from support.linked import Linked, roundtrip
from support.peer import (
    WINDOW,
    data,
    end,
    record,
    reply,
    state,
)


async def test_an_empty_file_is_written_with_its_size(linked: Linked) -> None:
    channel, connection = linked
    writing = asyncio.create_task(Files(channel, "box").write("/f", b""))
    heard = await connection.request(Op.WRITE)
    assert heard.fields[Tag.SIZE] == [bytes(8)]
    assert (await connection.expect(Frame.END)).offset == 0
    connection.send(state(heard.stream, (Tag.RECEIVED, 0)), reply(heard.stream))
    await writing


async def test_a_write_that_fails_half_way_says_why_at_once(linked: Linked) -> None:
    channel, connection = linked
    writing = asyncio.create_task(Files(channel, "box").write("/f", bytes(3 * WINDOW)))
    heard = await connection.request(Op.WRITE)
    connection.send(state(heard.stream, (Tag.RECEIVED, 0)))
    await connection.input(WINDOW)
    connection.send(reply(heard.stream, errno.ENOSPC))
    with pytest.raises(FileError) as caught:
        await writing
    assert caught.value.errno == errno.ENOSPC
    assert (await connection.expect(Frame.RELEASE)).stream == heard.stream


async def test_a_block_left_by_an_error_gives_the_file_up(linked: Linked) -> None:
    channel, connection = linked

    async def write_half() -> None:
        async with await Files(channel, "box").open("/f", "wb") as file:
            await file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await write_half()
    await connection.request(Op.WRITE)
    await connection.input(4)
    await connection.expect(Frame.RELEASE)  # And no END before it.


async def test_a_close_that_is_cancelled_gives_the_file_up(linked: Linked) -> None:
    channel, connection = linked
    file = await Files(channel, "box").open("/f", "wb")
    closing = asyncio.create_task(file.close())
    await connection.request(Op.WRITE)
    await connection.expect(Frame.END)
    closing.cancel()
    await connection.expect(Frame.RELEASE)


async def test_a_cancelled_read_of_a_file_loses_nothing(linked: Linked) -> None:
    channel, connection = linked
    async with await Files(channel, "box").open("/f") as file:
        heard = await connection.request(Op.READ)
        connection.send(state(heard.stream), data(heard.stream, 0, b"abc"))
        reading = asyncio.create_task(file.read(5))
        await roundtrip(channel, connection)
        reading.cancel()
        await asyncio.wait((reading,))
        connection.send(data(heard.stream, 3, b"defg"), end(heard.stream, 7), reply(heard.stream))
        assert await file.read(5) == b"abcde"
        assert await file.read() == b"fg"
        assert await file.read() == b""


async def test_a_cancelled_read_of_a_whole_file_releases_it(linked: Linked) -> None:
    channel, connection = linked
    reading = asyncio.create_task(Files(channel, "box").read("/f"))
    heard = await connection.request(Op.READ)
    reading.cancel()
    assert (await connection.expect(Frame.RELEASE)).stream == heard.stream


async def test_a_broken_record_is_a_violation_to_whoever_listed(linked: Linked) -> None:
    channel, connection = linked
    listing = asyncio.create_task(Files(channel, "box").list("/"))
    heard = await connection.request(Op.LIST)
    connection.send(state(heard.stream), data(heard.stream, 0, b"\xff\xff\xff\xff"))
    with pytest.raises(ProtocolViolation):
        await listing


async def test_a_watch_stands_when_its_block_begins(linked: Linked) -> None:
    channel, connection = linked

    async def watch() -> list[str]:
        seen = []
        async with Files(channel, "box").watching("/d") as changes:
            async for change in changes:
                seen.append(getattr(change, "path", "lost"))
        return seen

    watching = asyncio.create_task(watch())
    heard = await connection.request(Op.WATCH)
    body = record((Tag.KIND, 1), (Tag.NAME, b"new")) + record((Tag.LOST, 1))
    connection.send(state(heard.stream), data(heard.stream, 0, body))
    connection.send(end(heard.stream, len(body)), reply(heard.stream))
    assert await watching == ["new", "lost"]


async def test_numbers_of_a_wrong_kind_are_the_callers_mistake(linked: Linked) -> None:
    channel, connection = linked
    files = Files(channel, "box")
    for call in (
        files.read("/f", offset=-1),
        files.chmod("/f", -1),
        files.truncate("/f", 2**64),
        files.utime("/f", -5.0),
    ):
        with pytest.raises(InvalidRequest):
            await call
    await roundtrip(channel, connection)


async def test_more_of_a_file_than_was_asked_for_is_a_violation(linked: Linked) -> None:
    channel, connection = linked
    reading = asyncio.create_task(Files(channel, "box").read("/f", size=3))
    heard = await connection.request(Op.READ)
    connection.send(state(heard.stream), data(heard.stream, 0, b"four"))
    with pytest.raises(ProtocolViolation, match="asked for"):
        await reading


@pytest.mark.parametrize(
    "lie", [{Tag.NAME: b"n" * 256}, {Tag.NAME: b"n", Tag.TARGET_PATH: b"t" * 4_096}]
)
async def test_names_that_no_file_can_have_are_a_violation(
    linked: Linked, lie: dict[int, bytes]
) -> None:
    channel, connection = linked
    listing = asyncio.create_task(Files(channel, "box").list("/"))
    heard = await connection.request(Op.LIST)
    connection.send(state(heard.stream), data(heard.stream, 0, record(*lie.items())))
    with pytest.raises(ProtocolViolation, match="of more than"):
        await listing
    assert (await connection.expect(Frame.RELEASE)).stream == heard.stream


async def test_records_without_end_are_a_violation(linked: Linked) -> None:
    channel, connection = linked
    stream = channel.request(Op.LIST)
    heard = await connection.request(Op.LIST)
    one = record((Tag.NAME, b"n"))
    connection.send(state(heard.stream), data(heard.stream, 0, one * 3))
    with pytest.raises(ProtocolViolation, match="bytes of records"):
        [each async for each in stream.records(most=2 * len(one))]
