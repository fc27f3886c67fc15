"""Where the compiled parts lie: the guest agent and the jail."""

from __future__ import annotations

import platform
from pathlib import Path

from novasandbox.errors import ProviderUnavailable

_FOLDER = Path(__file__).parent / "_native"


def host_arch() -> str:
    """This machine's architecture as the binaries' names say it: `x86_64` or `aarch64`."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def path(name: str, arch: str | None = None) -> Path:
    """The binary `name` for `arch`, which is the host's where it is not given.

    name: `nova-agent` or `nova-jail`.

    Raises ProviderUnavailable where the package carries none for that architecture.
    """
    arch = arch or host_arch()
    binary = _FOLDER / f"{name}-{arch}"
    if not binary.is_file():
        raise ProviderUnavailable(
            f"{name} is missing for {arch}",
            why=f"{binary} does not exist",
            fix=f"In a source tree: make agent ARCH={arch}. "
            "Else: pip install --force-reinstall novasandbox",
        )
    return binary
