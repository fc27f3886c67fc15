"""Unpacking Debian packages into a tree, without root: the tree's owners are written down.

Files belong to whoever runs this; who shall own them in the guest comes back in a list,
for the image to take over. Documentation, manuals and translations stay out; licences
stay in. dpkg's database is written too, so that `dpkg -l` works in the guest.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from novasandbox.images import deb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from novasandbox.images.packages import Package

_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_LEFT_OUT = re.compile(
    r"usr/share/(?:doc/[^/]+/(?!copyright$)|(?:man|info|locale|lintian|bug|gtk-doc)/[^/])"
)
_UNUSED_FIELDS = ("filename", "size", "md5sum", "sha1", "sha256", "description-md5")
_DOTS = ("", ".", "..")


class BadTree(ValueError):
    """A package wants to write where it must not."""


@dataclass
class Tree:
    """A guest's file system as a folder on the host.

    owners: user and group ids in the guest of what does not belong to root, by path.
    begun: the time before anything was written; what is younger does not come from a package.
    """

    root: Path
    owners: dict[str, tuple[int, int]] = field(default_factory=dict)
    begun: float = field(default_factory=lambda: time.time() - 1)
    _folders: dict[str, Path] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Where a guest's path lies on the host; links in it are followed within the tree."""
        folder, _, last = name.strip("/").rpartition("/")
        if last in _DOTS:
            raise BadTree(f"not a path in a package: {name!r}")
        return self.folder(folder) / last

    def folder(self, name: str) -> Path:
        """A folder of the guest's on the host, made where it is missing."""
        if name not in self._folders:
            found = self._resolve(name)
            for missing in [
                path for path in (*reversed(found.parents), found) if not path.exists()
            ]:
                missing.mkdir(exist_ok=True)
                missing.chmod(0o755)  # whatever the umask is
            self._folders[name] = found
        return self._folders[name]

    def write(self, name: str, content: str, mode: int = 0o644) -> None:
        """Write a text file, in place of whatever is there."""
        target = self.path(name)
        target.unlink(missing_ok=True)
        target.write_text(content)
        target.chmod(mode)

    def link(self, name: str, to: str) -> None:
        """Make a symbolic link where nothing is yet."""
        target = self.path(name)
        if not os.path.lexists(target):
            target.symlink_to(to)

    def has(self, name: str) -> bool:
        """Whether the guest has that path."""
        return os.path.lexists(self.path(name))

    def _resolve(self, name: str) -> Path:
        """Follow links as the guest would, so that none leads out of the tree."""
        parts, done, jumps = name.split("/")[::-1], list[str](), 0
        while parts:
            part = parts.pop()
            if part in ("", "."):
                continue
            if part == "..":
                done = done[:-1]
                continue
            here = self.root.joinpath(*done, part)
            if here.is_symlink():
                jumps += 1
                if jumps > 40:
                    raise BadTree(f"links without end at {name!r}")
                target = str(here.readlink())
                done = [] if target.startswith("/") else done
                parts += target.split("/")[::-1]
            else:
                done.append(part)
        return self.root.joinpath(*done)


def prepare(tree: Tree, arch: str) -> None:
    """Make what must be there before any package: the links of a merged /usr."""
    tree.root.mkdir(exist_ok=True)
    tree.root.chmod(0o755)
    for name in _MERGED[: 3 if arch == "aarch64" else 5]:
        if name != "lib32":
            tree.folder(f"usr/{name}")
            (tree.root / name).symlink_to(f"usr/{name}")


def unpack(
    tree: Tree,
    packages: Sequence[tuple[Package, Path]],
    tell: Callable[[int], None] = lambda _: None,
) -> None:
    """Unpack packages into a tree and write dpkg's database.

    tell: called with the number of packages that are done.

    Raises BadPackage, BadTree.
    """
    status = []
    for number, (package, path) in enumerate(packages, 1):
        listed = _contents(tree, path)
        _control(tree, package, path, listed)
        status.append(_status(package))
        tell(number)
    tree.write("var/lib/dpkg/status", "\n".join(status))
    tree.write("var/lib/dpkg/available", "")
    tree.write("var/lib/dpkg/info/format", "1\n")  # names with architectures
    tree.folder("var/lib/dpkg/updates")
    if packages:
        architecture = next(
            (found.architecture for found, _ in packages if found.architecture != "all"), "all"
        )
        tree.write("var/lib/dpkg/arch", f"{architecture}\n")


def _contents(tree: Tree, path: Path) -> list[str]:
    listed = []
    with deb.opened(path) as archive:
        for member in archive:
            name = member.name.removeprefix(".").strip("/")
            listed.append(f"/{name}" if name else "/.")
            if name and not _LEFT_OUT.match(name):
                _member(tree, archive, member, name)
    return listed


def _member(tree: Tree, archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
    if member.isdir():
        target = tree.folder(name)
        target.chmod(member.mode | 0o700)
    else:
        target = tree.path(name)
        if os.path.lexists(target):
            target.unlink()
        if member.issym():
            target.symlink_to(member.linkname)
        elif member.islnk():
            os.link(tree.path(member.linkname.removeprefix("./")), target)
        elif member.isfile() and (source := archive.extractfile(member)):
            with target.open("wb") as stream:
                shutil.copyfileobj(source, stream, 1 << 18)
            target.chmod(member.mode)
        else:
            raise BadTree(f"neither a file nor a folder nor a link: {name!r}")
    os.utime(target, (member.mtime, member.mtime), follow_symlinks=False)
    if member.uid or member.gid:
        tree.owners[str(target.relative_to(tree.root))] = (member.uid, member.gid)


def _control(tree: Tree, package: Package, path: Path, listed: Sequence[str]) -> None:
    """What dpkg keeps in `info`: the scripts and lists of the package."""
    same = re.search(r"^Multi-Arch: same$", package.stanza, re.MULTILINE)
    name = f"{package.name}:{package.architecture}" if same else package.name
    folder = tree.folder("var/lib/dpkg/info")
    with deb.opened(path, "control") as archive:
        for member in archive:
            part = member.name.removeprefix("./")
            source = archive.extractfile(member) if member.isfile() else None
            if source is None or "/" in part or part == "control":
                continue
            target = folder / f"{name}.{part}"
            target.write_bytes(source.read())
            target.chmod(member.mode)
            os.utime(target, (member.mtime, member.mtime))
    (folder / f"{name}.list").write_text("\n".join(listed) + "\n")


def _status(package: Package) -> str:
    lines = []
    keep = True
    for line in package.stanza.splitlines():
        if line[:1] not in (" ", "\t"):
            keep = line.partition(":")[0].lower() not in _UNUSED_FIELDS
        if keep:
            lines.append(line)
    lines.insert(1, "Status: install ok installed")
    return "\n".join(lines) + "\n"
