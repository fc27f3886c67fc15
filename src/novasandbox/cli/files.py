"""`nova ls` and `nova cp`: a sandbox's files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from novasandbox.cli.options import complete_box, json_option, quiet_option
from novasandbox.cli.output import escaped as shown
from novasandbox.cli.output import human_size, note, print_json, print_table

if TYPE_CHECKING:
    from novasandbox.core.sandbox import Sandbox
    from novasandbox.guest.files import FileInfo

_TYPE_BITS = {"directory": stat.S_IFDIR, "link": stat.S_IFLNK, "file": stat.S_IFREG, "other": 0}


@dataclass(frozen=True)
class Place:
    """A side of a copy: a path here (box is None), or in a sandbox."""

    box: str | None
    path: str


def place(text: str) -> Place:
    """BOX:PATH, or a path here; one with a colon is written as ./a:b."""
    box, colon, path = text.partition(":")
    if not colon or not box or box.startswith((".", "/", "~")) or "/" in box:
        return Place(None, text)
    return Place(box, path or ".")


@click.command("ls")
@click.option("-l", "--long", is_flag=True, help="With kind, mode, owner, size and time.")
@json_option
@quiet_option
@click.argument("where", metavar="BOX[:PATH]", shell_complete=complete_box)
def ls_command(where: str, long: bool, as_json: bool, quiet: bool) -> int:
    """List the files at PATH in the sandbox BOX; without PATH, those of its user's home."""
    from novasandbox.cli import loop
    from novasandbox.cli.connect import connect

    del quiet
    box, _, path = where.partition(":")

    async def work(_interrupts: loop.Interrupts) -> int:
        async with await connect(box) as sandbox:
            entries = await _entries(sandbox, path or ".")
        if as_json:
            print_json([asdict(entry) for entry in entries])
        elif long:
            columns = ("MODE", "UID", "GID", "SIZE", "MODIFIED", "NAME")
            print_table(columns, [_row(entry) for entry in entries])
        else:
            for entry in entries:
                print(shown(entry.name))
        return 0

    return loop.run(work)


async def _entries(sandbox: Sandbox, path: str) -> list[FileInfo]:
    info = await sandbox.files.stat(path)
    return await sandbox.files.list(path) if info.is_directory else [info]


def _row(entry: FileInfo) -> tuple[str, ...]:
    name = entry.name if entry.target is None else f"{entry.name} -> {entry.target}"
    return (
        stat.filemode(_TYPE_BITS[entry.kind] | entry.mode),
        str(entry.uid),
        str(entry.gid),
        human_size(entry.size),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.modified)),
        name,
    )


@click.command("cp")
@json_option
@quiet_option
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
def cp_command(source: str, target: str, as_json: bool, quiet: bool) -> int:
    """Copy a file or a whole folder FROM one place TO another, one of them BOX:PATH.

    Modes and links are kept. As with cp, what is copied to a folder goes into it; a folder
    FROM/. gives its contents. The sandbox is not trusted: what would lead outside the target
    is refused and named, and the exit code is 1 then.

    \b
    nova cp data.csv box:/tmp
    nova cp box:/home/user/results .
    """
    from novasandbox.cli import loop
    from novasandbox.cli.connect import connect

    here, there = place(source), place(target)
    if (here.box is None) == (there.box is None):
        raise click.UsageError("exactly one of FROM and TO must be BOX:PATH.")
    box = here.box or there.box
    assert box is not None

    async def work(_interrupts: loop.Interrupts) -> int:
        async with await connect(box) as sandbox:
            return await _copy(sandbox, here, there, as_json, quiet)

    return loop.run(work)


async def _copy(sandbox: Sandbox, here: Place, there: Place, as_json: bool, quiet: bool) -> int:
    with _Bar(await _size(sandbox, here), hidden=quiet or as_json or not os.isatty(2)) as bar:
        if here.box is None:
            remote = await _into_remote(sandbox, here.path, there.path)
            refused = await sandbox.upload(here.path, remote, progress=bar.add)
        else:
            local = await _into_local(sandbox, here.path, there.path)
            refused = await sandbox.download(here.path, local, progress=bar.add)
    if as_json:
        data = {"bytes": bar.done, "refused": [asdict(entry) for entry in refused]}
        print_json(data)
    else:
        for entry in refused:
            note(f"nova: not copied: {shown(entry.path)}: {entry.why}")
    return 1 if refused else 0


async def _into_remote(sandbox: Sandbox, local: str, remote: str) -> str:
    """A folder copied to one that is there goes into it."""
    if not os.path.isdir(local) or local.rstrip("/").endswith("/.") or local == ".":
        return remote
    if await sandbox.files.exists(remote) and (await sandbox.files.stat(remote)).is_directory:
        return os.path.join(remote, os.path.basename(os.path.abspath(local)))
    return remote


async def _into_local(sandbox: Sandbox, remote: str, local: str) -> str:
    """The same in the other direction; the name is one that the caller typed."""
    name = os.path.basename(remote.rstrip("/"))
    if name in ("", ".", "..") or not os.path.isdir(local):
        return local
    info = await sandbox.files.stat(remote)
    return os.path.join(local, name) if info.is_directory else local


async def _size(sandbox: Sandbox, source: Place) -> int | None:
    """How many bytes there are to copy; None where that is found out on the way only."""
    if source.box is not None:
        info = await sandbox.files.stat(source.path)
        return None if info.is_directory else info.size
    path = Path(source.path)
    if not path.is_dir():
        return path.lstat().st_size
    return await asyncio.to_thread(_tree_size, path)


def _tree_size(path: Path) -> int:
    size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(folder, name)).st_size
    return size


class _Bar:
    """How far a copy is, once it has turned out to be a long one."""

    def __init__(self, total: int | None, *, hidden: bool) -> None:
        self.done = 0
        self._total = total
        self._hidden = hidden
        self._began = time.monotonic()
        self._bars: Any = None

    def add(self, size: int) -> None:
        """So many more bytes were copied."""
        self.done += size
        if self._hidden:
            return
        if self._bars is not None:
            self._bars.update(0, completed=self.done)
        elif time.monotonic() - self._began > 0.5:
            self._draw()

    def _draw(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
        self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
        self._bars.add_task("", total=self._total, completed=self.done)
        self._bars.start()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()


VERBS = {"ls": ls_command, "cp": cp_command}
