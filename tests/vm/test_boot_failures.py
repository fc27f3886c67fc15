"""What keeps a guest from coming up: each has an error of its own, and nothing is left."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import platform
import signal
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import elsewhere
from novasandbox import Sandbox
from novasandbox.core import booting, creation, registry
from novasandbox.core.hypervisor import SandboxConfig
from novasandbox.core.preparation import Prepared, prepare
from novasandbox.core.template_manager import PACKAGED
from novasandbox.errors import (
    BootFailed,
    GuestPanicked,
    InvalidConfig,
    ProviderUnavailable,
    SandboxFailed,
    TemplateNotFound,
)
from novasandbox.images.cpio import CpioWriter
from waiting import is_gone, until

pytestmark = pytest.mark.vm

# Programs that wait for a signal for ever: pause(2), and ppoll(2) where there is no pause.
_WAIT = {
    "x86_64": (62, bytes.fromhex("b8220000000f05ebf7")),
    "aarch64": (
        183,
        bytes.fromhex("000080d2010080d2020080d2030080d2040080d2280980d2010000d4f9ffff17"),
    ),
}


@pytest.fixture(autouse=True)
async def nothing_is_left(qemu: str, nova_home: Path) -> AsyncIterator[None]:
    """Whatever went wrong, there is no new sandbox, no process and no descriptor."""
    before = elsewhere.living(nova_home)
    descriptors = elsewhere.descriptors()
    yield
    assert elsewhere.living(nova_home) == before
    opened = elsewhere.descriptors() - descriptors
    # What other tests share may be about its own business.
    await until(lambda: not opened & elsewhere.descriptors())


def _waiting_program() -> bytes:
    """A static program that never does anything, as small as an ELF file can be."""
    machine, code = _WAIT[platform.machine()]
    base = 0x400000
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = 120 + len(code)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code


@pytest.fixture
def boot_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bytes | None], None]:
    """Give machines another initramfs: one with this program as /init, or none at all."""

    def use(program: bytes | None) -> None:
        path = tmp_path / "initramfs.cpio"
        with path.open("wb") as stream:
            if program is None:
                stream.write(b"no archive at all")
            else:
                archive = CpioWriter(stream)
                archive.directory("dev")
                archive.device("dev/console", 5, 1)
                archive.file("init", program, 0o755)
                archive.close()
        tmp_path.chmod(0o755)
        path.chmod(0o644)

        async def with_other_initramfs(config: SandboxConfig) -> Prepared:
            return dataclasses.replace(await prepare(config), initramfs=path)

        monkeypatch.setattr(creation, "prepare", with_other_initramfs)

    return use


async def test_too_little_memory_is_refused_before_the_boot() -> None:
    with pytest.raises(InvalidConfig, match="at least 96 MiB"):
        await Sandbox.create(memory_mib=64)


async def test_the_least_memory_that_is_allowed_is_enough() -> None:
    async with Sandbox.create(memory_mib=96) as sandbox:
        assert (await sandbox.exec(["python3", "-c", "print(6*7)"])).stdout == "42\n"


async def test_a_guest_that_dies_for_want_of_memory_says_what_to_do(
    nova_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where it does not panic it thrashes, and is given up sooner than it would be.
    monkeypatch.setattr(booting, "_DEADLINE", 15.0)
    template = json.loads((PACKAGED / "debian-python.json").read_text())
    template |= {"name": "tiny", "minimum_memory_mib": 32}
    folder = nova_home / "templates"
    folder.mkdir(exist_ok=True)
    path = folder / "tiny.json"
    path.write_text(json.dumps(template))
    try:
        with pytest.raises((GuestPanicked, BootFailed)) as caught:
            await Sandbox.create("tiny", memory_mib=64, cold=True)
    finally:
        path.unlink()
    assert "memory_mib" in str(caught.value)


async def test_a_kernel_without_an_initramfs_panics_and_its_last_words_are_told(
    boot_from: Callable[[bytes | None], None],
) -> None:
    boot_from(None)
    with pytest.raises(GuestPanicked, match="Kernel panic"):
        await Sandbox.create(cold=True)


async def test_an_init_that_ends_is_a_panic(boot_from: Callable[[bytes | None], None]) -> None:
    boot_from(b"\x7fELF, but no program")
    with pytest.raises(GuestPanicked, match="init"):
        await Sandbox.create(cold=True)


async def test_a_guest_that_never_answers_is_given_up(
    boot_from: Callable[[bytes | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(booting, "_DEADLINE", 3.0)
    boot_from(_waiting_program())
    with pytest.raises(BootFailed, match="no sign of life within 3 s"):
        await Sandbox.create(cold=True)


async def test_a_machine_that_dies_while_it_boots_is_tried_again(nova_home: Path) -> None:
    before = elsewhere.living(nova_home)

    async def make() -> Sandbox:
        return await Sandbox.create(cold=True)

    making = asyncio.create_task(make())
    await until(lambda: elsewhere.living(nova_home) - before)
    (identity,) = elsewhere.living(nova_home) - before
    await until(lambda: registry.get(identity).machine is not None)
    first = elsewhere.pids(registry.get(identity))
    os.kill(first[0], signal.SIGKILL)
    async with await making as sandbox:
        assert (await sandbox.exec("echo on")).stdout == "on\n"
        assert all(map(is_gone, first))


@pytest.mark.parametrize("content", [b"", b"not a kernel" * 1000, None])
async def test_what_is_no_kernel_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    path = tmp_path / "vmlinux"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("NOVA_KERNEL", str(path))
    with pytest.raises(InvalidConfig, match="is not a kernel"):
        await Sandbox.create(cold=True)


async def test_an_unknown_template_names_the_nearest() -> None:
    with pytest.raises(TemplateNotFound, match="debian-python"):
        await Sandbox.create("debian-pyhton")
    with pytest.raises(TemplateNotFound, match="alpine-python"):
        await Sandbox.create("alpine")


async def test_a_missing_qemu_is_an_error_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOVA_QEMU", "/nonexistent/qemu")
    with pytest.raises(ProviderUnavailable, match="install") as caught:
        await Sandbox.create(cold=True)
    assert "/nonexistent/qemu" in str(caught.value)
    monkeypatch.delenv("NOVA_QEMU")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProviderUnavailable, match="not on PATH"):
        await Sandbox.create(cold=True)


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


async def test_a_qemu_that_is_too_old_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = _script(tmp_path / "old", "echo QEMU emulator version 6.0.0")
    monkeypatch.setenv("NOVA_QEMU", old)
    with pytest.raises(ProviderUnavailable, match=r"6\.0 is too old"):
        await Sandbox.create(provider="qemu")


async def test_what_does_not_say_a_version_is_no_qemu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOVA_QEMU", _script(tmp_path / "mute", "exit 1"))
    with pytest.raises(ProviderUnavailable, match="does not say its version"):
        await Sandbox.create(cold=True)


async def test_a_qemu_that_only_says_its_version_is_an_error_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOVA_QEMU", _script(tmp_path / "fake", "echo QEMU emulator version 9.0.0"))
    with pytest.raises((SandboxFailed, ProviderUnavailable)):
        await Sandbox.create(cold=True)


async def test_an_unknown_provider_is_told_which_there_are() -> None:
    with pytest.raises(InvalidConfig, match="qemu"):
        await Sandbox.create(provider="qemuu")
