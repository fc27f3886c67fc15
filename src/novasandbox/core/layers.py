"""Layers of disks that sandboxes have left behind: written no more, shared by many.

    <home>/layers/<id>.qcow2   the layer
                  <id>.json    its size, times and inode as they were when it was frozen, and
                               its hash where somebody took the time

A layer belongs to whoever names it in a record: a sandbox, asleep or not, or a snapshot. It
goes when nobody does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from novasandbox.core.atomic import read_json, write_json
from novasandbox.core.ground import layer_path, layers_dir
from novasandbox.errors import SnapshotInvalid

# A layer is there a moment before the record that names it.
_YOUNG = 600.0


def leave(disk: Path) -> str:
    """Share what a sandbox has written so far under its id; it still goes by its own name too."""
    layer = disk.stem
    os.link(disk, layers_dir() / disk.name)
    return layer


def settle(layer: str) -> None:
    """Note what a layer is like, now that nobody writes it any more."""
    path = layer_path(layer)
    path.chmod(0o400)
    note = path.with_suffix(".json")
    if (read_json(note) or {}).get("stamp") != stamp(path):
        # Lost in a crash of the host it is taken again.
        write_json(note, {"stamp": stamp(path)}, lasting=False)


def make_sure(layer: str) -> None:
    """Bring a layer to the disk and take its hash, so that damage can be told later."""
    from novasandbox.images.manifest import content_hash

    path = layer_path(layer)
    note = path.with_suffix(".json")
    known = read_json(note) or {}
    if known.get("stamp") != stamp(path) or "hash" not in known:
        digest = content_hash(path, sync=True)
        write_json(note, {"stamp": stamp(path), "hash": digest})


def check(layer: str) -> Path:
    """Where a layer lies. Raises SnapshotInvalid where it is missing or not what it was."""
    from novasandbox.images.manifest import content_hash

    path = layer_path(layer)
    if "/" in layer:
        return path  # Of an artifact, which the store has checked.
    known = read_json(path.with_suffix(".json"))
    try:
        current = stamp(path)
        if known is None:
            # Its maker died, or the disk was full, before he could note it down.
            settle(layer)
            return path
        if known.get("stamp") == current:
            return path
        if known.get("hash") == content_hash(path):
            write_json(path.with_suffix(".json"), {**known, "stamp": current})
            return path
    except FileNotFoundError:
        pass
    raise SnapshotInvalid(
        "a layer of the disk is missing or damaged",
        why=f"{path} is not what was left there",
        fix="It cannot be restored any more: remove it.",
    )


def sweep(used: Iterable[str], candidates: Iterable[str] | None = None) -> int:
    """Remove layers that nobody names; gives their bytes.

    used: the ids that records name. candidates: only these; None: all that are old enough.
    """
    named, freed = set(used), 0
    chosen = None if candidates is None else set(candidates)
    for path in layers_dir().glob("*.qcow2"):
        if path.stem in named or (chosen is not None and path.stem not in chosen):
            continue
        try:
            state = path.stat()
            if chosen is None and time.time() - state.st_ctime < _YOUNG:
                continue
            path.unlink()
        except FileNotFoundError:
            continue
        path.with_suffix(".json").unlink(missing_ok=True)
        freed += state.st_blocks * 512
    return freed


def stamp(path: Path) -> list[int]:
    """What tells cheaply whether a file is still what it was."""
    # Not the time of the last change of the inode: a link more or less is no damage.
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]
