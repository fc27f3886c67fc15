"""The sandboxes of this user, as files: one directory and one record each.

A record is written atomically at every change, so any process can list, connect, and
collect what a killed one has left behind. What has ended leaves a small note, so that
asking for it later is answered with how it ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from novasandbox.core import layers, snapshots
from novasandbox.core.atomic import read_json, write_json
from novasandbox.core.ground import Ground
from novasandbox.core.home import run_dir
from novasandbox.core.hypervisor import SandboxConfig, SandboxState
from novasandbox.core.owner import Owner
from novasandbox.errors import (
    InvalidRequest,
    NameTaken,
    SandboxExpired,
    SandboxFailed,
    SandboxNotFound,
    SnapshotInvalid,
)

log = logging.getLogger(__name__)

_RECORD = "sandbox.json"
_NOTES_KEPT = 200
_GRACE = 30.0
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a sandbox, apart from the values of its environment.

    created, deadline: seconds since the epoch; deadline None: no end. owner: the process
    that holds it. machine: what its provider needs to adopt it. token: the holder's name
    towards the guest, 32 hex digits. ground: what it stands on (`core/ground.py`), once it
    has a machine. disk: the id of its own layer. origin: the snapshot that it came from, or
    went back to, or took last. asleep: while it hibernates, what wakes it (`core/sleeping.py`).
    rests: why it is paused or hibernated where it was by itself, `idle` or `timeout`.
    """

    id: str
    state: SandboxState
    created: float
    config: Mapping[str, Any]
    token: str
    deadline: float | None = None
    owner: Owner | None = None
    provider: str | None = None
    accelerator: str | None = None
    machine: Mapping[str, Any] | None = None
    reason: str | None = None
    expired: bool = False
    ports: Mapping[str, int] = field(default_factory=dict)
    ground: Mapping[str, Any] | None = None
    disk: str | None = None
    origin: str | None = None
    asleep: Mapping[str, Any] | None = None
    rests: str | None = None

    @property
    def name(self) -> str | None:
        """The name that was given, if any."""
        name = self.config.get("name")
        return name if isinstance(name, str) else None

    @property
    def directory(self) -> Path:
        """Its directory."""
        return run_dir() / self.id

    @property
    def settings(self) -> SandboxConfig:
        """What it was made with; the values of `env` are not known any more."""
        return SandboxConfig(**{**self.config, "env": dict.fromkeys(self.config["env"], "***")})

    def as_data(self) -> dict[str, Any]:
        """As JSON data."""
        # Its values are data already; `asdict` would copy all of it.
        data: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data["state"] = self.state.value
        data["owner"] = self.owner.as_data() if self.owner else None
        data["format"] = _FORMAT
        return data

    @classmethod
    def load(cls, data: Any) -> Record | None:
        """From `as_data`'s result; None where it is none of ours."""
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            return None
        known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
        try:
            known["state"] = SandboxState(known["state"])
            known["owner"] = Owner.load(known.get("owner"))
            return cls(**known)
        except (KeyError, TypeError, ValueError):
            return None


def config_data(config: SandboxConfig) -> dict[str, Any]:
    """A configuration as JSON data, with the environment's values left out."""
    data = asdict(config)
    data["env"] = sorted(config.env)
    return data


def save(record: Record) -> Record:
    """Write the record.

    Acknowledged means on disk, but for one that does not outlive its maker, nor thus a crash of
    the host: waiting for the disk would only make it slower.
    """
    lasting = bool(record.config.get("detach")) or record.state is SandboxState.HIBERNATED
    write_json(record.directory / _RECORD, record.as_data(), lasting=lasting)
    return record


def change(record: Record, **values: Any) -> Record:
    """The record with other values, written."""
    return save(replace(record, **values))


def create(config: SandboxConfig, owner: Owner, **more: Any) -> Record:
    """Make a directory and a record, in state CREATING. Raises NameTaken.

    more: of its fields.
    """
    with _lock():
        if config.name is not None:
            _require_free(config.name)
        identity = _new_id()
        record = Record(
            id=identity,
            state=SandboxState.CREATING,
            created=time.time(),
            config=config_data(config),
            token=secrets.token_hex(16),
            owner=owner,
            **more,
        )
        record.directory.mkdir(mode=0o700)
        try:
            return save(record)
        except OSError:
            record.directory.rmdir()
            raise


def assign(record: Record, config: Mapping[str, Any], deadline: float | None) -> Record:
    """The record of a sandbox that somebody takes, written. Raises NameTaken.

    config: as `config_data` gives it.
    """
    name = config["name"]
    with _lock() if name is not None else contextlib.nullcontext():
        if name is not None:
            _require_free(name)
        return change(record, config=config, deadline=deadline)


def _require_free(name: str) -> None:
    taken = next((r for r in records() if r.name == name), None)
    if taken is not None:
        raise NameTaken(
            f"the name {name!r} is taken by sandbox {taken.id}",
            fix=f"Choose another, or end that one: nova kill {name}",
        )


def _new_id() -> str:
    while True:
        identity = secrets.token_hex(6)
        if not (run_dir() / identity).exists():
            return identity


def records() -> list[Record]:
    """Every living sandbox's record, oldest first."""
    found = []
    for path in run_dir().iterdir():
        if not path.name.startswith("."):
            record = Record.load(read_json(path / _RECORD))
            if record is not None:
                found.append(record)
    return sorted(found, key=lambda record: (record.created, record.id))


def get(identity: str) -> Record:
    """The record of exactly this id. Raises SandboxNotFound, or how it ended."""
    record = Record.load(read_json(run_dir() / identity / _RECORD)) if _plain(identity) else None
    if record is None:
        raise _missing(identity)
    return record


def exists(identity: str) -> bool:
    """Whether a sandbox of exactly this id lives."""
    return (run_dir() / identity / _RECORD).exists()


def find(id_or_name: str) -> Record:
    """By id, by a unique start of one, or by name.

    Raises SandboxNotFound, InvalidRequest (several match), or how it ended.
    """
    living = records()
    for record in living:
        if id_or_name in (record.id, record.name):
            return record
    matches = [r for r in living if id_or_name and r.id.startswith(id_or_name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InvalidRequest(
            f"{id_or_name!r} is the start of {len(matches)} ids",
            why=", ".join(r.id for r in matches[:5]),
            fix="Give more of it.",
        )
    raise _missing(id_or_name)


def _plain(identity: str) -> bool:
    return bool(identity) and "/" not in identity and not identity.startswith(".")


def _missing(id_or_name: str) -> SandboxNotFound | SandboxFailed:
    note = _note(id_or_name)
    if note is None:
        return SandboxNotFound(
            f"there is no sandbox {id_or_name!r}", fix="nova ps lists those that run."
        )
    if note.expired:
        return SandboxExpired(
            "the sandbox has ended",
            why=note.reason,
            fix="Make a new one; a longer timeout= keeps it longer.",
            sandbox_id=note.id,
        )
    if note.state is SandboxState.FAILED:
        return SandboxFailed("the sandbox has failed", why=note.reason, sandbox_id=note.id)
    return SandboxNotFound(
        "the sandbox was ended", why=note.reason, fix="Make a new one.", sandbox_id=note.id
    )


def _notes() -> Path:
    path = run_dir() / ".ended"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _note(id_or_name: str) -> Record | None:
    found = None
    for path in _notes().glob("*.json"):
        note = Record.load(read_json(path))
        if (
            note is not None
            and id_or_name in (note.id, note.name)
            and (found is None or note.created > found.created)
        ):
            found = note
    return found


def bury(record: Record, state: SandboxState, reason: str, *, expired: bool = False) -> Record:
    """Remove the directory and keep a note of how the sandbox ended."""
    # Nobody may come to stand on its layers between the look at who does and their removal.
    with _lock():
        return _bury(record, state, reason, expired=expired)


def _bury(record: Record, state: SandboxState, reason: str, *, expired: bool = False) -> Record:
    ended = replace(record, state=state, reason=reason, expired=expired, machine=None)
    # Before the record is gone, so that nobody finds neither; on a full disk without.
    with contextlib.suppress(OSError):
        notes = _notes()
        write_json(notes / f"{record.id}.json", ended.as_data(), lasting=False)
        kept = sorted(notes.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-_NOTES_KEPT]:
            path.unlink(missing_ok=True)
    shutil.rmtree(record.directory, ignore_errors=True)
    ground = Ground.load(record.ground)
    if ground is not None:
        _let_go_of(ground)
    return ended


def let_go_of(ground: Ground) -> None:
    """Remove what was saved for somebody who was never made, where nobody else stands on it."""
    with _lock():
        _let_go_of(ground)


def _let_go_of(ground: Ground) -> None:
    """Remove what an ended sandbox or a removed snapshot stood on, where it was the last."""
    if ground.own_layers:
        sweep(ground.own_layers)
    memory = ground.own_memory
    # Where it cannot be told who needs it, it stays.
    with contextlib.suppress(OSError, SnapshotInvalid):
        if memory is not None and memory not in used_artifacts():
            from novasandbox.images.store import Store

            Store().remove(memory)


def sweep(candidates: Iterable[str] | None = None) -> int:
    """Remove layers that nobody needs, see `layers.sweep`; gives their bytes.

    Where it cannot be told who needs what, all stay.
    """
    try:
        return layers.sweep(used_layers(), candidates)
    except (OSError, SnapshotInvalid) as error:
        log.warning("no layers are removed: %s", error)
        return 0


def used_layers(besides: str | None = None) -> set[str]:
    """The layers of disks that a sandbox or a snapshot needs. Raises SnapshotInvalid.

    besides: a sandbox's id, which is not asked.
    """
    return {layer for ground in _grounds(besides) for layer in ground.own_layers}


def used_artifacts() -> set[str]:
    """The artifacts that a sandbox, asleep or not, or a snapshot needs. Raises SnapshotInvalid."""
    return {key for ground in _grounds() for key in ground.keys}


def _grounds(besides: str | None = None) -> Iterator[Ground]:
    """What is stood on. Raises SnapshotInvalid for a record that cannot be read.

    It may be of a newer version, or on a disk that fails: what it needs is not for us to remove.
    """
    # Before and after: meanwhile what one names may come to be named by the other alone.
    before = list(_grounds_of_snapshots())
    for path in run_dir().iterdir():
        if path.name.startswith(".") or path.name == besides:
            continue
        record = Record.load(read_json(path / _RECORD))
        if record is None and (path / _RECORD).exists():
            raise _unreadable(path / _RECORD)
        if record is not None and record.ground is not None:
            ground = Ground.load(record.ground)
            if ground is None:
                raise _unreadable(path / _RECORD)
            yield ground
    yield from before
    yield from _grounds_of_snapshots()


def _grounds_of_snapshots() -> Iterator[Ground]:
    for path in snapshots.folders():
        kept = snapshots.load(path)
        if kept is None and path.exists():
            raise _unreadable(path)
        if kept is not None:
            yield kept.ground


def _unreadable(path: Path) -> SnapshotInvalid:
    return SnapshotInvalid(
        "it cannot be told what is still needed",
        why=f"{path} cannot be read, or is of another version",
        fix="Use the version that made it, or remove it.",
    )


def keep_snapshot(folder: Path, kept: snapshots.Kept) -> None:
    """Make a snapshot of a folder with a saved state, in one step. Raises NameTaken."""
    with _lock():
        snapshots.check_name(kept.name)
        snapshots.keep(folder, kept)


def remove_snapshot(id_or_name: str) -> None:
    """Remove a snapshot, and its layers of the disk where nobody else needs them."""
    with _lock():
        kept = snapshots.find(id_or_name)
        snapshots.discard(kept)
        _let_go_of(kept.ground)


def collect_leftovers() -> list[Record]:
    """End and remove what dead owners have left; gives the ended ones.

    A detached sandbox whose machine lives is no leftover: the next keeper takes it.
    """
    collected = []
    with _lock():
        for record in records():
            if record.state is SandboxState.HIBERNATED:
                _end_machine_of_sleeper(record)
            if not is_leftover(record):
                continue
            machine = Owner.load(record.machine)
            if machine is not None:
                machine.kill()
            if _is_due(record):
                reason = "its time-to-live was over"
                collected.append(_bury(record, SandboxState.STOPPED, reason, expired=True))
            else:
                reason = "the process that held it died"
                collected.append(_bury(record, SandboxState.FAILED, reason))
        _remove_strays()
        if collected:
            snapshots.collect()
            sweep()
    return collected


def _end_machine_of_sleeper(record: Record) -> None:
    """Whoever put it to sleep may have died before he could end its machine."""
    machine = Owner.load(record.machine)
    if machine is not None and not (record.owner and record.owner.alive):
        # The record stays: whoever wakes it just now may have written another.
        machine.kill()


def end_unheld(identity: str) -> None:
    """End a sandbox whose holder does not answer; harmless when it has ended."""
    with _lock():
        record = Record.load(read_json(run_dir() / identity / _RECORD))
        if record is None:
            return
        machine = Owner.load(record.machine)
        if machine is not None:
            machine.kill()
        _bury(record, SandboxState.STOPPED, "it was killed")


def is_leftover(record: Record) -> bool:
    """Whether its holder died, and neither a keeper can take it over nor does it sleep."""
    if record.state is SandboxState.HIBERNATED:
        return False
    if record.owner is not None and record.owner.alive:
        return False
    machine = Owner.load(record.machine)
    lives = machine is not None and machine.alive
    waits = record.config.get("detach") and record.state is not SandboxState.CREATING
    return not (lives and waits) or _is_due(record)


def _is_due(record: Record) -> bool:
    """Whether its time is over, and the one who should have ended it had his time as well."""
    if record.config.get("on_timeout", "kill") != "kill":
        return False  # Whoever holds it next puts it to rest.
    return record.deadline is not None and record.deadline + _GRACE < time.time()


def _remove_strays() -> None:
    """Directories without a record: their maker died at once, or the host did."""
    for path in run_dir().iterdir():
        if path.name.startswith(".") or not path.is_dir() or _has_record(path):
            continue
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 60:
                shutil.rmtree(path, ignore_errors=True)


def _has_record(folder: Path) -> bool:
    """Whether there is one; one that was not written out when the host crashed is empty."""
    try:
        return (folder / _RECORD).stat().st_size > 0
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    descriptor = os.open(run_dir() / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
