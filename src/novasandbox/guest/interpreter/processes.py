"""What the server knows of processes, from /proc: trees of them, and who ran out of memory."""

from __future__ import annotations

import contextlib
import os
import signal

_ROUNDS = 20
# Of 1000: where memory is short, contexts go before the server, and not much before others.
_EXPENDABLE = "100"


def kill(root: int) -> None:
    """Kill a process, its descendants, and whoever is in its session."""
    _signal(root, signal.SIGSTOP)
    for _ in range(_ROUNDS):
        found = _below(root)
        for pid in found:
            _signal(pid, signal.SIGKILL)
        if not found:
            break
    _signal(root, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):  # It is gone, or is another user's.
        os.kill(pid, number)


def _below(root: int) -> set[int]:
    """Living processes below `root` or of its session, without `root`."""
    table = _table()
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    left = [root, *(pid for pid, (_, session) in table.items() if session == root)]
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, ())
    return found - {root}


def _table() -> dict[int, tuple[int, int]]:
    """Parent and session of every process that is not a zombie."""
    table = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] not in (b"Z", b"X"):
            table[int(name)] = int(fields[1]), int(fields[3])
    return table


def make_expendable() -> None:
    """Have the kernel end this process before others, where it has to end one."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_EXPENDABLE)


def oom_kills() -> int:
    """How many processes of this control group the kernel has killed for lack of memory."""
    try:
        with open("/proc/self/cgroup") as file:
            path = file.read().rpartition("::")[2].strip()
        with open(f"/sys/fs/cgroup{path}/memory.events") as file:
            words = file.read().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError, IndexError):
        return 0
