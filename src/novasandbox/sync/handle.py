"""What every object of `novasandbox.sync` is: a handle on one that lives in the loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

from novasandbox.core.background import background
from novasandbox.errors import InvalidRequest

T = TypeVar("T")


class Handle:
    """Makes calls in the loop that the object behind it belongs to."""

    def __init__(self) -> None:
        self._loop = background.start()

    def _call(
        self,
        work: Callable[[], Awaitable[T]],
        *,
        undo: Callable[[T], Awaitable[None]] | None = None,
    ) -> T:
        if background.start() is not self._loop:
            raise InvalidRequest(
                "this object was made before the process was forked",
                why="its connection belongs to the parent",
                fix="Use Sandbox.connect in the child.",
            )
        return background.call(work, undo=undo)

    def _call_plain(self, work: Callable[[], T]) -> T:
        """Call what does not wait, but has to happen in the loop."""

        async def called() -> T:
            return work()

        return self._call(called)

    def _each(self, make: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
        """Iterate over what an asynchronous iterator yields."""
        iterator = self._call_plain(make)
        while (found := self._call(lambda: _next(iterator))) is not None:
            yield found[0]


async def _next(iterator: AsyncIterator[T]) -> tuple[T] | None:
    try:
        return (await anext(iterator),)
    except StopAsyncIteration:
        return None
