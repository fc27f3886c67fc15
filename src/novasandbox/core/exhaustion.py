"""The host's own limits, told as the error that says what to free."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from novasandbox.errors import HostResourceExhausted

_MEANINGS = {
    errno.ENOSPC: ("the host's disk is full", "Free some, or put NOVA_HOME on a larger one."),
    errno.EDQUOT: ("the host's disk quota is used up", "Free some, or have it raised."),
    errno.EMFILE: ("this process has too many open files", "Raise it: ulimit -n 65536"),
    errno.ENFILE: ("the host has too many open files", "Raise fs.file-max."),
    errno.ENOMEM: ("the host's memory is used up", "End some sandboxes, or make smaller ones."),
    errno.EAGAIN: ("the host has too many processes", "End some, or raise ulimit -u."),
}


@contextlib.contextmanager
def host_limits() -> Iterator[None]:
    """Raise HostResourceExhausted for an OSError that is one of the host's limits."""
    try:
        yield
    except OSError as error:
        if error.errno not in _MEANINGS or isinstance(error, BlockingIOError):
            raise
        what, fix = _MEANINGS[error.errno]
        raise HostResourceExhausted(what, why=str(error), fix=fix) from error
