"""Copies without a loop: what sleeps outlives the program, what was forked does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import elsewhere
from novasandbox.core.hypervisor import SandboxState
from novasandbox.sync import Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("own_home")]


def text(sandbox: Sandbox, command: str = "cat f") -> str:
    return sandbox.exec(command, check=True).stdout.strip()


def program(body: str, *arguments: str) -> str:
    """What a program of the sync kind prints; it ends well."""
    head = "import sys\nfrom novasandbox.sync import Sandbox\n"
    done = subprocess.run(
        [sys.executable, "-c", head + body, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_sandbox_is_copied_put_back_and_put_to_sleep(qemu: str) -> None:
    with Sandbox.create(timeout=600, name="sync-copies") as sandbox:
        sandbox.exec("echo then >f", check=True)
        taken = sandbox.snapshot("sync-base")
        assert [each.id for each in Sandbox.snapshots()] == [taken.id]
        first, second = sandbox.fork(2)
        with first, second:
            first.exec("echo first >f", check=True)
            assert (text(first), text(second)) == ("first", "then")
        assert len(Sandbox.list()) == 1
        sandbox.exec("echo later >f", check=True)
        sandbox.rollback("sync-base")
        assert text(sandbox) == "then"
        with Sandbox.create(snapshot=taken.id) as other:
            assert text(other) == "then"
        Sandbox.remove_snapshot("sync-base")
        assert Sandbox.snapshots() == []
        sandbox.hibernate()
        assert Sandbox.list(state=SandboxState.HIBERNATED)[0].id == sandbox.id
        assert text(sandbox) == "then"
    assert Sandbox.list() == []


def test_what_sleeps_outlives_the_program_and_what_was_woken_or_forked_does_not(
    own_home: Path, qemu: str
) -> None:
    identity = program(
        "box = Sandbox.create(timeout=600)\n"
        "box.exec('echo kept >f', check=True)\n"
        "box.fork(2)\n"
        "box.hibernate()\n"
        "print(box.id)"
    )
    assert [info.id for info in Sandbox.list()] == [identity]
    slept = program(
        "box = Sandbox.wake(sys.argv[1])\n"
        "print(box.exec('cat f', check=True).stdout, end='')\n"
        "box.hibernate()",
        identity,
    )
    assert slept == "kept"
    assert Sandbox.list()[0].state is SandboxState.HIBERNATED
    # Whoever wakes it holds it, and it ends with him.
    program("Sandbox.connect(sys.argv[1])", identity)
    assert identity not in elsewhere.living(own_home)


def test_ctrl_c_while_it_is_woken_lets_it_sleep_on(own_home: Path, qemu: str) -> None:
    with Sandbox.create(timeout=600) as sandbox:
        sandbox.exec("echo kept >f", check=True)
        sandbox.hibernate()
    identity = sandbox.id
    body = (
        "import os, signal, sys, threading\n"
        "from novasandbox.sync import Sandbox\n"
        "def interrupt(): os.kill(os.getpid(), signal.SIGINT)\n"
        "Sandbox.list()\n"
        "threading.Timer(float(sys.argv[2]), interrupt).start()\n"
        "try: Sandbox.wake(sys.argv[1])\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    for delay in ("0.02", "0.08", "0.15", "0.3"):
        done = subprocess.run(
            [sys.executable, "-c", body, identity, delay],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ,
        )
        if done.stdout != "interrupted\n":
            break  # It was quicker, held it, and took it along.
        assert Sandbox.list()[0].state is SandboxState.HIBERNATED, done
    else:
        awake = Sandbox.wake(identity)
        assert text(awake) == "kept"
        awake.kill()
    deadline = time.monotonic() + 10
    while identity in elsewhere.living(own_home):
        Sandbox.list()
        assert time.monotonic() < deadline
