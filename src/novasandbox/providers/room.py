"""What QEMU needs of the host's files, and nothing else.

The program, its loader and shared libraries (as the loader itself lists them), its firmware,
and the modules that hold its accelerators. Working that out costs some 20 ms, so the answer
is kept on disk.
"""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from novasandbox.core.atomic import read_json, write_json
from novasandbox.errors import ProviderUnavailable
from novasandbox.providers.jail import Bind

if TYPE_CHECKING:
    from collections.abc import Iterable

_PT_INTERP = 3
_FIRMWARE = ("qemu", "seabios", "qemu-efi-aarch64", "ipxe/qemu")


@dataclass(frozen=True, slots=True)
class Room:
    """program: its path in the room. env: what the loader needs to find the libraries."""

    program: str
    binds: tuple[Bind, ...]
    env: dict[str, str]


def qemu_room(qemu: str | Path, cache: Path | None = None) -> Room:
    """The room for this QEMU. cache: a folder where the answer is kept.

    Blocks for some 20 ms the first time and after QEMU or the host's libraries have changed.
    Raises ProviderUnavailable when the program is none that a loader can start.
    """
    # Links would have to be in the room as well.
    program = Path(qemu).resolve()
    kept = cache / f"room-{_key(program)}.json" if cache is not None else None
    paths = read_json(kept) if kept is not None else None
    if not paths or not all(os.path.exists(path) for path in paths):
        paths = list(dict.fromkeys(_needed(program)))
        if kept is not None:
            write_json(kept, paths)
    libraries = [path for path in map(Path, paths) if ".so" in path.name]
    folders = dict.fromkeys(str(p.parent) for p in libraries if not p.name.startswith("accel-"))
    return Room(
        str(program),
        tuple(Bind(path, path) for path in paths),
        # In the room there is no /etc/ld.so.cache.
        {"LD_LIBRARY_PATH": ":".join(folders)},
    )


def _key(program: Path) -> str:
    try:
        found = program.stat()
    except OSError as error:
        raise ProviderUnavailable(f"{program} cannot be started", why=str(error)) from error
    cache = Path("/etc/ld.so.cache")
    changed = cache.stat().st_mtime_ns if cache.exists() else 0
    what = f"{program} {found.st_mtime_ns} {found.st_size} {changed}"
    return hashlib.sha256(what.encode()).hexdigest()[:16]


def _needed(program: Path) -> Iterable[str]:
    interpreter = _interpreter(program)
    yield str(program)
    if interpreter is not None:
        yield interpreter
        libraries = _libraries(interpreter, program)
        yield from libraries
        for module in _accelerators(program, libraries):
            yield str(module)
            yield from _libraries(interpreter, module)
    yield from _firmware(program)


def _interpreter(program: Path) -> str | None:
    """The loader that an ELF file names; None when it is static."""
    with program.open("rb") as file:
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02":
            raise ProviderUnavailable(
                f"{program} is not a 64-bit program",
                why="a script cannot be started in the jail, where there is no shell",
                fix="Name the program itself, with NOVA_QEMU.",
            )
        (table,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        for index in range(count):
            file.seek(table + index * size)
            kind, _, offset, _, _, length = struct.unpack("<IIQQQQ", file.read(40))
            if kind == _PT_INTERP:
                file.seek(offset)
                return file.read(length).rstrip(b"\0").decode()
    return None


def _libraries(interpreter: str, program: Path) -> list[str]:
    listed = subprocess.run(
        [interpreter, "--list", str(program)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={},
    )
    if listed.returncode != 0 or "not found" in listed.stdout:
        raise ProviderUnavailable(
            f"{program} cannot be started",
            why=(listed.stderr or listed.stdout).strip()[-300:],
            fix="Install QEMU again.",
        )
    lines = (
        line.split(" (")[0].rpartition("=> ")[2].strip() for line in listed.stdout.splitlines()
    )
    return [line for line in lines if line.startswith("/") and line != interpreter]


def _accelerators(program: Path, libraries: list[str]) -> list[Path]:
    """QEMU's own modules, of which only those that run a guest are needed here."""
    folders = {Path(library).parent / "qemu" for library in libraries}
    folders |= {program.parent.parent / "lib" / "qemu", program.parent.parent / "lib64" / "qemu"}
    # /lib and /usr/lib are one folder on most hosts; QEMU looks where it was told to.
    folders = {folder.resolve() for folder in folders if folder.is_dir()}
    arch = program.name.rpartition("-")[2]
    return sorted(path for folder in folders for path in folder.glob(f"accel-*-{arch}.so"))


def _firmware(program: Path) -> Iterable[str]:
    share = program.parent.parent / "share"
    for name in _FIRMWARE:
        if (share / name).is_dir():
            yield str(share / name)
