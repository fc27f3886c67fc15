"""`nova` and copies on real machines: hibernate, wake, snapshot, rollback, fork, tree."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import elsewhere
from command_line import NOVA, Terminal, nova, results
from waiting import is_gone

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("own_home")]

SNAPSHOT_KEYS = {"id", "name", "parent", "sandbox", "template", "created", "size"}
# A program that makes a sandbox of its own, says its id, and waits for the end of its input.
HOLDER = """
import asyncio, sys
from novasandbox import Sandbox
async def main():
    sandbox = await Sandbox.create(timeout=600, name="held")
    await sandbox.exec("echo kept >f", check=True)
    if "sleep" in sys.argv:
        await sandbox.hibernate()
    print(sandbox.id, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    if "sleep" not in sys.argv:
        print((await sandbox.exec("cat f")).stdout, end="", flush=True)
        await sandbox.kill()
asyncio.run(main())
"""


@pytest.fixture
def box(own_home: Path, qemu: str) -> Iterator[str]:
    """A sandbox that stays, with a file of its own."""
    identity = results("start", "--name", "copied", "--timeout", "10m", "--metadata", "for=copies")
    assert nova("exec", identity, "--", "sh", "-c", "echo then >f").code == 0
    yield identity
    nova("kill", "--all")
    kept = results("snapshot", "ls", "-q").split()
    if kept:
        assert nova("snapshot", "rm", *kept).code == 0


def listed(identity: str) -> Any:
    """What `nova ps` says of a sandbox; None where it is not there."""
    return next((info for info in nova("ps", "--json").data if info["id"] == identity), None)


def text(box: str, path: str = "f") -> str:
    return results("exec", box, "--", "cat", path)


# hibernate, wake.


def test_a_sandbox_sleeps_is_listed_and_is_woken(box: str) -> None:
    pid = listed(box)["pid"]
    assert results("hibernate", "copied") == box
    assert is_gone(pid)
    info = listed(box)
    assert (info["state"], info["pid"], info["deadline"]) == ("hibernated", None, None)
    assert re.search(rf"{box} +copied +hibernated ", results("ps"))
    refused = nova("hibernate", "--json", box)
    assert (refused.code, refused.error["type"]) == (125, "IllegalTransition")
    assert refused.error["current"] == "HIBERNATED"
    assert listed(box)["state"] == "hibernated"  # It was not woken to be told that.
    woken = nova("wake", "--json", box)
    assert (woken.code, woken.data["id"], woken.data["state"]) == (0, box, "running")
    assert results("wake", box) == box  # One that is awake is left as it is.
    assert results("wake", "--quiet", box) == ""
    assert text(box) == "then"


def test_every_verb_that_uses_a_sandbox_wakes_it(box: str, tmp_path: Path) -> None:
    uses = (
        ("exec", box, "--", "true"),
        ("cp", f"{box}:f", str(tmp_path / "f")),
        ("ls", box),
        ("stats", box),
        ("snapshot", box),
        ("pause", box),
    )
    for words in uses:
        assert nova("hibernate", "--json", box).data["state"] == "hibernated"
        done = nova(*words)
        assert (done.code, done.err) == (0, ""), words
        assert listed(box)["state"] == ("paused" if words[0] == "pause" else "running")
    assert (tmp_path / "f").read_text() == "then\n"
    # One that was paused wakes as it lay down.
    assert nova("hibernate", box).code == 0
    assert nova("wake", "--json", box).data["state"] == "paused"
    assert nova("hibernate", box).code == 0
    assert nova("resume", "--json", box).data["state"] == "running"


def test_one_that_sleeps_is_ended_without_waking(box: str, own_home: Path) -> None:
    nova("hibernate", box)
    # What it would be woken from is gone: whoever wakes it fails.
    for state in (own_home / "run" / box).glob("asleep-*/state"):
        state.unlink()
    refused = nova("exec", "--json", box, "--", "true")
    assert (refused.code, refused.error["type"]) == (125, "SnapshotInvalid")
    assert refused.error["fix"] == f"What it held is lost: nova kill {box}"
    assert nova("kill", "--json", "copied").data == {"killed": [box]}
    assert listed(box) is None
    assert not (own_home / "run" / box).exists()
    again = nova("wake", "--json", box)
    assert (again.code, again.error["why"]) == (125, "it was killed")


def test_all_are_ended_asleep_or_not(box: str) -> None:
    other = results("start")
    nova("hibernate", box)
    assert set(results("kill", "--all").split()) == {box, other}
    assert nova("ps", "--json").data == []


@pytest.mark.parametrize("verb", ["hibernate", "wake", "snapshot", "fork", "rollback"])
def test_a_box_that_is_not_there_is_named(own_home: Path, verb: str) -> None:
    more = ("any",) if verb == "rollback" else ()
    done = nova(verb, "--json", "no-such-box", *more)
    assert (done.code, done.out) == (125, "")
    assert done.error["type"] == "SandboxNotFound"
    plain = nova(verb, "no-\x1b[31msuch", *more)
    assert plain.code == 125
    assert "\x1b" not in plain.err


def test_one_that_a_program_put_to_sleep_outlives_the_verb_that_wakes_it(
    own_home: Path, qemu: str
) -> None:
    made = subprocess.run(
        [sys.executable, "-c", HOLDER, "sleep"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout.strip()
    for _ in range(2):
        assert text("held") == "kept"
        assert listed(made)["state"] == "running"
    assert results("kill", "held") == made


# snapshot, rollback, --snapshot.


def test_a_snapshot_is_kept_listed_restored_and_removed(box: str) -> None:
    taken = results("snapshot", box, "--name", "base")
    assert re.fullmatch("[0-9a-f]{12}", taken)
    second = nova("snapshot", "--json", "copied").data
    assert set(second) == SNAPSHOT_KEYS
    assert (second["name"], second["parent"], second["sandbox"]) == (None, taken, box)
    assert results("snapshot", "ls", "-q").split() == [taken, second["id"]]
    kept = nova("snapshot", "ls", "--json").data
    assert [set(each) for each in kept] == [SNAPSHOT_KEYS, SNAPSHOT_KEYS]
    assert kept[0]["size"] > 0
    line = next(line for line in results("snapshot", "ls").split("\n") if "base" in line)
    assert re.search(rf"{taken} +base +\d+s +\S+ MiB +{box} +- +debian-python", line)
    taken_again = nova("snapshot", "--json", box, "--name", "base")
    assert (taken_again.code, taken_again.error["type"]) == (125, "NameTaken")
    assert taken_again.error["fix"].endswith("nova snapshot rm base")
    # It starts sandboxes, also when its own is gone.
    assert results("kill", box) == box
    started = nova("start", "--json", "--snapshot", "base", "--name", "second").data
    assert started["id"] != box
    assert text("second") == "then"
    ran = nova("run", "--quiet", "--snapshot", taken[:8], "-c", "print(open('f').read(), end='')")
    assert (ran.code, ran.out, ran.err) == (0, "then\n", "")
    # What is there is removed and named; the first that was not fails.
    done = nova("snapshot", "rm", "base", "no-such", second["id"])
    assert (done.code, done.out.split()) == (125, [taken, second["id"]])
    assert "there is no snapshot 'no-such'" in done.err
    assert nova("snapshot", "ls", "--json").data == []
    assert text("second") == "then"


def test_a_sandbox_goes_back_to_a_snapshot(box: str) -> None:
    taken = results("snapshot", box, "--name", "back")
    assert nova("exec", box, "--", "sh", "-c", "echo later >f; echo more >g").code == 0
    before = listed(box)
    assert results("rollback", "copied", "back") == box
    assert text(box) == "then"
    assert nova("exec", box, "--", "test", "-e", "g").code == 1
    after = nova("rollback", "--json", box, taken).data
    assert {k: after[k] for k in ("id", "name", "state", "metadata", "detached")} == {
        k: before[k] for k in ("id", "name", "state", "metadata", "detached")
    }
    nova("hibernate", box)
    assert results("rollback", "--quiet", box, taken[:6]) == ""
    assert text(box) == "then"


def test_a_snapshot_that_is_not_there_is_named_and_nothing_is_lost(box: str) -> None:
    for words in (("rollback", box, "no-such"), ("start", "--snapshot", "no-such")):
        done = nova(*words, "--json")
        assert (done.code, done.out) == (125, "")
        assert done.error["type"] == "InvalidRequest"
        assert done.error["fix"] == "nova snapshot ls shows those that there are."
    assert text(box) == "then"
    assert len(nova("ps", "--json").data) == 1


def test_a_snapshot_has_its_own_sizes_and_is_no_template(box: str) -> None:
    results("snapshot", box, "--name", "sized")
    sized = nova("start", "--json", "--snapshot", "sized", "--memory", "512M")
    assert (sized.code, sized.error["type"]) == (125, "InvalidConfig")
    both = nova("start", "--json", "--snapshot", "sized", "--template", "debian-python")
    assert (both.code, both.error["what"]) == (125, "more than one source was given")


def test_a_box_called_ls_has_its_snapshot_too(box: str) -> None:
    named = results("start", "--name", "ls")
    assert nova("snapshot", "take", "ls", "--json").data["sandbox"] == named
    assert nova("snapshot", "--json", "--", "ls").data["sandbox"] == named


def test_a_booted_sandbox_gives_the_same_as_a_copy(box: str) -> None:
    look = "import os, sys; print(sys.version, os.getcwd(), os.getuid())"
    copied = nova("run", "-c", look)
    booted = nova("run", "--cold", "-c", look)
    assert (copied.code, copied.out) == (0, booted.out)
    assert nova("start", "--cold", "--json").data["state"] == "running"


# fork, tree.


def test_children_have_what_their_parent_had_and_stay_as_it_does(box: str) -> None:
    children = results("fork", box, "-n", "2").split()
    assert len({box, *children}) == 3
    (info,) = nova("fork", "--json", "copied").data
    assert (info["state"], info["detached"], info["name"]) == ("running", True, None)
    for child in (*children, info["id"]):
        assert text(child) == "then"
        assert nova("exec", child, "--", "sh", "-c", f"echo {child} >f").code == 0
    assert text(box) == "then"
    for child in (*children, info["id"]):
        assert text(child) == child
        assert listed(child)["detached"]
    nova("hibernate", box)
    assert text(results("fork", "-q", box)) == "then"


def test_what_a_program_holds_stays_with_it(own_home: Path, qemu: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        held = program.stdout.readline().strip()
        (child,) = nova("fork", "--json", "held").data
        assert not child["detached"]
        assert nova("exec", child["id"], "--", "sh", "-c", "echo other >f").code == 0
        taken = results("snapshot", "held", "--name", "of-held")
        assert nova("exec", "held", "--", "sh", "-c", "echo later >f").code == 0
        assert results("rollback", "held", "of-held") == held
        assert results("hibernate", "held") == held
        program.stdin.close()  # Its next call wakes it.
        assert program.stdout.read() == "kept\n"
        assert program.wait(timeout=60) == 0
    assert nova("ps", "--json").data == []
    assert results("snapshot", "rm", taken) == taken


def test_the_tree_shows_what_came_from_what(box: str) -> None:
    (child,) = results("fork", box).split()
    first = results("snapshot", box, "--name", "first")
    second = results("snapshot", box)
    other = results("start", "--snapshot", "first", "--name", "other")
    nova("hibernate", box)
    shape = [re.sub(r", [\d.]+ \w+, \w+ ago", "", line) for line in results("tree").split("\n")]
    assert shape == [
        "debian-python",
        f"  sandbox {child}, running",
        f"  snapshot {first}, first",
        f"    snapshot {second}",
        f"      sandbox {box}, copied, hibernated",
        f"    sandbox {other}, other, running",
    ]
    data = nova("tree", "--json").data
    assert [(each["id"], each["parent"]) for each in data["snapshots"]] == [
        (first, None),
        (second, first),
    ]
    assert {each["id"]: each["snapshot"] for each in data["sandboxes"]} == {
        box: second,
        child: None,
        other: first,
    }
    assert set(data["sandboxes"][0]) == {*listed(box), "snapshot"}
    with Terminal("tree") as terminal:
        terminal.expect(rf"├── sandbox {child}, running")
        terminal.expect(rf"│?   │   └── sandbox {box}, copied, hibernated")
        assert terminal.wait() == 0
    # What hung on a removed one hangs on the template.
    nova("snapshot", "rm", "first")
    assert f"\n  sandbox {other}, other, running" in results("tree")


def test_ctrl_c_while_forking_leaves_no_child(box: str) -> None:
    with subprocess.Popen(
        [*NOVA, "fork", box, "-n", "4"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while len(elsewhere.living(Path(os.environ["NOVA_HOME"]))) < 2:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    children = [info["id"] for info in nova("ps", "--json").data if info["id"] != box]
    # Either it came too late, and they are told, or there are none that nobody knows of.
    assert sorted(children) == sorted(out.decode().split())
    assert text(box) == "then"
