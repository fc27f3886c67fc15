"""Records and events on the disk: whole or not at all, and readable after any death."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from novasandbox.core.atomic import read_json, write_bytes, write_json
from novasandbox.core.events import EventLog, read_events

REPLACER = """
import itertools, sys
from pathlib import Path
from novasandbox.core.atomic import write_json
for n in itertools.count():
    write_json(Path(sys.argv[1]), {"n": n, "ballast": "x" * 50_000})
    if n == 0:
        print("going", flush=True)
"""


def test_a_file_is_replaced_and_is_its_owners_only(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    path.chmod(0o644)
    write_json(path, {"a": [1, None]})
    assert read_json(path) == {"a": [1, None]}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.mkdir()
    (path / "x").touch()
    with pytest.raises(OSError):  # noqa: PT011  (which one is the system's choice)
        write_bytes(path, b"new")
    assert os.listdir(tmp_path) == ["taken"]


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    writer = subprocess.Popen([sys.executable, "-c", REPLACER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer.stdout:
        assert writer.stdout.readline() == b"going\n"
        for _ in range(50):
            found = read_json(path)
            assert len(found["ballast"]) == 50_000
    writer.kill()
    writer.wait()
    assert len(read_json(path)["ballast"]) == 50_000


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "\xff"])
def test_half_a_file_reads_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text, encoding="latin-1")
    assert read_json(path) is None


def test_no_file_reads_as_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "missing") is None
    (tmp_path / "file").touch()
    assert read_json(tmp_path / "file" / "below") is None


def test_events_are_kept_in_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.add("created", template="debian-python")
    log.add("running")
    created, running = read_events(tmp_path / "events.jsonl")
    assert (created.kind, created.detail) == ("created", {"template": "debian-python"})
    assert (running.kind, running.detail) == ("running", {})
    assert created.time <= running.time
    assert read_events(tmp_path / "none") == []


def test_events_are_bounded_but_the_end_is_always_kept(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for number in range(1_200):
        log.add("paused", number=number)
    log.add("stopped", reason="it was killed")
    kept = read_events(tmp_path / "events.jsonl")
    assert len(kept) == 1_001
    assert kept[-1].kind == "stopped"


@pytest.mark.parametrize(
    "line", ['{"time": 1, "ki', "", "5", "null", "[]", '{"time": "x", "kind": "k"}', '{"time": 1}']
)
def test_a_damaged_line_is_passed_over(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    whole = json.dumps({"time": 2.5, "kind": "running"})
    path.write_text(f"{whole}\n{line}\n{whole}\n{line}")
    assert [event.time for event in read_events(path)] == [2.5, 2.5]


def test_events_of_several_threads_are_whole_lines(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")

    def add_many() -> None:
        for _ in range(50):
            log.add("timeout", text="x" * 500)

    threads = [threading.Thread(target=add_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_events(tmp_path / "events.jsonl")) == 200
