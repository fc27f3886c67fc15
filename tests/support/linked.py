"""An open channel with a guest that a test plays, and what often happens on it."""

from __future__ import annotations

import asyncio

from novasandbox.guest.channel import Channel
from novasandbox.guest.launch import Launch
from novasandbox.guest.process import Process
from novasandbox.guest.processes import Processes
from novasandbox.guest.protocol import Frame, Op, Tag
from novasandbox.guest.stream import Stream
from support.peer import Connection, end, reply, state

Linked = tuple[Channel, Connection]


async def roundtrip(channel: Channel, connection: Connection) -> None:
    """A ping, to know that all before it has been dispatched."""
    call = asyncio.create_task(channel.call(Op.PING))
    while (heard := await connection.read()).type != Frame.REQUEST:
        pass
    connection.send(reply(heard.stream))
    await call


async def started(channel: Channel, connection: Connection, op: Op = Op.EXEC) -> Stream:
    """A stream that the guest has accepted."""
    stream = channel.request(op)
    heard = await connection.request(op)
    connection.send(state(heard.stream, (Tag.PID, 99), (Tag.RECEIVED, 0)))
    await stream.started()
    return stream


async def launched(channel: Channel, connection: Connection, launch: Launch) -> Process:
    """A process that the guest has started."""
    starting = asyncio.create_task(Processes(channel, "box").start(launch))
    heard = await connection.request(Op.EXEC)
    connection.send(state(heard.stream, (Tag.PID, 77), (Tag.RECEIVED, 0)))
    return await starting


def exited(stream: int, size: int, code: int = 0) -> bytes:
    """How a process ends that has printed `size` bytes."""
    return end(stream, size) + end(stream, 0, 2) + reply(stream, 0, (Tag.EXIT, code))
