"""The store of artifacts: kernels, initramfs, root images; content-addressed, shared by all.

    <home>/images/v1/objects/<kind>-<key>/   an artifact: its files, read-only, and its records
                     refs/<key>              which artifact was made from such inputs last
                     locks/                  one lock a key, held while it is made
                     tmp/                    what is being made, each locked by its maker

A key is a hash of what an artifact is made from. An artifact appears whole or not at all:
it is made in `tmp`, brought to the disk, and renamed into place. What a killed maker left
in `tmp` has no lock any more, and the next maker collects it. The format's version is part
of the path, so that a newer product never reads what an older one wrote.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from novasandbox.core.atomic import sync_folder
from novasandbox.core.home import home
from novasandbox.errors import HostResourceExhausted
from novasandbox.images import manifest
from novasandbox.images.locks import Hold, locked, try_lock
from novasandbox.images.progress import Progress, quiet
from novasandbox.images.tree import remove_tree, tree_size
from novasandbox.images.work import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from pathlib import Path

FORMAT = 1
"""Raised when artifacts change their form; it is part of every key and of the path."""

_KEY = re.compile(r"[a-z0-9]+-[0-9a-f]{32}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: the folder with its files, and what it was made from."""

    kind: str
    key: str
    path: Path
    made_from: dict[str, Any]


class Store:
    """One folder of artifacts, safe for any number of processes at once.

    root: the folder; the data directory's `images` where it is not given.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or home() / "images") / f"v{FORMAT}"
        self._objects = self.root / "objects"
        self._refs = self.root / "refs"
        self._locks = self.root / "locks"
        self._temporary = self.root / "tmp"
        for folder in (self._objects, self._refs, self._locks, self._temporary):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def objects(self) -> Path:
        """The folder in which each artifact has its own."""
        return self._objects

    def key(self, kind: str, made_from: dict[str, Any]) -> str:
        """The name of the artifact that is made from this."""
        text = json.dumps([FORMAT, kind, made_from], sort_keys=True, separators=(",", ":"))
        return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def find(self, key: str, *, thorough: bool = False) -> Artifact | None:
        """The artifact of that name, where it is there and whole; a damaged one is discarded."""
        path = self._objects / key
        if not _KEY.fullmatch(key) or not path.is_dir():
            return None
        try:
            record = manifest.check(path, thorough=thorough)
        except manifest.Damaged as error:
            if path.is_dir():
                log.warning("%s is damaged and is thrown away: %s", key, error)
                self._discard(path)
            return None
        return Artifact(record.kind, key, path, record.made_from)

    async def obtain(
        self,
        kind: str,
        made_from: dict[str, Any],
        build: Callable[[Path], Awaitable[None]],
        *,
        needed: int = 0,
        thorough: bool = False,
        progress: Progress = quiet,
    ) -> Artifact:
        """The artifact made from this: the one that is there, else what `build` makes.

        build: fills the empty folder that it is given. Whatever it raises goes through,
            and nothing is left behind.
        needed: the bytes that it will take, as well as they can be known.

        Raises HostResourceExhausted where the disk cannot hold it.
        """
        key = self.key(kind, made_from)
        if found := await asyncio.to_thread(self.find, key, thorough=thorough):
            return found
        waiting = _Waiting(kind, progress)
        async with (
            locked(self._locks / "use", shared=True),
            locked(self._locks / key, waiting=waiting.began),
        ):
            waiting.ended()
            if found := await asyncio.to_thread(self.find, key):
                return found
            await asyncio.to_thread(self.collect)
            async with self._disk(kind, needed), self._scratch(key) as folder:
                await build(folder)
                await in_thread(lambda _: manifest.seal(folder, kind, key, made_from))
                folder.rename(self._objects / key)
                sync_folder(self._objects)
        return Artifact(kind, key, self._objects / key, made_from)

    async def recall(
        self,
        inputs: dict[str, Any],
        make: Callable[[], Awaitable[Artifact]],
        *,
        fresh: bool = False,
        progress: Progress = quiet,
    ) -> Artifact:
        """The artifact that these inputs gave last time, else what `make` gives now.

        Inputs say what is wanted ("Debian's kernel of bookworm"), an artifact's own
        `made_from` what it really is (that very package); so only the first time, and
        with `fresh`, somebody has to ask the mirror.
        """
        ref = self._ref(inputs)
        started = time.time()
        if not fresh and (found := await asyncio.to_thread(self.recalled, inputs)):
            return found
        waiting = _Waiting(str(inputs.get("kind", "artifact")), progress)
        async with locked(self._locks / ref.name, waiting=waiting.began):
            waiting.ended()
            current = ref.exists() and ref.stat().st_mtime >= started
            if (current or not fresh) and (found := await asyncio.to_thread(self.recalled, inputs)):
                return found
            async with self._disk(str(inputs.get("kind", "artifact")), 1 << 16):
                artifact = await make()
                await asyncio.to_thread(_write, ref, artifact.key)
        return artifact

    def hold(self, key: str) -> Hold:
        """Keep an artifact from being collected for as long as the hold, or its fd, is open.

        Raises FileNotFoundError where there is no such artifact.
        """
        deadline = time.monotonic() + 10
        while True:
            descriptor = try_lock(self._objects / key, shared=True, directory=True)
            if descriptor is not None:
                return Hold(descriptor)
            if time.monotonic() > deadline:
                raise FileNotFoundError(errno.ENOENT, "it is being removed", key)
            time.sleep(0.01)

    def is_held(self, key: str) -> bool:
        """Whether somebody holds an artifact."""
        try:
            descriptor = try_lock(self._objects / key, directory=True)
        except FileNotFoundError:
            return False
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def remove(self, key: str) -> bool:
        """Remove an artifact; False where it is in use."""
        return self._discard(self._objects / key, only_unused=True)

    async def prune(self, keep: Iterable[str] = ()) -> dict[str, int]:
        """Remove what nobody uses: its keys and their sizes.

        keep: artifacts that stay, with their parts (the keys under `parts` in what they
            were made from), as do those that someone holds, and empty disks: they take
            next to nothing, and hibernated sandboxes lie on them.
        """
        async with locked(self._locks / "use"):
            return await asyncio.to_thread(self._prune, set(keep))

    def collect(self) -> None:
        """Remove what makers left that were killed."""
        for path in self._temporary.iterdir():
            try:
                descriptor = try_lock(path, directory=True)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if descriptor is not None:
                log.info("removing %s, left by a build that was killed", path.name)
                remove_tree(path)
                os.close(descriptor)

    def keys(self) -> list[str]:
        """The names of all artifacts."""
        return sorted(path.name for path in self._objects.iterdir())

    def recalled(self, inputs: dict[str, Any]) -> Artifact | None:
        """The artifact that these inputs gave last time, where it is there and whole."""
        try:
            return self.find(self._ref(inputs).read_text().strip())
        except FileNotFoundError:
            return None

    def _ref(self, inputs: dict[str, Any]) -> Path:
        return self._refs / self.key("ref", inputs)

    def _prune(self, keep: set[str]) -> dict[str, int]:
        keep |= {key for key in self.keys() if key.startswith("scratch-") or self.is_held(key)}
        for key in list(keep):
            try:
                made_from = manifest.read(self._objects / key).made_from
            except manifest.Damaged:
                continue
            keep |= set(made_from.get("parts", ()))
        removed: dict[str, int] = {}
        for key in self.keys():
            size = tree_size(self._objects / key)
            if key not in keep and self.remove(key):
                removed[key] = size
        for ref in self._refs.iterdir():
            if ref.read_text().strip() not in self.keys():
                ref.unlink(missing_ok=True)
        for older in self.root.parent.glob("v[0-9]*"):
            if older.name[1:].isdigit() and int(older.name[1:]) < FORMAT:
                removed[older.name] = tree_size(older)
                remove_tree(older)
        self.collect()
        return removed

    def _discard(self, path: Path, *, only_unused: bool = False) -> bool:
        """Take an artifact out of sight in one step, then delete it."""
        try:
            descriptor = try_lock(path, directory=True)
        except FileNotFoundError:
            return True
        if descriptor is None and only_unused:
            return False
        grave = self._temporary / f"{path.name}-{secrets.token_hex(4)}"
        try:
            path.rename(grave)
        except FileNotFoundError:
            return True
        finally:
            if descriptor is not None:
                os.close(descriptor)
        remove_tree(grave)
        return True

    @asynccontextmanager
    async def _scratch(self, key: str) -> AsyncIterator[Path]:
        """A new folder under a lock that dies with this process; gone at the end."""
        while True:
            folder = self._temporary / f"{key}-{secrets.token_hex(4)}"
            folder.mkdir(mode=0o755)
            try:
                descriptor = try_lock(folder, directory=True)
            except FileNotFoundError:
                continue  # a collector saw it before it was locked
            if descriptor is not None:
                break
        try:
            yield folder
        finally:
            try:
                if folder.exists():
                    # Shielded: a second cancellation must not leave half of it.
                    await asyncio.shield(asyncio.to_thread(remove_tree, folder))
            finally:
                os.close(descriptor)

    @asynccontextmanager
    async def _disk(self, kind: str, needed: int) -> AsyncIterator[None]:
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise self._full(kind, needed, free)
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self._full(kind, needed, shutil.disk_usage(self.root).free) from error

    def _full(self, kind: str, needed: int, free: int) -> HostResourceExhausted:
        return HostResourceExhausted(
            f"No room to make the {kind} in {self.root}",
            why=f"it takes about {needed:,} bytes, and {free:,} are free",
            fix="Free some space (nova template prune), or set NOVA_HOME to a folder on another "
            "disk",
        )


class _Waiting:
    """Tells that another process makes the same, and later that the wait is over."""

    def __init__(self, kind: str, progress: Progress) -> None:
        self._kind = kind
        self._step = f"waiting for another build of the {kind}"
        self._progress = progress
        self._began = False

    def began(self) -> None:
        log.info("another process makes the same %s: waiting for it", self._kind)
        self._began = True
        self._progress(self._step, 0, None)

    def ended(self) -> None:
        if self._began:
            self._progress(self._step, 1, 1)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
