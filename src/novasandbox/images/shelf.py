"""A look at the store that makes nothing: what is there already."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from novasandbox.images.progress import Progress, quiet
from novasandbox.images.store import Artifact, Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


class NotStored(LookupError):
    """The store does not have it."""


class Shelf(Store):
    """A store that only gives what is there: nothing is built or asked for."""

    async def obtain(
        self,
        kind: str,
        made_from: dict[str, Any],
        build: Callable[[Path], Awaitable[None]],  # noqa: ARG002
        *,
        needed: int = 0,  # noqa: ARG002
        thorough: bool = False,
        progress: Progress = quiet,  # noqa: ARG002
    ) -> Artifact:
        """The artifact made from this.

        Raises NotStored where there is none.
        """
        key = self.key(kind, made_from)
        found = await asyncio.to_thread(self.find, key, thorough=thorough)
        if found is None:
            raise NotStored(key)
        return found

    async def recall(
        self,
        inputs: dict[str, Any],
        make: Callable[[], Awaitable[Artifact]],  # noqa: ARG002
        *,
        fresh: bool = False,  # noqa: ARG002
        progress: Progress = quiet,  # noqa: ARG002
    ) -> Artifact:
        """The artifact that these inputs gave last time.

        Raises NotStored where there is none.
        """
        found = await asyncio.to_thread(self.recalled, inputs)
        if found is None:
            raise NotStored(str(inputs.get("kind")))
        return found
