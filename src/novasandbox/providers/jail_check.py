"""What of the jail this host gives, for `doctor`: each part tried, and what mends it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from novasandbox import native
from novasandbox.core.hypervisor import Finding
from novasandbox.core.uids import uid_range
from novasandbox.errors import NovaError
from novasandbox.providers import cgroups

_TITLES = {
    "mount": "mount namespace",
    "pid": "process namespace",
    "ipc": "IPC namespace",
    "uts": "hostname namespace",
    "net": "network namespace",
    "cgroupns": "cgroup namespace",
    "room": "an empty root folder",
    "uid": "a user id of its own",
    "seccomp": "system call filter",
    "open-read-only": "shared memory files to read only",
    "landlock": "landlock",
}
_NAMESPACES = ("mount", "pid", "ipc", "uts", "net", "cgroupns")


def check() -> list[Finding]:
    """One finding for what is there, and one for each part that is missing, with its mending.

    Takes some 20 ms. Raises nothing: a jail that cannot even be asked is a finding.
    """
    try:
        answer = _ask()
    except (NovaError, OSError, subprocess.SubprocessError, ValueError) as error:
        return [Finding("jail", "fail", f"the jail does not run: {error}", _reinstall(error))]
    parts = {part["name"]: part for part in answer["parts"]}
    given = [title for name, title in _TITLES.items() if parts[name]["given"]]
    # Landlock is the wall behind the room: only without a room does its absence weigh.
    needless = {"landlock"} if parts["room"]["given"] else set()
    lost = [n for n in _TITLES if not parts[n]["given"] and n not in needless]
    findings = [Finding("jail", "ok", "QEMU gets " + ", ".join(given))]
    findings += [_missing(name, parts[name]["why"]) for name in lost]
    return [*findings, *_uid_findings(), *_cgroup_findings()]


@functools.cache
def can_build_room() -> bool:
    """Whether jails here have a root folder of their own, so that binds may change a path.

    Without one the program goes by the host's own paths. Tried once, in some 5 ms.
    """
    try:
        parts = _ask()["parts"]
    except (OSError, subprocess.SubprocessError, ValueError):
        return False
    return any(part["name"] == "room" and part["given"] for part in parts)


def _ask() -> Any:
    done = subprocess.run(
        [str(native.path("nova-jail")), "--check"],
        capture_output=True,
        timeout=10,
        check=True,
    )
    return json.loads(done.stdout)


def _reinstall(error: Exception) -> str | None:
    return (
        error.fix if isinstance(error, NovaError) else "pip install --force-reinstall novasandbox"
    )


def _missing(name: str, why: str) -> Finding:
    title = f"jail: {_TITLES[name]}"
    if name == "uid":
        return Finding(
            title,
            "warn",
            f"QEMU runs under your own user id {os.getuid()}: {why}",
            "Run as root, for example as a system service; uids are leased from a range then.",
        )
    if name in (*_NAMESPACES, "room"):
        return Finding(title, "warn", why, _namespace_fix())
    if name == "landlock":
        return Finding(
            title, "warn", why, "Use a kernel from 5.13 on with landlock in its lsm= list."
        )
    if name == "open-read-only":
        return Finding(title, "warn", why, "Use Linux 5.9 or later.")
    return Finding(title, "warn", why, "Use a kernel with CONFIG_SECCOMP_FILTER.")


def _namespace_fix() -> str:
    """The setting that forbids namespaces here, turned round."""
    settings = (
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
        ("kernel/unprivileged_userns_clone", "0", "1"),
        ("user/max_user_namespaces", "0", "15000"),
    )
    for name, forbids, allows in settings:
        with contextlib.suppress(OSError):
            if Path("/proc/sys", name).read_text().strip() == forbids:
                return f"sudo sysctl -w {name.replace('/', '.')}={allows}"
    if any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")):
        return (
            "docker run --cap-add SYS_ADMIN --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined …"
        )
    return "Run as root."


def _uid_findings() -> list[Finding]:
    if os.geteuid() != 0:
        return []
    try:
        first, last = uid_range()
    except NovaError as error:
        return [Finding("jail: range of user ids", "fail", str(error), error.fix)]
    taken = _overlaps(first, last)
    if not taken:
        return []
    return [
        Finding(
            "jail: range of user ids",
            "warn",
            f"{first} to {last} belong to {', '.join(taken)} as well, so a container of theirs "
            "could share a user id with a sandbox",
            "export NOVA_UID_RANGE=FIRST-LAST, with a range that nobody uses",
        )
    ]


def _overlaps(first: int, last: int) -> list[str]:
    taken = []
    with contextlib.suppress(OSError):
        for line in Path("/etc/subuid").read_text().splitlines():
            owner, _, rest = line.partition(":")
            start, _, count = rest.partition(":")
            if not (start.isdecimal() and count.isdecimal()):
                continue
            if int(start) <= last and first < int(start) + int(count):
                taken.append(f"{owner} (/etc/subuid)")
    with contextlib.suppress(OSError):
        for line in Path("/etc/passwd").read_text().splitlines():
            name, _, uid, *_ = line.split(":")
            if uid.isdecimal() and first <= int(uid) <= last:
                taken.append(name)
    return taken


def _cgroup_findings() -> list[Finding]:
    places = cgroups.find_places()
    lost = cgroups.missing(places)
    if not lost:
        return [Finding("jail: cgroup limits", "ok", "memory, processes and CPU time are limited")]
    if os.geteuid() == 0:
        fix = "Boot with systemd.unified_cgroup_hierarchy=1"
    elif Path("/run/systemd/system").exists():
        fix = "systemd-run --user --scope -p Delegate=yes $SHELL, and start from there"
    else:
        fix = "Run as root, or have a cgroup delegated to you."
    why = (
        f"this host lets us limit neither {' nor '.join(lost)}"
        if len(lost) > 1
        else (f"this host does not let us limit {lost[0]}")
    )
    return [Finding("jail: cgroup limits", "warn", f"{why}; rlimits hold", fix)]
