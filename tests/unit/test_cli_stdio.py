"""Our standard streams never hold up the loop, and keep nobody from leaving."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from novasandbox.cli import loop, terminal
from novasandbox.cli.errors import Interrupted
from novasandbox.cli.stdio import Input, Output


async def test_input_is_read_to_its_end() -> None:
    reader, writer = os.pipe()
    source = Input(reader)
    os.write(writer, b"abc")
    assert await source.read() == b"abc"
    os.close(writer)
    assert await source.read() == b""
    os.close(reader)


async def test_a_descriptor_that_cannot_be_read_is_at_its_end() -> None:
    folder = os.open("/", os.O_RDONLY)
    assert await Input(folder).read() == b""
    os.close(folder)


async def test_nothing_is_read_that_nobody_asked_for() -> None:
    reader, writer = os.pipe()
    Input(reader)
    os.write(writer, b"for somebody else")
    await asyncio.sleep(0)
    assert os.read(reader, 100) == b"for somebody else"
    os.close(reader)
    os.close(writer)


async def test_output_waits_for_a_slow_reader_without_holding_up_the_loop() -> None:
    reader, writer = os.pipe()
    output = Output()
    writing = asyncio.create_task(output.write(writer, b"x" * 1_000_000))
    await asyncio.sleep(0.05)
    assert not writing.done()
    received = 0
    while received < 1_000_000:
        received += len(await asyncio.to_thread(os.read, reader, 65_536))
    await writing
    os.close(reader)
    os.close(writer)


async def test_a_reader_that_is_gone_is_told() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        await Output().write(writer, b"x")
    os.close(writer)


async def test_a_descriptor_that_somebody_made_nonblocking_is_no_fault() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    reading = asyncio.create_task(Input(reader).read())
    await asyncio.sleep(0.02)
    await Output().write(writer, b"x")
    assert await reading == b"x"
    os.close(reader)
    os.close(writer)


def test_input_that_never_comes_keeps_nobody_from_leaving() -> None:
    script = (
        "import asyncio; from novasandbox.cli.stdio import Input\n"
        "async def main():\n"
        "    reading = asyncio.create_task(Input(0).read())\n"
        "    await asyncio.sleep(0.05)\n"
        "    reading.cancel()\n"
        "asyncio.run(main())\n"
    )
    reader, writer = os.pipe()
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], stdin=reader, timeout=30)
    assert done.returncode == 0
    assert time.monotonic() - began < 10
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_a_verb_give_back_what_it_holds(number: signal.Signals) -> None:
    given_back = []

    async def work(_interrupts: loop.Interrupts) -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(30)
        finally:
            given_back.append(True)

    with pytest.raises(Interrupted) as caught:
        loop.run(work)
    assert caught.value.number == number
    assert given_back == [True]


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    async def work(_interrupts: loop.Interrupts) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.02)
        return 7

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert loop.run(work) == 7
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_way_out_is_pressed_three_times() -> None:
    key = terminal.EscapeKey()
    assert not key.pressed_in(b"\x1d\x1d")
    assert not key.pressed_in(b"x\x1d")
    assert not key.pressed_in(b"\x1d")
    assert key.pressed_in(b"\x1d")


def test_the_way_out_is_pressed_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    key = terminal.EscapeKey()
    now = 100.0
    monkeypatch.setattr("novasandbox.cli.terminal.time.monotonic", lambda: now)
    assert not key.pressed_in(b"\x1d\x1d")
    now = 101.5
    assert not key.pressed_in(b"\x1d\x1d")
    assert key.pressed_in(b"\x1d")
