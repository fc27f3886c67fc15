"""`Pool` without an event loop; each call is explained in `novasandbox.core.pool`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from novasandbox.core import pool as core
from novasandbox.core import sandbox as core_sandbox
from novasandbox.core.background import background
from novasandbox.core.hypervisor import DEFAULT_TIMEOUT
from novasandbox.sync.handle import Handle
from novasandbox.sync.sandbox import Sandbox, _hold

_open: set[core.Pool] = set()
"""The pools of this process that are not closed; used in the loop only."""


class Pool(Handle):
    """Keeps `size` sandboxes of one kind ready, each for one taker.

        with Pool("debian-python", size=4) as pool:
            sandbox = pool.acquire()

    Any thread may take one. They end with this process, taken or not.
    """

    def __init__(
        self,
        template: str | None = None,
        size: int = 2,
        *,
        name: str | None = None,
        **config: Any,
    ) -> None:
        """A pool, which starts with its `with` block or its first `acquire`.

        template, config: as for `Sandbox.create`, but for what is said when one is taken. user,
        cwd and env are those of takers who say nothing else. size: how many are kept ready; 0:
        each is made when it is asked for. name: of the pool, to find its idle ones by; eight
        hex digits unless given.

        Raises InvalidConfig.
        """
        super().__init__()
        self._pool = core.Pool(template, size, name=name, **config)

    def __repr__(self) -> str:
        return repr(self._pool)

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._pool.name

    @property
    def size(self) -> int:
        """How many are kept ready."""
        return self._pool.size

    @property
    def idle(self) -> int:
        """How many are ready now."""
        return self._pool.idle

    def acquire(
        self,
        *,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        cwd: str | None = None,
        user: str | None = None,
        timeout_wait: float | None = None,
    ) -> Sandbox:
        """A ready sandbox, the caller's own from here on: it is never given to anybody else.

        name, metadata, user, cwd: as for `Sandbox.create`. env: added to the pool's. timeout: its
        life in seconds from now; None: no end. Those who wait are served in the order in which
        they came. timeout_wait: seconds that are waited for one, also while none can be made;
        None: until there is one, or making one fails. Ctrl-C gives up.

        Raises InvalidConfig (as for a user whom no guest can have), NameTaken;
        CapacityExceeded where none was free in time; what `Sandbox.create` raises where none
        can be made; InvalidRequest when the pool is closed.
        """

        async def taken() -> core_sandbox.Sandbox:
            self._begin()
            return _hold(
                await self._pool.acquire(
                    name=name,
                    env=env,
                    metadata=metadata,
                    timeout=timeout,
                    cwd=cwd,
                    user=user,
                    timeout_wait=timeout_wait,
                )
            )

        return Sandbox(self._call(taken, undo=lambda made: made.kill()))

    def ready(self, count: int | None = None) -> None:
        """Wait until so many are ready, however long the host is too busy to make them.

        count: all of `size` unless given. Raises what went wrong where one cannot be made.
        """

        async def full() -> None:
            self._begin()
            await self._pool.ready(count)

        self._call(full)

    def start(self) -> None:
        """Begin to make them. Raises InvalidRequest when it is closed."""
        self._call_plain(self._begin)

    def close(self) -> None:
        """End those that nobody has taken, and those being made. Harmless when repeated.

        What was taken lives on. Who waits is told that the pool is closed.
        """

        async def closed() -> None:
            await self._pool.close()
            _open.discard(self._pool)

        self._call(closed)

    def _begin(self) -> None:
        self._pool.start()
        _open.add(self._pool)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def _close_all() -> None:
    for pool in list(_open):
        await pool.close()
    _open.clear()


background.at_exit(_close_all)
# What a forked child finds in it is the parent's.
os.register_at_fork(after_in_child=_open.clear)
