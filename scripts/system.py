"""The programs of the operating system that NovaSandbox needs, and how to install them."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from typing import TYPE_CHECKING, NamedTuple

from steps import StepFailed

if TYPE_CHECKING:
    from steps import Steps

# Debian keeps mke2fs where an ordinary user's PATH does not look.
SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
# Apt tells its progress on a descriptor that the programs it starts must not need, and sudo closes
# all but the first three: so descriptor 3 is opened behind sudo.
_APT = ["sh", "-c", 'exec apt-get -o APT::Status-Fd=3 -o Dpkg::Use-Pty=0 "$@" 3>&1', "apt-get"]


class Need(NamedTuple):
    """Something to be found on this machine, and the package that brings it."""

    what: str
    apt: str
    brew: str | None


def needs(*, tests: bool = False) -> list[Need]:
    """What the main job takes, whether it is there or not; `tests`: and what they compare with."""
    arm = platform.machine().lower() in ("arm64", "aarch64")
    qemu = "qemu-system-aarch64" if arm else "qemu-system-x86_64"
    wanted = [
        Need(qemu, "qemu-system-arm" if arm else "qemu-system-x86", "qemu"),
        Need("mke2fs", "e2fsprogs", "e2fsprogs"),
    ]
    return [*wanted, Need("qemu-img", "qemu-utils", "qemu")] if tests else wanted


def missing(wanted: list[Need], *, venv: bool) -> list[Need]:
    """Those of the wanted programs that are not there; `venv`: Python's own venv is wanted too."""
    found = [need for need in wanted if shutil.which(need.what, path=SEARCHED) is None]
    if venv and importlib.util.find_spec("ensurepip") is None:
        minor = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        found.append(Need("Python's venv", f"{minor}-venv", None))
    return found


def install(lacking: list[Need], steps: Steps) -> None:
    """Install what is lacking, by apt or Homebrew. Raises StepFailed with what to do instead."""
    if not lacking:
        return
    if shutil.which("apt-get"):
        _install_by_apt(sorted({need.apt for need in lacking}), steps)
    elif shutil.which("brew"):
        formulas = sorted({need.brew for need in lacking if need.brew})
        steps.run(f"Homebrew: {' '.join(formulas)}", ["brew", "install", *formulas], download=True)
    else:
        listed = "\n".join(f"  {need.what} (Debian calls it {need.apt})" for need in lacking)
        raise StepFailed(
            f"these programs are missing, and this system has neither apt nor Homebrew:\n{listed}\n"
            "Install them with the system's package manager and repeat the command."
        )


def _install_by_apt(packages: list[str], steps: Steps) -> None:
    by_hand = f"apt-get install --no-install-recommends {' '.join(packages)}"
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", *_APT]
    if os.geteuid() != 0:
        if shutil.which("sudo") is None:
            raise StepFailed(
                "system packages are missing, and neither are you root nor is there sudo.\n"
                f"Ask an administrator for: {by_hand}"
            )
        apt = ["sudo", *apt]
        steps.say(f"system packages are missing; sudo may ask for your password: {by_hand}")
    names = " ".join(packages)
    install = [*apt, "install", "--yes", "--no-install-recommends", *packages]
    steps.run("lists of system packages", [*apt, "update"], download=True, reading=apt_status)
    steps.run(f"fetch {names}", [*install, "--download-only"], download=True, reading=apt_status)
    steps.run(f"install {names}", install, reading=apt_status)


def apt_status(line: str) -> tuple[float | None, str]:
    """Apt's status lines: `pmstatus:PACKAGE:PERCENT:TEXT`, and `dlstatus` likewise."""
    parts = line.split(":", 3)
    if len(parts) == 4 and parts[0] in ("dlstatus", "pmstatus"):
        try:
            return float(parts[2]) / 100, parts[3]
        except ValueError:
            return None, parts[3]
    return None, line


def check_python() -> None:
    """Raise StepFailed, with the command that mends it, where this Python is too old."""
    running = tuple(sys.version_info[:3])
    if running >= (3, 11):
        return
    found = ".".join(map(str, running))
    if shutil.which("apt-get"):
        mend = "apt-get install python3.11 python3.11-venv"
    elif shutil.which("brew"):
        mend = "brew install python@3.11"
    else:
        mend = "install Python 3.11"
    raise StepFailed(
        f"Python 3.11 or later is needed; {sys.executable} is {found}.\n"
        f"Mend it with: {mend}\nand repeat the command with: make … PYTHON=python3.11"
    )
