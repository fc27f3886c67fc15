"""User ids of their own for hypervisors, each used by one machine of this host at a time.

A lease is a lock on one byte of one file, at the offset of the uid. The lock belongs to the
open file, so it is handed on with the descriptor: the jail's supervisor holds it, and the
kernel gives the uid back at the moment the supervisor ends, however it ends. The file lies
outside NOVA_HOME, because two of those on one host must not share a uid.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import random
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from novasandbox.errors import HostResourceExhausted, InvalidConfig

if TYPE_CHECKING:
    from types import TracebackType

DEFAULT_RANGE = (2_000_000, 2_065_535)
"""Above what distributions hand out, within what every file system can store."""

_STORE = Path("/run/novasandbox")
_FLOCK = "hhqqi0q"  # struct flock of fcntl(2): type, whence, start, length, pid


@dataclass(frozen=True, slots=True)
class UidLease:
    """A uid (its gid is the same number) that no other machine of this host has.

    Leaving its `with` block closes our copy of the descriptor; the lease lives on in every
    process that was given one.
    """

    uid: int
    descriptor: int

    def close(self) -> None:
        """Close our copy of the descriptor."""
        os.close(self.descriptor)

    def __enter__(self) -> UidLease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def uid_range() -> tuple[int, int]:
    """The first and last uid to lease: NOVA_UID_RANGE=FIRST-LAST, else DEFAULT_RANGE."""
    text = os.environ.get("NOVA_UID_RANGE")
    if not text:
        return DEFAULT_RANGE
    first, _, last = text.partition("-")
    # Uids below are people's and services', -1 means "unchanged" to setresuid.
    if not (first.isdecimal() and last.isdecimal() and 1000 <= int(first) <= int(last) < 2**32 - 1):
        raise InvalidConfig(
            f"NOVA_UID_RANGE={text!r}",
            why="it must be FIRST-LAST, two numbers from 1000 on",
            fix="Leave it unset for {}-{}.".format(*DEFAULT_RANGE),
        )
    return int(first), int(last)


def lease(store: Path = _STORE) -> UidLease:
    """Lease a uid. Needs root; blocks for microseconds.

    Raises HostResourceExhausted when all are in use, PermissionError when not root.
    """
    first, last = uid_range()
    descriptor = _open_store(store)
    try:
        # From anywhere, so that a uid is not used again right after its machine died.
        start = random.randint(first, last)  # noqa: S311
        for uid in itertools.chain(range(start, last + 1), range(first, start)):
            if _lock(descriptor, uid):
                return UidLease(uid, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    raise HostResourceExhausted(
        "no uid is free for another machine",
        why=f"all of {first} to {last} are in use",
        fix="Stop some sandboxes, or widen NOVA_UID_RANGE.",
    )


def _open_store(store: Path) -> int:
    store.mkdir(mode=0o700, exist_ok=True)
    found = store.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others may write to it, or own it", str(store))
    return os.open(store / "uids", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _lock(descriptor: int, uid: int) -> bool:
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, uid, 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
