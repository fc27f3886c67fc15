"""`doctor` says what is missing and how to mend it; `clean` takes only what nobody has."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import novasandbox
from novasandbox.cli import app
from novasandbox.core import doctor, registry
from novasandbox.core.cleaning import clean
from novasandbox.core.home import run_dir
from novasandbox.core.hypervisor import Finding, SandboxConfig, SandboxState
from novasandbox.core.owner import Owner
from novasandbox.images.store import Store


def finding(report: doctor.Report, start: str) -> Finding:
    """The finding whose title starts so."""
    return next(found for found in report.findings if found.what.startswith(start))


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data directory."""
    monkeypatch.setenv("NOVA_HOME", str(tmp_path))
    return tmp_path


async def test_it_works_inside_a_running_loop() -> None:
    report = novasandbox.doctor()
    assert finding(report, "NovaSandbox").state == "ok"
    assert report.ok == (await novasandbox.doctor_async()).ok


def test_qemu_that_is_missing_is_a_failure_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NOVA_QEMU", "/no/such/qemu")
    report = doctor.doctor()
    assert not report.ok
    assert report.provider is None
    found = finding(report, "QEMU")
    assert found.state == "fail"
    assert "qemu" in (found.fix or "")


def test_qemu_that_is_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "qemu"
    old.write_text("#!/bin/sh\necho QEMU emulator version 5.2.0\n")
    old.chmod(0o755)
    monkeypatch.setenv("NOVA_QEMU", str(old))
    found = finding(doctor.doctor(), "QEMU")
    assert found.state == "fail"
    assert "5.2 is too old" in found.why


def test_a_template_that_is_not_built_can_be(own_home: Path) -> None:
    found = finding(doctor.doctor(), "templates")
    assert found.state == "warn"
    assert found.fix == "nova template build debian-python"


def test_a_kernel_that_is_no_file_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVA_KERNEL", "/no/such/kernel")
    assert finding(doctor.doctor(), "guest kernel").state == "fail"


def test_a_proxy_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://user:hush-1234@proxy.example:3128")
    report = doctor.doctor()
    assert "proxy.example:3128" in finding(report, "proxy").why
    assert "hush" not in json.dumps(report.as_data())


def test_a_mirror_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVA_MIRROR", "http://user:hush-1234@mirror.example/debian")
    report = doctor.doctor()
    assert finding(report, "Debian mirror").why == "http://mirror.example/debian"
    assert "hush" not in json.dumps(report.as_data())


def test_another_provider_s_lack_keeps_nobody_from_running() -> None:
    found = doctor._optional(Finding("x", "fail", "why", "fix"))
    assert (found.state, found.fix) == ("warn", "fix")


def test_the_command_gives_1_where_sandboxes_cannot_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOVA_QEMU", "/no/such/qemu")
    assert app.run(["doctor", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is False
    assert app.run(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "FAIL  QEMU" in text
    assert "mend: " in text
    assert "Sandboxes cannot run here." in text


def _dead() -> Owner:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = Owner.of(process.pid)
    process.communicate(b"\n")
    return owner


def test_what_a_dead_owner_left_is_found_and_cleaned(own_home: Path) -> None:
    left = registry.create(SandboxConfig(), _dead())
    kept = registry.create(SandboxConfig(name="kept"), Owner.self())
    found = finding(doctor.doctor(), "leftovers")
    assert left.id in found.why
    assert found.fix == "nova clean"
    done = asyncio.run(clean())
    assert done.sandboxes == (left.id,)
    assert not left.directory.exists()
    assert kept.directory.exists()
    assert not any(f.what == "leftovers" for f in doctor.doctor().findings)
    registry.bury(kept, SandboxState.STOPPED, "the test is over")


def test_half_made_files_are_cleaned_and_nothing_else(own_home: Path) -> None:
    cache = own_home / "cache"
    cache.mkdir()
    names = {
        "old half": cache / ".verdict.json.abcd1234",
        "new half": cache / ".room.json.abcd5678",
        "whole": cache / "verdict.json",
        "other": cache / ".keep",
    }
    for path in names.values():
        path.write_text("x")
    long_ago = time.time() - 7200
    for name in ("old half", "whole", "other"):
        os.utime(names[name], (long_ago, long_ago))
    half_built = Store().root / "tmp" / "kernel-0000"
    half_built.mkdir()
    (half_built / "vmlinux").write_bytes(b"x" * 10_000)
    done = asyncio.run(clean())
    assert set(done.files) == {str(names["old half"]), str(half_built)}
    assert done.bytes >= 10_000
    assert [name for name, path in names.items() if path.exists()] == ["new half", "whole", "other"]


def test_a_dead_keeper_s_socket_is_cleaned(own_home: Path) -> None:
    path = run_dir() / ".keeper.sock"
    path.touch()
    assert asyncio.run(clean()).files == (str(path),)
    assert not path.exists()


def test_the_command_says_what_it_did(own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["clean"]) == 0
    assert capsys.readouterr().out == "nothing was left behind\n"
    left = registry.create(SandboxConfig(), _dead())
    assert app.run(["clean"]) == 0
    assert left.id in capsys.readouterr().out
    assert app.run(["clean", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"sandboxes": [], "files": [], "bytes": 0}
