"""What Debian's packages do when they are configured, for those that every root has.

The packages are unpacked and their scripts never run, which is quick, needs no root and
works for another architecture. What the scripts of base packages would have made is
made here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from novasandbox.images import alternatives, ldcache

if TYPE_CHECKING:
    from pathlib import Path

    from novasandbox.images.unpack import Tree

_LINKS = {
    "bin/sh": "dash",
    "etc/localtime": "/usr/share/zoneinfo/Etc/UTC",
    "etc/mtab": "../proc/self/mounts",
    "usr/lib/ssl/cert.pem": "/etc/ssl/certs/ca-certificates.crt",
    "usr/lib/ssl/certs": "/etc/ssl/certs",
    "var/run": "/run",
    "var/lock": "/run/lock",
}
_COPIES = {
    "usr/share/base-passwd/passwd.master": "etc/passwd",
    "usr/share/base-passwd/group.master": "etc/group",
    "usr/share/libc-bin/nsswitch.conf": "etc/nsswitch.conf",
    "usr/share/base-files/nsswitch.conf": "etc/nsswitch.conf",
    "usr/share/base-files/profile": "etc/profile",
    "usr/share/base-files/dot.profile": "root/.profile",
    "usr/share/base-files/dot.bashrc": "root/.bashrc",
}
_EPOCH_DAYS = 19700  # the day of the last password change, which nobody reads


def configure(tree: Tree, arch: str, user: str) -> None:
    """Make a tree of unpacked packages a root that works.

    user: the name of the ordinary account (uid and gid 1000).
    """
    for source, target in _COPIES.items():
        if tree.path(source).is_file() and not tree.has(target):
            tree.write(target, tree.path(source).read_text())
    for name, target in _LINKS.items():
        folder = name.rpartition("/")[0]
        if target.startswith("/") or ".." in target or tree.path(f"{folder}/{target}").exists():
            tree.link(name, target)
    alternatives.choose(tree)
    _accounts(tree, user)
    _certificates(tree)
    for name in ("dev", "proc", "sys", "run", "mnt", "srv", "home", "opt"):
        tree.folder(name)
    for name in ("tmp", "var/tmp"):
        tree.folder(name).chmod(0o1777)
    tree.folder("root").chmod(0o700)
    tree.write("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
    tree.write("etc/hostname", "sandbox\n")
    tree.write("etc/machine-id", "")
    tree.write("etc/default/locale", "LANG=C.UTF-8\n")
    tree.write("etc/shells", "/bin/sh\n/bin/bash\n/usr/bin/bash\n/bin/dash\n")
    # A sandbox is thrown away: pip may install into it as it is.
    for path in tree.folder("usr/lib").glob("python3*/EXTERNALLY-MANAGED"):
        path.unlink()
    ldcache.write(tree, arch)


def _accounts(tree: Tree, user: str) -> None:
    passwd, group = tree.path("etc/passwd"), tree.path("etc/group")
    users = passwd.read_text() if passwd.exists() else "root:*:0:0:root:/root:/bin/bash\n"
    groups = group.read_text() if group.exists() else "root:*:0:\n"
    users = users.replace(":*:", ":x:") + f"{user}:x:1000:1000::/home/{user}:/bin/bash\n"
    groups = groups.replace(":*:", ":x:") + f"{user}:x:1000:\n"
    names = [line.split(":")[0] for line in users.splitlines()]
    shadow = "".join(f"{name}:*:{_EPOCH_DAYS}:0:99999:7:::\n" for name in names)
    gshadow = "".join(f"{line.split(':')[0]}:*::\n" for line in groups.splitlines())
    tree.write("etc/passwd", users)
    tree.write("etc/group", groups)
    for name, text in (("etc/shadow", shadow), ("etc/gshadow", gshadow)):
        tree.write(name, text, 0o640)
        tree.owners[name] = (0, 42)
    home = f"home/{user}"
    tree.folder(home).chmod(0o755)
    tree.owners[home] = (1000, 1000)
    skeleton = tree.folder("etc/skel")
    for path in sorted(skeleton.iterdir()):
        if path.is_file():
            tree.write(f"{home}/{path.name}", path.read_text())
            tree.owners[f"{home}/{path.name}"] = (1000, 1000)


def _certificates(tree: Tree) -> None:
    """The bundle of authorities that ca-certificates makes of its single files."""
    folder: Path = tree.folder("usr/share/ca-certificates")
    files = sorted(folder.rglob("*.crt"))
    if files:
        bundle = "".join(path.read_text().rstrip("\n") + "\n" for path in files)
        tree.write("etc/ssl/certs/ca-certificates.crt", bundle)
        names = [str(path.relative_to(folder)) for path in files]
        tree.write("etc/ca-certificates.conf", "\n".join(names) + "\n")
