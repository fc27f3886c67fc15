"""What this host can do, why not more, and what mends it."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from novasandbox import __version__, native
from novasandbox.core import provider_choice, registry
from novasandbox.core.home import home
from novasandbox.core.hypervisor import DEFAULT_TEMPLATE, Finding, Probe
from novasandbox.errors import NovaError

_GIB = 1 << 30
# The default template with its downloads; and what its sandboxes need to start at all.
_DISK_WANTED, _DISK_LEAST = 2 * _GIB, 256 << 20
_MEMORY_WANTED, _MEMORY_LEAST = 1 * _GIB, 384 << 20


@dataclass(frozen=True, slots=True)
class Report:
    """What `doctor` found.

    ok: whether sandboxes can run here. provider, accelerator: what `auto` takes.
    """

    ok: bool
    provider: str | None
    accelerator: str | None
    findings: tuple[Finding, ...]

    def as_data(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def doctor() -> Report:
    """Look at this host; nothing is changed. Also works inside a running event loop."""
    from novasandbox.core.background import in_new_thread

    return in_new_thread(doctor_async)


async def doctor_async() -> Report:
    """`doctor` for code with an event loop. Takes less than a second; raises nothing."""
    built, template = await _template()
    host = await asyncio.to_thread(_host, built)
    chosen: tuple[str, Probe] | None = None
    of_providers: list[Finding] = []
    for name in provider_choice.names():
        probe, findings = await _provider(name)
        if probe.usable and chosen is None:
            chosen = name, probe
        elif not probe.usable:
            findings = [_optional(f) if chosen else f for f in findings]
        of_providers += findings
    if chosen is None and not any(f.state == "fail" for f in of_providers):
        of_providers.append(_no_provider())
    everything = (*host, *of_providers, *template)
    return Report(
        ok=not any(finding.state == "fail" for finding in everything),
        provider=chosen[0] if chosen else None,
        accelerator=chosen[1].accelerator if chosen else None,
        findings=everything,
    )


async def _provider(name: str) -> tuple[Probe, list[Finding]]:
    """What a provider says of itself; a third party's may fail in ways of its own."""
    try:
        provider = provider_choice.load(name)
        probe = await provider.probe()
        return probe, await asyncio.to_thread(provider.findings)
    except Exception as error:  # noqa: BLE001  (a third party's provider may raise anything)
        finding = Finding(f"provider {name}", "fail", f"it cannot be asked: {error}")
        return Probe(False, str(error)), [finding]


def _optional(finding: Finding) -> Finding:
    """Another provider works: what this one lacks keeps nobody from running."""
    state = "warn" if finding.state == "fail" else finding.state
    return Finding(finding.what, state, finding.why, finding.fix)


def _no_provider() -> Finding:
    return Finding(
        "hypervisor",
        "fail",
        f"no provider is installed (entry points {provider_choice.GROUP})",
        "pip install --force-reinstall novasandbox",
    )


def _host(built: bool) -> list[Finding]:
    return [
        Finding(
            "NovaSandbox",
            "ok",
            f"{__version__}, Python {platform.python_version()}, {platform.system()} "
            f"{platform.release()}, {'root' if os.geteuid() == 0 else 'an ordinary user'}",
        ),
        _architecture(),
        _agent(),
        _disk(built),
        _memory(),
        *_kernel(),
        *_mke2fs(built),
        *_network(built),
        *_leftovers(),
    ]


def _architecture() -> Finding:
    arch = native.host_arch()
    if sys.platform not in ("linux", "darwin"):
        return Finding("system", "fail", f"{sys.platform} is neither Linux nor macOS")
    if arch == "x86_64":
        return Finding("architecture", "ok", arch)
    if arch == "aarch64":
        return Finding("architecture", "warn", f"{arch}: built for, but not proven yet")
    return Finding("architecture", "fail", f"{arch}: sandboxes run on x86_64 and aarch64")


def _agent() -> Finding:
    try:
        path = native.path("nova-agent")
    except NovaError as error:
        return Finding("guest agent", "fail", error.why or error.what, error.fix)
    return Finding("guest agent", "ok", f"{path.stat().st_size >> 10} KiB, {path}")


def _disk(built: bool) -> Finding:
    try:
        folder = home()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(
            "disk", "fail", f"{error}", "Set NOVA_HOME to a folder that this user may write to."
        )
    why = f"{free / _GIB:.1f} GiB are free in {folder}"
    fix = "nova template prune, or set NOVA_HOME to a folder on another disk"
    if not os.access(folder, os.W_OK):
        return Finding("disk", "fail", f"{folder} cannot be written to", "Set NOVA_HOME.")
    if free < (_DISK_LEAST if built else _GIB):
        return Finding("disk", "fail", why, fix)
    return Finding("disk", "ok", why) if free >= _DISK_WANTED else Finding("disk", "warn", why, fix)


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    why = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB are available"
    if memory.available < _MEMORY_LEAST:
        return Finding("memory", "fail", why, "End some sandboxes or programs.")
    state = "ok" if memory.available >= _MEMORY_WANTED else "warn"
    return Finding("memory", "ok" if state == "ok" else "warn", why)


def _kernel() -> list[Finding]:
    own = os.environ.get("NOVA_KERNEL")
    if not own:
        return []
    if not Path(own).is_file():
        fix = "unset NOVA_KERNEL, or name a vmlinux, a bzImage or an arm64 Image"
        return [Finding("guest kernel", "fail", f"NOVA_KERNEL={own} is not a file", fix)]
    return [Finding("guest kernel", "ok", f"one of your own, {own}")]


def _mke2fs(built: bool) -> list[Finding]:
    from novasandbox.images.ext4 import find_mke2fs

    try:
        return [Finding("mke2fs", "ok", find_mke2fs())]
    except NovaError as error:
        fix = "brew install e2fsprogs"
        if sys.platform != "darwin":
            fix = f"{'' if os.geteuid() == 0 else 'sudo '}apt-get install e2fsprogs"
        why = f"{error.what}; it makes the root image and the sandboxes' disks"
        return [Finding("mke2fs", "warn" if built else "fail", why, fix)]


def _network(built: bool) -> list[Finding]:
    """Where packages for templates come from; a proxy's credentials are not shown."""
    from novasandbox.images import aptconfig, mirrors

    findings = []
    try:
        main = mirrors.find_mirrors().main
        findings.append(Finding("Debian mirror", "ok", ", ".join(map(_plain_address, main))))
    except NovaError as error:
        state = "warn" if built else "fail"
        fix = error.fix
        why = error.why or error.what
        findings.append(Finding("Debian mirror", "warn" if state == "warn" else "fail", why, fix))
    proxies = urllib.request.getproxies() | aptconfig.apt_settings().proxies
    through = sorted({_plain_address(url) for name, url in proxies.items() if name != "no" and url})
    if through:
        findings.append(Finding("proxy", "ok", f"downloads go through {', '.join(through)}"))
    return findings


def _plain_address(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path.rstrip('/')}"


def _leftovers() -> list[Finding]:
    left = [record.id for record in registry.records() if registry.is_leftover(record)]
    if not left:
        return []
    why = f"{len(left)} sandboxes whose owner died: {', '.join(left[:5])}"
    return [Finding("leftovers", "warn", why, "nova clean")]


async def _template() -> tuple[bool, list[Finding]]:
    """Whether the default template is built, and what to say of that."""
    from novasandbox.core.template_manager import TemplateManager

    try:
        rows = await TemplateManager().list()
    except (NovaError, OSError) as error:
        return False, [Finding("templates", "fail", str(error))]
    built = [row.template.name for row in rows if row.built]
    if DEFAULT_TEMPLATE in built:
        return True, [Finding("templates", "ok", f"built: {', '.join(built)}")]
    why = f"{DEFAULT_TEMPLATE} is not built yet; the first sandbox does it and takes a minute"
    return False, [Finding("templates", "warn", why, f"nova template build {DEFAULT_TEMPLATE}")]
