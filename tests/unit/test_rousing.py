"""A guest that sleeps or stands still is roused by the next request, which is run once."""

from __future__ import annotations

import asyncio

import pytest

from novasandbox.errors import GuestUnreachable
from novasandbox.guest.launch import Launch
from novasandbox.guest.protocol import Frame, Op, Tag
from support.linked import Linked, exited, launched, started
from support.peer import Peer, data, reply, state

ASLEEP = GuestUnreachable("it sleeps")


async def test_what_is_asked_while_it_falls_asleep_is_run_once_and_after_the_waking(
    peer: Peer, linked: Linked
) -> None:
    channel, connection = linked
    foreground = await started(channel, connection)

    async def rouse() -> None:
        await channel.open(5)
        await channel.call(Op.CLOCK)

    async def save() -> asyncio.Task[object]:
        async with channel.held(5):
            late = asyncio.create_task(channel.call(Op.METRICS))
            await asyncio.sleep(0)
            assert channel.is_wanted
            channel.doze(ASLEEP, rouse)
            return late

    saving = asyncio.create_task(save())
    connection.send(reply((await connection.request(Op.PING)).stream))
    late = await saving
    with pytest.raises(GuestUnreachable, match="it sleeps"):
        await foreground.result()
    woken = await peer.accept()
    await woken.attach()
    # What rouses it comes first, and the guest takes growing numbers only.
    clock = await woken.request(Op.CLOCK)
    during = asyncio.create_task(channel.call(Op.STAT))
    await asyncio.sleep(0.05)
    woken.send(reply(clock.stream))
    metrics = await woken.request(Op.METRICS)
    stat = await woken.request(Op.STAT)
    assert clock.stream < metrics.stream < stat.stream
    woken.send(reply(metrics.stream), reply(stat.stream))
    await asyncio.gather(late, during)


async def test_a_process_that_nobody_waits_for_goes_on_over_a_sleep(
    peer: Peer, linked: Linked
) -> None:
    channel, connection = linked
    process = await launched(channel, connection, Launch(("x",), background=True, stdin=True))
    waited = await launched(channel, connection, Launch(("y",), background=True))
    waiting = asyncio.create_task(waited.wait())
    await asyncio.sleep(0)

    async def rouse() -> None:
        await channel.open(5)

    channel.doze(ASLEEP, rouse, keeping=True)
    with pytest.raises(GuestUnreachable, match="it sleeps"):
        await waiting
    writing = asyncio.create_task(process.stdin.write(b"word"))
    woken = await peer.accept()
    await woken.attach()
    # The one that ended here is told to the guest.
    assert (await woken.expect(Frame.DETACH)).stream == 2
    assert (await woken.expect(Frame.RESUME)).stream == 1
    woken.send(state(1, (Tag.PID, 77), (Tag.RECEIVED, 0)))
    assert (await woken.expect(Frame.DATA)).data == b"word"
    await writing
    woken.send(data(1, 0, b"out"), exited(1, 3))
    assert (await process.wait()).stdout == "out"


async def test_one_that_stands_still_gets_what_was_asked_meanwhile(linked: Linked) -> None:
    channel, connection = linked
    roused = []

    async def rouse() -> None:
        roused.append(1)

    async def pause() -> asyncio.Task[object]:
        async with channel.held(5):
            late = asyncio.create_task(channel.call(Op.METRICS))
            await asyncio.sleep(0)
            channel.stand_by(rouse)
            return late

    pausing = asyncio.create_task(pause())
    connection.send(reply((await connection.request(Op.PING)).stream))
    late = await pausing
    connection.send(reply((await connection.request(Op.METRICS)).stream))
    await late
    channel.stand_by(rouse)
    again = asyncio.create_task(channel.call(Op.STAT))
    connection.send(reply((await connection.request(Op.STAT)).stream))
    await again
    assert roused == [1, 1]


async def test_a_waking_that_fails_ends_what_waited_and_is_tried_again_by_the_next(
    peer: Peer, linked: Linked
) -> None:
    channel, _ = linked
    refused = [OSError("no memory"), None]

    async def rouse() -> None:
        error = refused.pop(0)
        if error is not None:
            raise error
        await channel.open(5)

    channel.doze(ASLEEP, rouse)
    with pytest.raises(OSError, match="no memory"):
        await channel.call(Op.PING)
    call = asyncio.create_task(channel.call(Op.PING))
    woken = await peer.accept()
    await woken.attach()
    woken.send(reply((await woken.request(Op.PING)).stream))
    await call
