"""Named moments of sandboxes: each a folder of its own, whole or not there at all.

    <home>/snapshots/<id>/snapshot.json   what it is, and what it stands on
                          state           memory and devices; sealed with their hashes

A snapshot outlives its sandbox. What it stands on (artifacts, layers of the disk) is kept
as long as it is.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from novasandbox.core.atomic import sync_folder
from novasandbox.core.ground import Ground, layers_dir
from novasandbox.core.home import home
from novasandbox.core.hypervisor import STATE, SandboxConfig
from novasandbox.errors import InvalidRequest, NameTaken, NovaError, SnapshotInvalid

_RECORD = "snapshot.json"
_FORMAT = 1
# Saving takes seconds, making children from what was saved a little more.
_ABANDONED = 3600.0
KIND = "saved"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A sandbox at one moment.

    parent: the snapshot that its sandbox came from, if any. sandbox: its sandbox's id.
    created: seconds since the epoch. size: bytes that go when it is removed, if no other
    shares its layers.
    """

    id: str
    name: str | None
    parent: str | None
    sandbox: str
    template: str
    created: float
    size: int


@dataclass(frozen=True, slots=True)
class Kept:
    """All that is known of a snapshot.

    config: its sandbox's, without the values of its environment. signature: what its machine
    depends on (`BaseHypervisor.signature`).
    """

    id: str
    name: str | None
    parent: str | None
    sandbox: str
    created: float
    provider: str
    signature: Mapping[str, Any]
    ground: Ground
    config: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Its folder."""
        return snapshots_dir() / self.id

    @property
    def settings(self) -> SandboxConfig:
        """Its sandbox's configuration; the values of `env` lie in the guest's memory alone."""
        return SandboxConfig(**{**self.config, "env": dict.fromkeys(self.config["env"], "***")})

    @property
    def public(self) -> Snapshot:
        """What users see of it."""
        size = (self.folder / STATE).stat().st_size
        if self.ground.own_layers:
            last = layers_dir() / f"{self.ground.own_layers[-1]}.qcow2"
            size += last.stat().st_blocks * 512 if last.exists() else 0
        return Snapshot(
            id=self.id,
            name=self.name,
            parent=self.parent,
            sandbox=self.sandbox,
            template=self.ground.template,
            created=self.created,
            size=size,
        )


def snapshots_dir() -> Path:
    """The folder with one directory for each snapshot."""
    path = home() / "snapshots"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def new_folder() -> Path:
    """An empty folder for what is being saved; `keep` gives it its place."""
    path = snapshots_dir() / f".{secrets.token_hex(6)}"
    path.mkdir(mode=0o700)
    return path


def keep(folder: Path, kept: Kept) -> Kept:
    """Make a snapshot of a folder with a saved state: on disk, hashed, in one step."""
    from novasandbox.images import manifest

    data = {**asdict(kept), "ground": kept.ground.as_data(), "format": _FORMAT}
    (folder / _RECORD).write_text(json.dumps(data, indent=1))
    manifest.seal(folder, KIND, kept.id, {})
    folder.rename(kept.folder)
    sync_folder(kept.folder.parent)
    return kept


def collect() -> list[Path]:
    """Remove what was being saved by a process that died; gives the folders."""
    gone = []
    for path in snapshots_dir().glob(".*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
                gone.append(path)
    return gone


def check_name(name: str | None) -> None:
    """Raise NameTaken where a snapshot has that name, InvalidRequest where none can."""
    if name is None:
        return
    SandboxConfig(name=name)
    if any(name in (kept.name, kept.id) for kept in all_kept()):
        raise NameTaken(
            f"the name {name!r} is taken by another snapshot",
            fix=f"Choose another, or remove that one: nova snapshot rm {name}",
        )


def new_id() -> str:
    """An id that no snapshot has."""
    return secrets.token_hex(6)


def folders() -> list[Path]:
    """The folder of every snapshot, the unreadable ones' too."""
    return [path for path in snapshots_dir().iterdir() if not path.name.startswith(".")]


def all_kept() -> list[Kept]:
    """Every snapshot, the oldest first."""
    found = [kept for path in folders() if (kept := load(path)) is not None]
    return sorted(found, key=lambda kept: (kept.created, kept.id))


def find(id_or_name: str) -> Kept:
    """By id, by name, or by a unique start of an id.

    Raises InvalidRequest where there is none, or where several match.
    """
    known = all_kept()
    for kept in known:
        if id_or_name in (kept.id, kept.name):
            return kept
    matches = [kept for kept in known if id_or_name and kept.id.startswith(id_or_name)]
    if len(matches) == 1:
        return matches[0]
    raise InvalidRequest(
        f"there is no snapshot {id_or_name!r}"
        if not matches
        else f"{id_or_name!r} is the start of {len(matches)} snapshots' ids",
        fix="nova snapshot ls shows those that there are.",
    )


def check(kept: Kept) -> None:
    """See that a snapshot is whole. Raises SnapshotInvalid."""
    from novasandbox.images import manifest

    try:
        sealed = manifest.check(kept.folder)
        if sealed.key != kept.id or not {STATE, _RECORD} <= set(sealed.files):
            raise manifest.Damaged(f"{kept.folder} is another snapshot's")
    except manifest.Damaged as error:
        raise SnapshotInvalid(
            f"the snapshot {kept.name or kept.id} is damaged",
            why=str(error),
            fix=f"It cannot be restored any more: nova snapshot rm {kept.id}",
        ) from error


def discard(kept: Kept) -> None:
    """Remove a snapshot, in one step; its layers are for `layers.sweep`."""
    grave = snapshots_dir() / f".{secrets.token_hex(6)}"
    kept.folder.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)


def load(path: Path) -> Kept | None:
    """The snapshot in a folder; None where it cannot be read, or is another version's."""
    try:
        data = json.loads((path / _RECORD).read_bytes())
        if data.pop("format") != _FORMAT:
            return None
        ground = Ground.load(data.pop("ground"))
        return None if ground is None else Kept(**data, ground=ground)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, NovaError):
        return None
