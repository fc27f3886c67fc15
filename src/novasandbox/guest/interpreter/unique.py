"""A guest that is a copy of another one: nothing random may come out the same in both.

The agent writes 8 new bytes to a file whenever it has made a guest unique, and the sandbox's
environment to another. Contexts compare the bytes before each cell, in memory.
"""

from __future__ import annotations

import mmap
import os
import sys

_GENERATION = "/run/nova/generation"
_ENVIRONMENT = "/run/nova/environment"
_SIZE = 8


class Uniqueness:
    """Watches for a new generation.

    settings: the sandbox's environment and folder as they were applied last.
    """

    def __init__(self) -> None:
        self._map = _mapped()
        self._seen = self._map[:] if self._map is not None else b""
        self._stamp = _stamp()
        self.settings = _settings()
        self.cwd: str | None = _cwd()

    def is_new(self) -> bool:
        """Whether the guest has become another since the last call."""
        if self._map is None:
            return False
        found = self._map[:]
        if found == self._seen:
            return False
        self._seen = found
        return True

    def renew(self, *, takes_env: bool, takes_cwd: bool) -> None:
        """Give this process randomness of its own, and the sandbox's environment and folder.

        takes_env, takes_cwd: whether it has none of its own. What the user's code has changed
        since they were applied last stays.
        """
        reseed()
        stamp = _stamp()
        if stamp == self._stamp:  # The agent writes them only where they change.
            return
        settings = _settings()
        if settings is None:
            return
        before, self.settings = self.settings or {}, settings
        if takes_env:
            changed = {
                name: value
                for name, value in settings.items()
                if name != "PWD" and before.get(name) != value
            }
            os.environ.update(changed)
        wanted = settings.get("PWD")
        if takes_cwd and wanted and wanted != self.cwd and _cwd() == self.cwd:
            try:
                os.chdir(wanted)
            except OSError:  # It is not there; commands would fail, and cells go on where they are.
                return
            os.environ["PWD"] = wanted
            self.cwd = wanted
        self._stamp = stamp


def reseed() -> None:
    """New seeds for every generator that is loaded and has state of this process."""
    fresh = os.urandom(64)
    modules = sys.modules
    if "random" in modules:
        modules["random"].seed(fresh)
    if "numpy.random" in modules:
        modules["numpy.random"].seed(list(fresh))
    if "ssl" in modules:
        modules["ssl"].RAND_add(fresh, 64.0)
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None  # type: ignore[attr-defined]
    if "uuid" in modules:
        modules["uuid"]._node = None  # type: ignore[attr-defined]
        modules["uuid"]._last_timestamp = None  # type: ignore[attr-defined]


def _mapped() -> mmap.mmap | None:
    try:
        descriptor = os.open(_GENERATION, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return mmap.mmap(descriptor, _SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
    except (OSError, ValueError):  # It is shorter.
        return None
    finally:
        os.close(descriptor)


def _stamp() -> tuple[int, int] | None:
    """Another one once the settings were written: looking at it is far quicker than reading."""
    try:
        found = os.stat(_ENVIRONMENT)
    except OSError:
        return None
    return found.st_ctime_ns, found.st_size


def _settings() -> dict[str, str] | None:
    try:
        with open(_ENVIRONMENT, "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return None
    pairs = (os.fsdecode(entry).partition("=") for entry in entries)
    return {name: value for name, equals, value in pairs if name and equals}


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None
