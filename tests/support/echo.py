"""A small agent whose every program repeats its input, on connections that break at will."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field

from novasandbox.guest.protocol import Frame, Tag
from support.peer import (
    WINDOW,
    Connection,
    Heard,
    Peer,
    credit,
    data,
    end,
    reply,
    state,
)


@dataclass
class Echo:
    """A program: what came in goes out; its end is the end of its input."""

    number: int
    runs: int = 1
    held: bytearray = field(default_factory=bytearray)
    first: int = 0
    sent: int = 0
    limit: int = WINDOW
    received: int = 0
    ended: bool = False
    over: bool = False

    def take(self, heard: Heard) -> None:
        """Input, credit and the like."""
        match heard.type:
            case Frame.DATA:
                assert heard.offset == self.received, "a hole, or a repetition"
                assert not self.ended
                self.held += heard.data
                self.received += len(heard.data)
            case Frame.END:
                assert heard.offset == self.received
                self.ended = True
            case Frame.CREDIT:
                assert heard.offset <= self.sent, "credit for bytes that were never sent"
                self.drop_to(heard.offset)
                self.limit = max(self.limit, heard.second)
            case Frame.RESUME:
                self.resume(heard.offset)

    def drop_to(self, offset: int) -> None:
        """Forget what the host has consumed."""
        assert offset >= self.first, "it wants back what it has consumed"
        del self.held[: offset - self.first]
        self.first = offset

    def resume(self, offset: int) -> None:
        """Go on from there."""
        self.drop_to(offset)
        self.sent = offset
        self.limit = offset + WINDOW
        self.over = False


class EchoAgent:
    """Serves connection after connection; each is cut after a random number of frames."""

    def __init__(self, peer: Peer, seed: int, *, patience: tuple[int, int], cuts: int) -> None:
        self._peer = peer
        self._random = random.Random(seed)
        self._patience = patience
        self.cuts = cuts
        self.programs: dict[int, Echo] = {}
        self.released: set[int] = set()

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            connection = await self._peer.accept()
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._serve(connection)

    async def _serve(self, connection: Connection) -> None:
        highest = max([*self.programs, *self.released], default=0)
        await connection.attach(next_stream=highest + 1)
        attached: set[int] = set()
        budget = self._random.randint(*self._patience) if self.cuts else 1 << 60
        for _ in range(budget):
            heard = await connection.read()
            if heard.type == Frame.REQUEST:
                self._request(connection, heard)
                attached.add(heard.stream)
            elif heard.type == Frame.RELEASE:
                self.programs.pop(heard.stream, None)
                self.released.add(heard.stream)
            elif heard.stream in self.programs:
                program = self.programs[heard.stream]
                program.take(heard)
                if heard.type == Frame.RESUME:
                    attached.add(heard.stream)
                    connection.send(state(heard.stream, (Tag.RECEIVED, program.received)))
                    connection.send(
                        credit(heard.stream, program.received, program.received + WINDOW)
                    )
                if heard.type == Frame.DATA:
                    connection.send(
                        credit(heard.stream, program.received, program.received + WINDOW)
                    )
            for number in attached & set(self.programs):
                self._speak(connection, self.programs[number])
            await connection.flush()
        self.cuts -= 1
        connection.cut()

    def _request(self, connection: Connection, heard: Heard) -> None:
        assert heard.stream not in self.released, "it would run twice"
        program = self.programs.setdefault(heard.stream, Echo(heard.stream))
        program.resume(program.first)
        connection.send(
            state(heard.stream, (Tag.PID, 1000 + heard.stream), (Tag.RECEIVED, program.received))
        )

    def _speak(self, connection: Connection, program: Echo) -> None:
        number = program.number
        while not program.over:
            have = program.first + len(program.held)
            size = min(have, program.limit, program.sent + self._random.randint(1, 40_000))
            size -= program.sent
            if size > 0:
                at = program.sent - program.first
                connection.send(data(number, program.sent, bytes(program.held[at : at + size])))
                program.sent += size
            elif program.ended and program.sent == have:
                connection.send(
                    end(number, have), end(number, 0, 2), reply(number, 0, (Tag.EXIT, 7))
                )
                program.over = True
            else:
                return
