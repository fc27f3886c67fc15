"""Opening Debian's archive as this machine is set up for it, when something must be fetched."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from novasandbox.images.apt import Archive
from novasandbox.images.aptconfig import apt_settings
from novasandbox.images.download import Fetcher
from novasandbox.images.mirrors import find_mirrors
from novasandbox.images.openpgp import Keyring

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from novasandbox.images.packages import Index
    from novasandbox.images.progress import Progress


class Indices:
    """The archive and its package indices, each fetched when it is first asked for.

    A context manager, since it keeps connections.

    named: mirrors instead of those of `find_mirrors`. keys: a folder of public keys that
    are trusted instead of Debian's. downloads: the folder for what is fetched.
    """

    def __init__(
        self,
        named: Sequence[str] | None,
        keys: Path | None,
        downloads: Path,
        arch: str,
        progress: Progress,
    ) -> None:
        self._named = named
        self._keys = keys
        self._downloads = downloads
        self._arch = arch
        self._progress = progress
        self._lock = asyncio.Lock()
        self._fetcher: Fetcher | None = None
        self._archive: Archive | None = None
        self._found: dict[str, Index] = {}

    def __enter__(self) -> Indices:
        return self

    def __exit__(self, *error: object) -> None:
        if self._fetcher is not None:
            self._fetcher.close()

    def of(self, suite: str) -> Callable[[], Awaitable[tuple[Archive, Index]]]:
        """What opens the index of a release."""

        async def open_index() -> tuple[Archive, Index]:
            async with self._lock:
                archive = self._archive or await self._open()
                if suite not in self._found:
                    self._found[suite] = await archive.index(suite, self._progress)
                return archive, self._found[suite]

        return open_index

    async def _open(self) -> Archive:
        found = await asyncio.to_thread(find_mirrors, self._named)
        settings = await asyncio.to_thread(apt_settings)
        self._fetcher = Fetcher(proxies=settings.proxies)
        self._archive = Archive(
            found,
            fetcher=self._fetcher,
            downloads=self._downloads,
            arch=self._arch,
            keyring=Keyring(self._keys) if self._keys else None,
            check_valid_until=settings.check_valid_until,
        )
        return self._archive
