"""The interpreter in the guest: started, found again, asked. `interpreter` is what runs there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

from novasandbox.errors import (
    CommandNotStarted,
    ContextLost,
    GuestUnreachable,
    InvalidRequest,
    OperationFailed,
    SandboxFailed,
)
from novasandbox.guest.bounded_json import mapping_of
from novasandbox.guest.channel import Channel
from novasandbox.guest.files import Files
from novasandbox.guest.flow import PIECE
from novasandbox.guest.frames import FrameError
from novasandbox.guest.interpreter import wire
from novasandbox.guest.launch import Launch
from novasandbox.guest.process import Process, ProcessInfo
from novasandbox.guest.processes import OWN_NAME, Processes
from novasandbox.guest.protocol import STDOUT, Op, Tag

_PACKAGE = "novasandbox/guest/interpreter"
_ARCHIVE = "/run/nova/interpreter.zip"
_MAIN = """\
import sys
if sys.version_info < (3, 8):
    sys.exit({too_old})
from novasandbox.guest.interpreter.server import main
main(sys.argv[1:])
"""
_START_DEADLINE = 60.0
_ANSWER_DEADLINE = 30.0
_MOST_WORDS = 2_000


def archive() -> bytes:
    """The package that runs in the guest, as a zip that Python executes."""
    # Loaded by the first who needs them, for they are slow to load.
    import io
    import zipfile
    from importlib import resources

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("__main__.py", _MAIN.format(too_old=wire.TOO_OLD))
        for parent in ("novasandbox", "novasandbox/guest"):
            packed.writestr(f"{parent}/__init__.py", "")
        for source in resources.files("novasandbox.guest.interpreter").iterdir():
            if source.name.endswith(".py"):
                packed.writestr(f"{_PACKAGE}/{source.name}", source.read_bytes())
    return file.getvalue()


class NotRunning(OperationFailed):
    """Nobody listens at the server's socket, or who does says nothing."""

    def __init__(self, sandbox_id: str) -> None:
        super().__init__("the guest's interpreter does not answer", sandbox_id=sandbox_id)


class Interpreter:
    """The guest's interpreter server, as one handle sees it."""

    def __init__(
        self, channel: Channel, processes: Processes, files: Files, sandbox_id: str
    ) -> None:
        self._channel = channel
        self._processes = processes
        self._files = files
        self._sandbox_id = sandbox_id
        self._starting = asyncio.Lock()

    async def ask(
        self, op: str, *, deadline: float = _ANSWER_DEADLINE, **arguments: Any
    ) -> dict[str, Any]:
        """One request to the server, and its answer. Raises NotRunning.

        Raises GuestUnreachable when no answer comes within `deadline` seconds, and
        InvalidRequest for arguments that are too long.
        """
        body = json.dumps({"op": op, **arguments}).encode()
        if len(body) > wire.MOST_MESSAGE:
            raise InvalidRequest(
                "the request is too long",
                why=f"it has {len(body):,} bytes, and at most {wire.MOST_MESSAGE:,} can be sent",
                fix="Put what is long into a file.",
                sandbox_id=self._sandbox_id,
            )
        message = wire.MESSAGE.pack(len(body)) + body
        first, rest = message[:PIECE], message[PIECE:]
        stream = self._channel.request(Op.CONNECT, [(Tag.PATH, wire.SERVER)], data=first)
        try:
            async with asyncio.timeout(deadline):
                with contextlib.suppress(BrokenPipeError):
                    await stream.input.send(rest)
                answer = bytearray()
                while data := await stream.outputs[STDOUT].read():
                    answer += data
                    if len(answer) > wire.MOST_MESSAGE:
                        raise FrameError("the interpreter's answer is too long")
                if not answer:
                    raise NotRunning(self._sandbox_id)
        except TimeoutError as error:
            raise GuestUnreachable(
                f"the guest's interpreter did not answer within {deadline:g} s",
                sandbox_id=self._sandbox_id,
            ) from error
        finally:
            stream.release()
        return mapping_of(bytes(answer[wire.MESSAGE.size :]))

    async def runs(self) -> bool:
        """Whether it answers."""
        try:
            await self.ask("ping")
        except NotRunning:
            return False
        return True

    async def ensure(self, modules: Sequence[str] = ()) -> None:
        """Start it unless it runs. modules: what it imports first.

        Raises CommandNotStarted in a guest without Python, and ContextLost where it had run
        before and was ended: all contexts are gone.
        """
        async with self._starting:
            if await self.runs():
                return
            ended = [info for info in await self._processes.own() if info.exit_code is not None]
            for info in ended:
                await self._processes.forget(info)
            await self._start(modules)
            if ended:
                raise ContextLost(
                    "the contexts are lost",
                    why=f"the guest's interpreter was ended ({_ending(ended[-1])})",
                    fix="It was started anew, with one empty context; nothing was run.",
                    sandbox_id=self._sandbox_id,
                )

    async def _start(self, modules: Sequence[str]) -> None:
        await self._files.as_user("root").write(_ARCHIVE, archive())
        command = ("python3", _ARCHIVE, *modules)
        try:
            process = await self._processes.start(Launch(command, background=True, name=OWN_NAME))
        except CommandNotStarted as error:
            if error.exit_code != 127:
                raise
            raise CommandNotStarted(
                "run_code needs Python, and this template has none",
                errno=error.errno,
                stage=error.stage,
                why="`python3` was not found in the guest",
                fix="Use a template that has it, as debian-python, or `exec` another program.",
                sandbox_id=self._sandbox_id,
            ) from error
        try:
            async with asyncio.timeout(_START_DEADLINE):
                await self._await_ready(process)
        except TimeoutError as error:
            await process.kill()
            raise OperationFailed(
                f"the guest's interpreter was not ready within {_START_DEADLINE:g} s",
                sandbox_id=self._sandbox_id,
            ) from error
        except BaseException:
            process.abandon()
            raise
        process.detach()

    async def _await_ready(self, process: Process) -> None:
        words = b""
        async for output in process:
            words = (words + output.data)[-_MOST_WORDS:]
            if output.stream == "stdout" and output.data.startswith(b"ready"):
                return
        result = await process.wait()
        if result.exit_code == wire.TAKEN:
            # Another handle was quicker; its server answers as soon as it serves.
            await self.ask("ping")
            return
        too_old = result.exit_code == wire.TOO_OLD
        raise OperationFailed(
            "the guest's interpreter did not start",
            why="its Python is older than 3.8"
            if too_old
            else words.decode("utf-8", "replace").strip() or f"exit code {result.exit_code}",
            sandbox_id=self._sandbox_id,
        )


def _ending(info: ProcessInfo) -> str:
    return info.signal or f"exit code {info.exit_code}"


async def ensure_interpreter(
    channel: Channel,
    processes: Processes,
    files: Files,
    modules: Sequence[str] = (),
    sandbox_id: str = "",
) -> None:
    """Have the interpreter run, with its default context, warm.

    modules: imported once, before any context is made. For a guest whose memory is kept for
    copies; harmless when repeated. Raises CommandNotStarted in a guest without Python.
    """
    from novasandbox.guest.contexts import Contexts

    interpreter = Interpreter(channel, processes, files, sandbox_id)
    with contextlib.suppress(ContextLost):
        await interpreter.ensure(modules)
    contexts = Contexts(channel, interpreter, sandbox_id)
    spare = await contexts.create()
    try:
        # Every path that a first cell would take: code, output, values, errors, a loop.
        for cell in ("x = 1\nprint(x)\nx", "1 / 0", "import asyncio\nawait asyncio.sleep(0)"):
            await contexts.run(cell, context=spare, timeout=_ANSWER_DEADLINE)
    finally:
        with contextlib.suppress(OperationFailed, SandboxFailed):
            await contexts.remove(spare)
