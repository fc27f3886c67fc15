"""A process in the guest, as its handle and the wire see it."""

from __future__ import annotations

import asyncio
import errno
import gc
import struct

import pytest

from novasandbox.errors import (
    OperationFailed,
    OperationTimeout,
    ProcessNotFound,
    ProtocolViolation,
    VmmCrashed,
)
from novasandbox.guest import processes as process_module
from novasandbox.guest.launch import Launch
from novasandbox.guest.processes import Processes
from novasandbox.guest.protocol import Frame, Op, Tag
from support.linked import Linked, exited, launched, roundtrip
from support.peer import (
    WINDOW,
    Connection,
    Peer,
    data,
    end,
    fields,
    noise,
    record,
    reply,
    state,
)


async def test_breaking_off_an_iteration_and_waiting_takes_the_rest(linked: Linked) -> None:
    channel, connection = linked
    process = await launched(channel, connection, Launch(("yes",)))
    connection.send(data(1, 0, b"first"))
    async for output in process:
        assert output.text == "first"
        break
    waiting = asyncio.create_task(process.wait())
    rest = noise(3 * WINDOW)
    limit, sent = WINDOW, 0
    while sent < len(rest):
        while 5 + sent + 32_000 > limit:
            heard = await connection.expect(Frame.CREDIT)
            limit = heard.second
        connection.send(data(1, 5 + sent, rest[sent : sent + 32_000]))
        sent += 32_000
    connection.send(exited(1, 5 + len(rest)))
    assert (await waiting).stdout_bytes == rest


async def test_who_waits_does_not_take_what_another_iterates_over(linked: Linked) -> None:
    channel, connection = linked
    process = await launched(channel, connection, Launch(("x",)))
    waiting = asyncio.create_task(process.wait())
    await asyncio.sleep(0)

    async def iterate() -> list[str]:
        return [output.text async for output in process]

    iterating = asyncio.create_task(iterate())
    await asyncio.sleep(0)
    connection.send(data(1, 0, b"caf"), data(1, 3, b"\xc3"), data(1, 4, b"\xa9"))
    connection.send(exited(1, 5))
    assert "".join(await iterating) == "café"
    assert (await waiting).stdout_bytes == b""


async def test_a_wait_that_is_cancelled_leaves_the_output_for_others(linked: Linked) -> None:
    channel, connection = linked
    process = await launched(channel, connection, Launch(("x",)))
    waiting = asyncio.create_task(process.wait())
    await asyncio.sleep(0)
    connection.send(data(1, 0, b"before"))
    await roundtrip(channel, connection)
    waiting.cancel()
    await asyncio.wait((waiting,))
    connection.send(data(1, 6, b" after"), exited(1, 12))
    assert (await process.wait()).stdout == "before after"


async def test_a_handle_that_is_dropped_detaches_from_a_process_that_goes_on(
    linked: Linked,
) -> None:
    channel, connection = linked
    process = await launched(channel, connection, Launch(("x",)))
    del process
    gc.collect()
    assert (await connection.expect(Frame.DETACH)).stream == 1


async def test_an_iteration_keeps_its_process_attached(linked: Linked) -> None:
    channel, connection = linked
    outputs = (await launched(channel, connection, Launch(("x",)))).__aiter__()
    gc.collect()
    await roundtrip(channel, connection)
    connection.send(data(1, 0, b"x"))
    assert (await anext(outputs)).data == b"x"


async def test_a_long_command_line_goes_on_in_the_input(peer: Peer, linked: Linked) -> None:
    channel, connection = linked
    words = ("echo", "x" * 100_000)
    starting = asyncio.create_task(Processes(channel, "box").start(Launch(words)))
    heard = await connection.request(Op.EXEC)
    (size,) = struct.unpack("<Q", heard.fields[Tag.MORE][0])
    first = await connection.input(size)
    assert first == fields(*((Tag.ARG, word.encode()) for word in words))
    # The request got lost: RESUME makes a guest answer that waits for its input.
    connection.cut()
    connection = await peer.reconnected()
    again = await connection.request(Op.EXEC)
    assert again == heard
    await connection.expect(Frame.RESUME)
    connection.send(state(heard.stream, (Tag.RECEIVED, 0)))
    assert await connection.input(size) == first
    connection.send(state(heard.stream, (Tag.RECEIVED, size), (Tag.PID, 5)))
    assert (await starting).pid == 5


async def test_a_long_command_line_that_is_refused_says_why(linked: Linked) -> None:
    channel, connection = linked
    launch = Launch(("echo", *("x" * 100_000 for _ in range(20))))
    starting = asyncio.create_task(Processes(channel, "box").start(launch))
    heard = await connection.request(Op.EXEC)
    await connection.input(1_000)
    connection.send(reply(heard.stream, errno.E2BIG, (Tag.STAGE, b"exec")))
    with pytest.raises(OperationFailed, match="could not start"):
        await starting


async def test_a_cancelled_exec_ends_the_process(linked: Linked) -> None:
    channel, connection = linked
    launch = Launch(("sleep", "9"), stdin=True)
    running = asyncio.create_task(Processes(channel, "box").run(launch, bytes(2 * WINDOW), False))
    heard = await connection.request(Op.EXEC)
    connection.send(state(heard.stream, (Tag.PID, 5), (Tag.RECEIVED, 0)))
    await connection.input(WINDOW)
    running.cancel()
    assert (await connection.expect(Frame.RELEASE)).stream == heard.stream
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_machine_that_dies_under_an_exec_is_told_once(linked: Linked) -> None:
    channel, connection = linked
    launch = Launch(("cat",), stdin=True)
    running = asyncio.create_task(Processes(channel, "box").run(launch, bytes(2 * WINDOW), False))
    heard = await connection.request(Op.EXEC)
    connection.send(state(heard.stream, (Tag.PID, 5), (Tag.RECEIVED, 0)))
    await connection.input(WINDOW)
    await channel.close(VmmCrashed("gone"))
    with pytest.raises(VmmCrashed):
        await running


async def test_too_much_output_ends_the_command_when_that_is_wished(linked: Linked) -> None:
    channel, connection = linked
    launch = Launch(("yes",), output_limit=10, on_limit="error")
    running = asyncio.create_task(Processes(channel, "box").run(launch, None, False))
    heard = await connection.request(Op.EXEC)
    connection.send(state(heard.stream, (Tag.PID, 5)), data(heard.stream, 0, b"0123456789abc"))
    assert (await connection.expect(Frame.CANCEL)).stream == heard.stream
    connection.send(end(1, 13), end(1, 0, 2), reply(1, 0, (Tag.SIGNAL, 9)))
    with pytest.raises(OperationFailed) as caught:
        await running
    assert caught.value.stdout == "3456789abc"  # type: ignore[attr-defined]


async def test_attaching_to_a_process_that_is_gone_by_then_says_so(linked: Linked) -> None:
    channel, connection = linked
    attaching = asyncio.create_task(Processes(channel, "box").attach(31))
    heard = await connection.request(Op.PROCESSES)
    listed = record((Tag.STREAM, 200), (Tag.PID, 31), (Tag.ARG, b"x"))
    connection.send(
        state(heard.stream), data(heard.stream, 0, listed), end(heard.stream, len(listed))
    )
    connection.send(reply(heard.stream))
    while (heard := await connection.read()).type != Frame.RESUME:
        pass
    connection.send(reply(200, errno.ESTALE))
    process = await attaching
    with pytest.raises(ProcessNotFound):
        await process.wait()


@pytest.mark.parametrize("number", [0, 2**31, 2**40])
async def test_a_stream_number_that_none_can_have_is_a_violation(
    linked: Linked, number: int
) -> None:
    channel, connection = linked
    attaching = asyncio.create_task(Processes(channel, "box").attach(31))
    await _lists(connection, number)
    with pytest.raises(ProtocolViolation, match="no stream has the number"):
        await attaching
    call = asyncio.create_task(channel.call(Op.PING))
    connection.send(reply((await connection.request(Op.PING)).stream))
    await call


async def test_a_guest_cannot_pass_another_request_off_as_a_process(linked: Linked) -> None:
    channel, connection = linked
    call = asyncio.create_task(channel.call(Op.METRICS))
    metrics = (await connection.request(Op.METRICS)).stream
    attaching = asyncio.create_task(Processes(channel, "box").attach(31))
    await _lists(connection, metrics)
    with pytest.raises(ProtocolViolation, match="is none"):
        await attaching
    connection.send(reply(metrics, 0, (Tag.CPUS, 3)))
    assert (await call).fields.number(Tag.CPUS) == 3


async def test_requests_get_no_number_of_a_process_attached_to(linked: Linked) -> None:
    channel, connection = linked
    adopted = channel.adopt(2)
    numbers = [channel.request(Op.PING).id for _ in range(2)]
    assert adopted.id not in numbers
    assert (await connection.expect(Frame.RESUME)).stream == 2


async def test_processes_without_end_are_a_violation(linked: Linked) -> None:
    channel, connection = linked
    listing = asyncio.create_task(Processes(channel, "box").list())
    heard = await connection.request(Op.PROCESSES)
    listed = record((Tag.STREAM, 1), (Tag.PID, 31)) * 1_089
    connection.send(state(heard.stream), data(heard.stream, 0, listed))
    with pytest.raises(ProtocolViolation, match="more than 1088"):
        await listing


async def _lists(connection: Connection, stream: int) -> None:
    heard = await connection.request(Op.PROCESSES)
    listed = record((Tag.STREAM, stream), (Tag.PID, 31), (Tag.ARG, b"x"))
    connection.send(
        state(heard.stream), data(heard.stream, 0, listed), end(heard.stream, len(listed))
    )
    connection.send(reply(heard.stream))


async def test_a_guest_that_never_says_that_a_command_runs_is_not_waited_for(
    linked: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_TIMEOUT_GRACE", 0.1)
    channel, connection = linked
    running = asyncio.create_task(
        Processes(channel, "box").run(Launch(("x",), timeout=0.05), None, False)
    )
    heard = await connection.request(Op.EXEC)
    with pytest.raises(OperationTimeout, match=r"within 0\.05 s"):
        await running
    assert (await connection.expect(Frame.RELEASE)).stream == heard.stream


async def test_a_timeout_that_the_guest_does_not_enforce_gives_the_output_so_far(
    linked: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_TIMEOUT_GRACE", 0.4)
    channel, connection = linked
    running = asyncio.create_task(
        Processes(channel, "box").run(Launch(("x",), timeout=0.1), None, False)
    )
    heard = await connection.request(Op.EXEC)
    connection.send(state(heard.stream, (Tag.PID, 5)), data(heard.stream, 0, b"so far"))
    with pytest.raises(OperationTimeout) as caught:
        await running
    assert caught.value.stdout == "so far"
    assert (await connection.expect(Frame.RELEASE)).stream == heard.stream
