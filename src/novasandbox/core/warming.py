"""What is done once in a template's guest, so that it is not done in every sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
from typing import TYPE_CHECKING, Any

from novasandbox.core.preparation import Prepared
from novasandbox.errors import CommandNotStarted, TemplateBuildFailed
from novasandbox.guest.channel import Channel
from novasandbox.guest.client import Guest
from novasandbox.guest.files import Files
from novasandbox.guest.interpreter import wire
from novasandbox.guest.launch import Command, Launch, argv
from novasandbox.guest.processes import Processes
from novasandbox.guest.protocol import Op, Tag
from novasandbox.guest.python import ensure_interpreter

if TYPE_CHECKING:
    from novasandbox.core.template import Template

_DEADLINE = 300.0
_SETTLED = 0.5
_LOOK_EVERY = 0.01
# With less memory to spare the interpreter starts when it is first asked for.
_INTERPRETER = 80 << 20
# What most first commands run through: the shell, and the loader with libc.
_FIRST_COMMANDS: tuple[Command, ...] = (("/bin/true",), "true")


def warmth(template: Template | None) -> dict[str, Any]:
    """What `warm` depends on, as JSON data."""
    if template is None:
        return {}
    wanted = template.model_dump(mode="json", include={"warmup", "hooks", "user", "workdir", "env"})
    return {**wanted, "own": _own_warmth()}


@functools.cache
def _own_warmth() -> str:
    """A hash of what is done in every guest, the interpreter's sources among it."""
    from importlib import resources

    digest = hashlib.sha256(repr(_FIRST_COMMANDS).encode())
    sources = resources.files("novasandbox.guest.interpreter").iterdir()
    for source in sorted((each for each in sources if each.name.endswith(".py")), key=str):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:32]


async def warm(channel: Channel, prepared: Prepared, *, hostname: str) -> None:
    """Warm a template's guest.

    Raises TemplateBuildFailed where one of the template's own commands fails.
    """
    ground, template = prepared.ground, prepared.template
    await Guest(channel, "").configure(
        hostname=hostname, user=ground.user, cwd=ground.cwd, env=ground.env
    )
    processes = Processes(channel, "")
    modules = template.warmup.imports if template is not None else ()
    if (await Guest(channel, "").metrics()).memory_available >= _INTERPRETER:
        # A template need not have Python.
        with contextlib.suppress(CommandNotStarted):
            await ensure_interpreter(channel, processes, Files(channel, ""), modules)
    for command in _FIRST_COMMANDS:
        await _quietly(processes, command)
    if template is not None:
        for command in template.warmup.commands:
            await _run(processes, command, "warmup.commands")
        for path in template.warmup.files:
            await _run(processes, ("cat", path), "warmup.files")
        for command in template.hooks.before_snapshot:
            await _run(processes, command, "hooks.before_snapshot", user="root")
    # What lies unwritten in the page cache, every copy would write for itself.
    await _quietly(processes, ("sync",))
    # The agent tidies up a moment after a process has ended: once here, not in every copy.
    await asyncio.sleep(_SETTLED)


async def end_interpreter(channel: Channel) -> None:
    """End the warm interpreter: the sandbox's user is another, and shall have one of his own."""
    processes = Processes(channel, "")
    for info in await processes.own():
        await processes.forget(info)
    # A context dies a moment after its server, and would take a call with it until then.
    path = wire.CONTEXT + wire.DEFAULT.encode()
    while await _is_answered(channel, path):  # noqa: ASYNC110  (nothing tells us)
        await asyncio.sleep(_LOOK_EVERY)


async def _is_answered(channel: Channel, path: bytes) -> bool:
    stream = channel.request(Op.CONNECT, [(Tag.PATH, path)])
    try:
        return await stream.started() is not None
    finally:
        stream.release()


async def after_restore(channel: Channel, template: Template) -> None:
    """Run the template's own commands in a copy of its guest, before anybody else's.

    Raises TemplateBuildFailed where one of them fails.
    """
    processes = Processes(channel, "")
    for command in template.hooks.after_restore:
        await _run(processes, command, "hooks.after_restore", user="root")


async def _quietly(processes: Processes, command: Command) -> None:
    # An image need not have it.
    with contextlib.suppress(CommandNotStarted):
        await processes.run(Launch(argv(command), timeout=_DEADLINE), None, check=False)


async def _run(processes: Processes, command: Command, step: str, user: str | None = None) -> None:
    launch = Launch(argv(command), user=user, timeout=_DEADLINE)
    result = await processes.run(launch, None, check=False)
    if not result.ok:
        raise TemplateBuildFailed(
            f"{step}: {command!r} failed with {result.exit_code}",
            step=step,
            log=result.stdout + result.stderr,
        )
