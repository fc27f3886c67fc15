"""The sandboxes of a user, as any of his processes finds them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from novasandbox.core import registry
from novasandbox.core.atomic import write_json
from novasandbox.core.ground import layers_dir
from novasandbox.core.home import run_dir
from novasandbox.core.hypervisor import SandboxConfig, SandboxState
from novasandbox.core.owner import Owner
from novasandbox.core.registry import Record
from novasandbox.errors import (
    InvalidRequest,
    NameTaken,
    SandboxExpired,
    SandboxFailed,
    SandboxNotFound,
    SnapshotInvalid,
)

pytestmark = pytest.mark.usefixtures("own_home")

RACER = """
import sys
from novasandbox.core import registry
from novasandbox.core.home import run_dir
from novasandbox.core.hypervisor import SandboxConfig
from novasandbox.core.owner import Owner
from novasandbox.errors import NameTaken
print("ready", flush=True)
sys.stdin.readline()
try:
    print(registry.create(SandboxConfig(name="one"), Owner.self()).id, flush=True)
except NameTaken:
    print("taken", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def machine() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a machine."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def made(**settings: Any) -> Record:
    """A record of this process's."""
    return registry.create(SandboxConfig(**settings), Owner.self())


def dead() -> Owner:
    """A process that has ended."""
    return replace(Owner.self(), started=1.0)


def test_a_record_is_read_back_as_it_was_written() -> None:
    record = made(name="box", env={"TOKEN": "secret"}, metadata={"a": "b"})
    assert registry.get(record.id) == record
    assert record.state is SandboxState.CREATING
    assert record.name == "box"
    assert len(bytes.fromhex(record.token)) == 16
    changed = registry.change(
        record,
        state=SandboxState.RUNNING,
        deadline=time.time() + 5,
        machine={"pid": 4, "started": 2.0},
        ports={"80": 8080},
    )
    assert registry.get(record.id) == changed
    assert registry.records() == [changed]


def test_a_record_holds_no_value_of_the_environment() -> None:
    record = made(env={"TOKEN": "secret"})
    assert record.config["env"] == ["TOKEN"]
    for path in record.directory.rglob("*"):
        assert b"secret" not in path.read_bytes()


def test_a_directory_is_its_owners_only() -> None:
    record = made()
    assert record.directory.stat().st_mode & 0o777 == 0o700
    assert (record.directory / "sandbox.json").stat().st_mode & 0o777 == 0o600


def test_records_come_oldest_first() -> None:
    ids = [made().id for _ in range(4)]
    assert [record.id for record in registry.records()] == ids


@pytest.mark.parametrize(
    "data",
    [
        None,
        5,
        {},
        {"format": 2},
        {"format": 1},
        {"format": 1, "state": "flying"},
        {"format": 1, "id": "x", "state": "running"},
    ],
)
def test_what_is_no_record_is_passed_over(data: object) -> None:
    record = made()
    strange = run_dir() / "ffffffffffff"
    strange.mkdir()
    write_json(strange / "sandbox.json", data)
    assert registry.records() == [record]
    with pytest.raises(SandboxNotFound):
        registry.get(strange.name)


def test_a_sandbox_is_found_by_id_by_a_start_of_it_and_by_name() -> None:
    record = made(name="box")
    for key in (record.id, record.id[:5], "box"):
        assert registry.find(key) == record


def test_a_name_goes_before_the_start_of_an_id() -> None:
    first = made()
    named = made(name=first.id[:4])
    assert registry.find(first.id[:4]) == named


def test_a_start_that_several_have_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(["aa0000000001", "aa0000000002"])
    monkeypatch.setattr(registry, "_new_id", lambda: next(ids))
    made()
    made()
    with pytest.raises(InvalidRequest, match="2 ids") as caught:
        registry.find("aa")
    assert not isinstance(caught.value, SandboxNotFound)
    assert registry.find("aa0000000002").id == "aa0000000002"


@pytest.mark.parametrize("key", ["", "nobody", "../..", ".ended", "a/b", "."])
def test_who_is_not_there_is_not_found(key: str) -> None:
    made()
    with pytest.raises(SandboxNotFound):
        registry.find(key)
    with pytest.raises(SandboxNotFound):
        registry.get(key)


def test_a_name_is_one_sandboxs_while_that_lives() -> None:
    first = made(name="box")
    with pytest.raises(NameTaken, match=first.id):
        made(name="box")
    assert len(registry.records()) == 1
    registry.bury(first, SandboxState.STOPPED, "it was killed")
    assert made(name="box").id != first.id


def test_of_two_processes_that_want_a_name_one_gets_it() -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    pipes = [(racer.stdin, racer.stdout) for racer in racers]
    said = []
    try:
        for _, out in pipes:
            assert out is not None
            assert out.readline() == "ready\n"
        for into, _ in pipes:
            assert into is not None
            into.write("go\n")
            into.flush()
        for _, out in pipes:
            assert out is not None
            said.append(out.readline().strip())
        assert said.count("taken") == 2
        assert [record.id for record in registry.records()] == [s for s in said if s != "taken"]
    finally:
        for racer in racers:
            racer.communicate("end\n")


@pytest.mark.parametrize(
    ("state", "expired", "kind"),
    [
        (SandboxState.STOPPED, True, SandboxExpired),
        (SandboxState.FAILED, False, SandboxFailed),
        (SandboxState.STOPPED, False, SandboxNotFound),
    ],
)
def test_who_has_ended_is_remembered_by_how(
    state: SandboxState, expired: bool, kind: type[Exception]
) -> None:
    record = made(name="box")
    ended = registry.bury(record, state, "the reason", expired=expired)
    assert (ended.state, ended.reason) == (state, "the reason")
    assert not record.directory.exists()
    for key in (record.id, "box"):
        with pytest.raises(kind, match="the reason") as caught:
            registry.find(key)
        assert type(caught.value) is kind
        assert caught.value.sandbox_id == record.id  # type: ignore[attr-defined]


def test_the_newest_that_had_a_name_is_remembered() -> None:
    registry.bury(made(name="box"), SandboxState.FAILED, "the first")
    registry.bury(made(name="box"), SandboxState.FAILED, "the second")
    with pytest.raises(SandboxFailed, match="the second"):
        registry.find("box")


def test_of_those_that_ended_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_NOTES_KEPT", 3)
    for number in range(6):
        ended = registry.bury(made(), SandboxState.STOPPED, "it was killed")
        os.utime(run_dir() / ".ended" / f"{ended.id}.json", (number, number))
    assert len(list((run_dir() / ".ended").iterdir())) == 3


def test_what_a_dead_owner_left_is_collected_with_its_machine(
    machine: subprocess.Popen[bytes],
) -> None:
    mine = made()
    theirs = registry.change(
        registry.create(SandboxConfig(name="left"), dead()),
        state=SandboxState.RUNNING,
        machine=Owner.of(machine.pid).as_data(),
    )
    assert [record.id for record in registry.collect_leftovers()] == [theirs.id]
    assert machine.wait(timeout=20) < 0
    assert registry.records() == [mine]
    with pytest.raises(SandboxFailed, match="held it died"):
        registry.find("left")
    assert registry.collect_leftovers() == []


def test_a_detached_sandbox_waits_for_the_next_keeper_while_its_machine_lives(
    machine: subprocess.Popen[bytes],
) -> None:
    record = registry.change(
        registry.create(SandboxConfig(detach=True), dead()),
        state=SandboxState.RUNNING,
        machine=Owner.of(machine.pid).as_data(),
    )
    assert registry.collect_leftovers() == []
    assert registry.records() == [record]
    machine.kill()
    machine.wait()
    assert [each.id for each in registry.collect_leftovers()] == [record.id]


def test_a_detached_sandbox_that_was_never_finished_is_a_leftover(
    machine: subprocess.Popen[bytes],
) -> None:
    registry.change(
        registry.create(SandboxConfig(detach=True), dead()),
        machine=Owner.of(machine.pid).as_data(),
    )
    assert len(registry.collect_leftovers()) == 1
    assert machine.wait(timeout=20) < 0


def test_a_machine_whose_id_another_process_has_by_now_is_left_alone(
    machine: subprocess.Popen[bytes],
) -> None:
    gone = replace(Owner.of(machine.pid), started=1.0)
    registry.change(registry.create(SandboxConfig(), dead()), machine=gone.as_data())
    assert len(registry.collect_leftovers()) == 1
    assert machine.poll() is None


def test_a_directory_without_a_record_goes_when_it_is_old() -> None:
    young, old = (run_dir() / name for name in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"))
    for path in (young, old):
        path.mkdir()
    os.utime(old, (1, 1))
    registry.collect_leftovers()
    assert young.exists()
    assert not old.exists()


def test_a_record_that_a_crash_of_the_host_left_empty_is_none() -> None:
    folder = made().directory
    (folder / "sandbox.json").write_bytes(b"")
    assert registry.records() == []
    os.utime(folder, (1, 1))
    registry.collect_leftovers()
    assert not folder.exists()


def test_a_note_that_is_damaged_is_passed_over() -> None:
    ended = registry.bury(made(), SandboxState.FAILED, "the reason")
    notes = run_dir() / ".ended"
    (notes / "half.json").write_text(json.dumps({"format": 1, "state": "x"})[:-3])
    (notes / "strange.json").write_text(json.dumps({"format": 1, "state": "x"}))
    with pytest.raises(SandboxFailed, match="the reason"):
        registry.get(ended.id)


def test_the_home_is_made_for_its_owner_only(own_home: Path) -> None:
    registry.records()
    assert own_home.stat().st_mode & 0o777 == 0o700
    assert (own_home / "run").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "where", ["snapshots/0123456789ab/snapshot.json", "run/ba9876543210/sandbox.json"]
)
@pytest.mark.parametrize("data", [b"{", b'{"format": 99}', b"[]"])
def test_nothing_goes_while_it_cannot_be_told_what_is_needed(
    own_home: Path, where: str, data: bytes
) -> None:
    layer = layers_dir() / "0123456789abcdef.qcow2"
    layer.write_bytes(b"a layer")
    record = own_home / where
    record.parent.mkdir(parents=True)
    record.write_bytes(data)
    assert registry.sweep((layer.stem,)) == 0
    assert layer.exists()
    with pytest.raises(SnapshotInvalid, match="another version"):
        registry.used_artifacts()
    record.unlink()
    record.parent.rmdir()
    assert registry.sweep((layer.stem,)) > 0
    assert not layer.exists()


def test_a_sleepers_machine_is_ended_and_its_record_left_to_who_wakes_it(
    machine: subprocess.Popen[bytes],
) -> None:
    dead = replace(Owner.self(), started=1.0)
    record = replace(
        made(),
        state=SandboxState.HIBERNATED,
        owner=dead,
        machine=Owner.of(machine.pid).as_data(),
    )
    registry.save(record)
    written = (record.directory / "sandbox.json").stat()
    assert registry.collect_leftovers() == []
    machine.wait(timeout=10)
    assert (record.directory / "sandbox.json").stat() == written
