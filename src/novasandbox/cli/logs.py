"""`nova logs`: what a sandbox's console and its machine said, made harmless."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from novasandbox.cli.options import box_argument, json_option, quiet_option
from novasandbox.cli.output import escaped, print_json
from novasandbox.errors import SandboxFailed, SandboxNotFound

if TYPE_CHECKING:
    from novasandbox.core.sandbox import Sandbox

_INTERVAL = 0.3
_OVERLAP = 512
_KINDS = ("console", "machine", "events")


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on until the sandbox has ended, or Ctrl-C.")
@click.option(
    "--only",
    type=click.Choice(_KINDS),
    help="Only this: the guest's console, its machine's log, or what happened to it.",
)
@json_option
@quiet_option
@box_argument
def logs_command(box: str, follow: bool, only: str | None, as_json: bool, quiet: bool) -> int:
    """Show the end of what the sandbox BOX wrote to its console, and what its machine said.

    Control characters are escaped. With --follow --json each piece is one line.
    """
    from novasandbox.cli import loop
    from novasandbox.cli.connect import connect

    del quiet
    kinds = (only,) if only else ("console", "machine")

    async def work(_interrupts: loop.Interrupts) -> int:
        async with await connect(box) as sandbox:
            told = dict.fromkeys(kinds, "")
            while True:
                found = await _read(sandbox, kinds)
                if as_json and not follow:
                    print_json({"id": sandbox.id, **found})
                    return 0
                if follow:
                    # The rest of a line comes with the next look.
                    found = {kind: text[: text.rfind("\n") + 1] for kind, text in found.items()}
                for kind in kinds:
                    _tell(kind, news(told[kind], found[kind]), as_json)
                told = found
                if not follow:
                    return 0
                await asyncio.sleep(_INTERVAL)
                try:
                    await sandbox.info()
                except (SandboxNotFound, SandboxFailed):
                    return 0

    return loop.run(work)


async def _read(sandbox: Sandbox, kinds: tuple[str, ...]) -> dict[str, str]:
    logs = asdict(await sandbox.logs()) if kinds != ("events",) else {}
    if "events" in kinds:
        logs["events"] = "".join(f"{_line(event)}\n" for event in await sandbox.events())
    return {kind: logs[kind] for kind in kinds}


def _line(event: Any) -> str:
    from datetime import datetime

    moment = datetime.fromtimestamp(event.time).astimezone().isoformat(timespec="milliseconds")
    detail = " ".join(f"{key}={value}" for key, value in event.detail.items())
    return f"{moment} {event.kind} {detail}".rstrip()


def news(old: str, new: str) -> str:
    """What `new` has beyond `old`; a log's beginning may have fallen out of both."""
    if new.startswith(old):
        return new[len(old) :]
    at = new.rfind(old[-_OVERLAP:])
    return new if at < 0 else new[at + len(old[-_OVERLAP:]) :]


def _tell(kind: str, text: str, as_json: bool) -> None:
    if not text:
        return
    if as_json:
        print_json({"source": kind, "text": text})
    else:
        print(escaped(text, lines=True), end="" if text.endswith("\n") else "\n", flush=True)


VERBS = {"logs": logs_command}
