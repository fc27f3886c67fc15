"""Which accelerator truly works here: KVM proven, HVF, or TCG, each with its reason.

A /dev/kvm that opens and answers is no proof (a PVM host has one on which no ordinary
kernel ever runs), so an unproven KVM has to show a booting kernel's first words before it
is used. The verdict is kept until the host boots anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import mmap
import os
import platform
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from novasandbox.core.atomic import read_json, write_json

_KVM = Path("/dev/kvm")
_KVM_GET_API_VERSION = 0xAE00  # linux/kvm.h
_KVM_API_VERSION = 12
_PROOF_DEADLINE = 2.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """accelerator: `kvm`, `hvf` or `tcg`. proven: a kernel was seen running on it."""

    accelerator: str
    reason: str
    fix: str | None = None
    proven: bool = True


def candidate(kernel: Path | None = None) -> Verdict:
    """What the host's files say, without starting anything."""
    if sys.platform == "darwin":
        return Verdict("hvf", "Apple's hypervisor framework", proven=False)
    refusal = _kvm_refusal(kernel)
    if refusal is None:
        return Verdict("kvm", "KVM is there, and is proven at the first boot", proven=False)
    reason, fix = refusal
    return Verdict("tcg", f"emulation (TCG): {reason}", fix)


def _kvm_refusal(kernel: Path | None) -> tuple[str, str | None] | None:
    """Why KVM cannot be used, and what would mend that; None: it looks right."""
    if not _KVM.exists():
        return ("there is no /dev/kvm", _no_device_fix())
    try:
        descriptor = os.open(_KVM, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return ("this user may not open /dev/kvm", f"sudo usermod -aG kvm {_user()}, then log in")
    except OSError as error:
        return (f"/dev/kvm cannot be opened ({error.strerror})", None)
    try:
        version = fcntl.ioctl(descriptor, _KVM_GET_API_VERSION, 0)
    except OSError as error:
        return (f"/dev/kvm does not answer ({error.strerror})", None)
    finally:
        os.close(descriptor)
    if version != _KVM_API_VERSION:
        return (f"/dev/kvm speaks API version {version}, not {_KVM_API_VERSION}", None)
    return _module_refusal(kernel)


def _module_refusal(kernel: Path | None) -> tuple[str, str | None] | None:
    if platform.machine() != "x86_64":
        return None
    vendor = any(Path("/sys/module", name).exists() for name in ("kvm_intel", "kvm_amd"))
    if Path("/sys/module/kvm_pvm").exists() and not vendor:
        if kernel is not None and _is_pvm_kernel(kernel):
            return None
        return (
            "/dev/kvm belongs to PVM, which runs only guest kernels built with "
            "CONFIG_PVM_GUEST, and this one is not",
            "Give such a kernel with --kernel or NOVA_KERNEL, or use a host with "
            "hardware virtualisation.",
        )
    if not _cpu_flags() & {"vmx", "svm"}:
        return (
            "the CPU shows neither vmx nor svm, so /dev/kvm cannot run a kernel",
            "Turn on virtualisation in the firmware, or nested virtualisation for this VM.",
        )
    return None


def _no_device_fix() -> str | None:
    flags = _cpu_flags()
    if "vmx" in flags:
        return "sudo modprobe kvm_intel"
    if "svm" in flags:
        return "sudo modprobe kvm_amd"
    return "Use a host with hardware virtualisation, or nested virtualisation for this VM."


def _cpu_flags() -> set[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split())
    return set()


def host_cpu() -> str:
    """What a guest that sees the host's own CPU depends on: its name and its features."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        wanted = ("model name", "flags", "CPU part", "Features")
        return hashlib.sha256(
            "\n".join(x for x in lines if x.startswith(wanted)).encode()
        ).hexdigest()
    return platform.machine()


def _is_pvm_kernel(kernel: Path) -> bool:
    try:
        found = kernel.stat()
        return _holds_pvm_words(kernel, found.st_ino, found.st_mtime_ns, found.st_size)
    except (OSError, ValueError):
        return False  # an empty file cannot be mapped


@cache
def _holds_pvm_words(kernel: Path, *_identity: int) -> bool:
    """Searched once for each file: it takes longer than starting QEMU."""
    with (
        kernel.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return any(content.find(words) >= 0 for words in (b"CONFIG_PVM_GUEST=y", b"PVM guest"))


def _user() -> str:
    return os.environ.get("USER") or str(os.getuid())


async def proven(verdict: Verdict, qemu: str, version: str, kernel: Path, memory: Path) -> Verdict:
    """Turn an unproven verdict into a proven one: boot the kernel, wait for its first words.

    memory: the file that keeps verdicts. Takes at most 2 s, and only once for each boot of
    the host and version of QEMU.
    """
    if verdict.proven or verdict.accelerator != "kvm":
        return verdict
    known = remembered(version, memory)
    if known is not None:
        return known
    failure = await _first_words(qemu, verdict.accelerator, kernel)
    if failure is None:
        verdict = Verdict(verdict.accelerator, "KVM, proven by booting a kernel on it")
    else:
        verdict = Verdict(
            "tcg",
            f"emulation (TCG): /dev/kvm opens, but no kernel runs on it ({failure})",
            "Use a host with hardware virtualisation, or nested virtualisation for this VM.",
        )
    write_json(memory, {"key": _key(version), "verdict": asdict(verdict)})
    return verdict


def remembered(version: str, memory: Path) -> Verdict | None:
    """The verdict of an earlier proof on this boot of the host, with this version of QEMU."""
    known = read_json(memory)
    if not isinstance(known, dict) or known.get("key") != _key(version):
        return None
    return Verdict(**known["verdict"])


def _key(version: str) -> str:
    return f"{_boot_id()} {version} {os.environ.get('NOVA_KERNEL', '')}"


async def _first_words(qemu: str, accelerator: str, kernel: Path) -> str | None:
    """None when the kernel printed something in time, else what went wrong."""
    arguments = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    arguments += ["-accel", accelerator, "-cpu", "host", "-m", "128M", "-kernel", str(kernel)]
    arguments += ["-append", "earlyprintk=ttyS0 panic=-1", "-serial", "stdio"]
    if platform.machine() == "aarch64":
        arguments += ["-M", "virt,gic-version=max"]
    process = await asyncio.create_subprocess_exec(
        qemu,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(_PROOF_DEADLINE):
            if await process.stdout.read(1):
                return None
            text = (await process.stderr.read(2000)).decode("utf-8", "replace").strip()
            return text.splitlines()[-1] if text else "QEMU ended without a word"
    except TimeoutError:
        return f"it printed nothing within {_PROOF_DEADLINE:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "unknown"
