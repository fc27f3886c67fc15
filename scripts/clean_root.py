"""Prove the first two commands on a machine with nothing: `make run` and `make test`.

    clean_root.py [--as root|user|both] [--targets run,test] [--keep FOLDER]

It makes a Debian of the host's release in a temporary folder, puts in what git would commit of this
tree, and runs the commands there: as root with make alone installed, then as an ordinary user who
finds the system's packages in place and can install nothing. The root uses the host's mirror and
pip configuration, and has mounts and processes of its own, which end with it.

It needs root and mmdebstrap; it takes as long as two set-ups and two test runs. Nothing of it is
part of `make test`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import system

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
USER = "newcomer"
# What somebody has who could clone a repository and type make.
BARE = ["ca-certificates", "make"]
# What a system needs so that its ordinary users can do the rest.
PREPARED = ["python3", "python3-venv", *(need.apt for need in system.needs(tests=True))]


def run(*command: str | Path) -> None:
    """Run a command, showing what it prints."""
    print(f"$ {' '.join(map(str, command))}", flush=True)
    subprocess.run(command, check=True)


def output(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def release() -> str:
    """The host's Debian or Ubuntu release, by its code name."""
    text = Path("/etc/os-release").read_text("utf-8")
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)["VERSION_CODENAME"]


def mirror(suite: str) -> str:
    """The archive that the host's apt takes this release from."""
    listed = output(
        "apt-get",
        "indextargets",
        "--format",
        "$(SITE)",
        "Created-By: Packages",
        f"Release: {suite}",
    )
    if not listed.strip():
        sys.exit(f"the host's apt knows no archive of {suite}: run apt-get update")
    return listed.split()[0]


def make_root(folder: Path) -> None:
    """A minimal Debian in `folder`."""
    suite = release()
    include = f"--include={','.join(BARE)}"
    run("mmdebstrap", "--variant=minbase", include, suite, folder, mirror(suite))
    shutil.copy("/etc/resolv.conf", folder / "etc" / "resolv.conf")
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    if certificates.exists():
        shutil.copy(certificates, folder / certificates.relative_to("/"))


def pip_paths() -> Iterator[Path]:
    """The files and folders that pip's configuration on this host consists of and names."""
    pip = [sys.executable, "-m", "pip", "config"]
    named = re.findall(r"(?:file://)?(/[^\s'\",]+)", output(*pip, "list"))
    read = re.findall(r"(/\S+), exists: True", output(*pip, "debug"))
    home = Path.home()
    for path in {Path(name) for name in (*named, *read)}:
        if path.exists() and path.is_absolute() and not path.is_relative_to(home):
            yield path


def binds(folder: Path) -> list[str]:
    """Shell lines that show pip's configuration inside, read-only."""
    lines = []
    for path in sorted(pip_paths()):
        inside = folder / path.relative_to("/")
        if inside.exists() and path.is_file():
            continue
        make = f"mkdir -p {shlex.quote(str(inside if path.is_dir() else inside.parent))}"
        touch = "true" if path.is_dir() else f"touch {shlex.quote(str(inside))}"
        lines.append(f"{make} && {touch}")
        lines.append(f"mount -o bind,ro {shlex.quote(str(path))} {shlex.quote(str(inside))}")
    return lines


def copy_tree(target: Path) -> None:
    """What git would commit of this tree, in `target`."""
    listed = output(
        "git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"
    )
    for name in filter(None, listed.split("\0")):
        source = ROOT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


def enter(folder: Path, command: str, user: str | None = None) -> int:
    """Run a shell command inside, with its own mounts and processes, and give its exit code."""
    home = f"/home/{user}" if user else "/root"
    become = f"setpriv --reuid {user} --regid {user} --init-groups" if user else ""
    pip = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("PIP_")]
    environment = ["PATH=/usr/bin:/bin", f"HOME={home}", "LANG=C.UTF-8", "TERM=dumb", *pip]
    if not user:
        environment[0] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
    root = shlex.quote(str(folder))
    script = "\n".join(
        [
            "set -e",
            # A root of its own and no mere chroot, in which the kernel refuses user namespaces.
            f"mount --bind {root} {root}",
            *binds(folder),
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /sys {root}/sys",
            f"mount --rbind /dev {root}/dev",
            f"mount -t tmpfs -o mode=755 tmpfs {root}/run",
            f"cd {root}",
            "pivot_root . mnt",
            "umount -l /mnt",
            f"exec env -i {shlex.join(environment)} {become} sh -c {shlex.quote(command)}",
        ]
    )
    namespaces = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    return subprocess.run(["unshare", *namespaces, "sh", "-c", script], check=False).returncode


def prove(folder: Path, targets: Sequence[str], user: str | None) -> list[str]:
    """Run each target inside, and return a line about each."""
    who = user or "root"
    if user:
        install = f"apt-get -qq install --yes --no-install-recommends {' '.join(PREPARED)}"
        add = f"id {user} 2>/dev/null || useradd --create-home {user}"
        prepare = f"export DEBIAN_FRONTEND=noninteractive; apt-get -qq update && {install} && {add}"
        if enter(folder, prepare) != 0:
            return [f"FAILED  {who}: the system's packages cannot be installed"]
    tree = folder / (f"home/{user}/novasandbox" if user else "root/novasandbox")
    copy_tree(tree)
    if user and enter(folder, f"chown -R {user}: /home/{user}") != 0:
        return [f"FAILED  {who}: the tree cannot be handed over"]
    told = []
    for target in targets:
        print(f"\n== {who}: make {target}", flush=True)
        began = time.monotonic()
        code = enter(folder, f"cd ~/novasandbox && make {target} </dev/null", user)
        verdict = "ok    " if code == 0 else f"FAILED ({code})"
        told.append(f"{verdict}  {who}: make {target}, {time.monotonic() - began:.0f} s")
    return told


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Prove make run and make test in a bare Debian.")
    parser.add_argument("--as", dest="who", choices=["root", "user", "both"], default="both")
    parser.add_argument("--targets", default="run,test", help="make targets, with commas between")
    parser.add_argument("--keep", type=Path, help="make the root here, and leave it")
    options = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
        sys.exit("this needs root, and mmdebstrap: apt-get install mmdebstrap")
    users: dict[str, list[str | None]] = {"root": [None], "user": [USER], "both": [None, USER]}
    with tempfile.TemporaryDirectory(prefix="nova-root-") as temporary:
        folder = options.keep or Path(temporary) / "root"
        if not (folder / "etc").exists():
            make_root(folder)
        told = [
            line
            for user in users[options.who]
            for line in prove(folder, options.targets.split(","), user)
        ]
    print("\n" + "\n".join(told))
    return 1 if any(line.startswith("FAILED") for line in told) else 0


if __name__ == "__main__":
    sys.exit(main())
