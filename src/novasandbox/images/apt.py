"""Debian's archive, trusted from its signature down: InRelease, Packages, package.

The release file is signed by Debian's keys, it carries the hashes of the package
indices, and those carry the hashes of the packages. Nothing is used before its hash or
signature was checked, so the transport need not be trusted.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from novasandbox.errors import DownloadFailed
from novasandbox.images import compression
from novasandbox.images.deb822 import paragraphs
from novasandbox.images.openpgp import BadSignature, Keyring
from novasandbox.images.packages import BadIndex, Index, Package
from novasandbox.images.progress import Progress, quiet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from novasandbox.images.download import Fetcher
    from novasandbox.images.mirrors import Mirrors

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_RELEASE_LIMIT = 8 << 20
_INDEX_LIMIT = 512 << 20
_AT_ONCE = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Release:
    """A verified release file."""

    origin: str
    names: frozenset[str]
    valid_until: datetime.datetime | None
    by_hash: bool
    files: dict[str, tuple[str, int]]

    @classmethod
    def parse(cls, text: bytes) -> Release:
        """The release in a text whose signature was verified.

        Raises BadIndex.
        """
        fields = (paragraphs(text.decode("utf-8", "replace")) or [{}])[0]
        files: dict[str, tuple[str, int]] = {}
        for line in fields.get("sha256", "").splitlines():
            match = re.fullmatch(r"([0-9a-f]{64})\s+(\d{1,12})\s+(\S+)", line.strip())
            if match:
                files[match[3]] = (match[1], int(match[2]))
        valid = None
        if "valid-until" in fields:
            try:
                valid = email.utils.parsedate_to_datetime(fields["valid-until"])
            except ValueError as error:
                raise BadIndex(f"Valid-Until is no date: {fields['valid-until']!r}") from error
            valid = valid if valid.tzinfo else valid.replace(tzinfo=datetime.UTC)
        return cls(
            origin=fields.get("origin", ""),
            names=frozenset({fields.get("suite", ""), fields.get("codename", "")} - {""}),
            valid_until=valid,
            by_hash=fields.get("acquire-by-hash", "no") == "yes",
            files=files,
        )


class Archive:
    """Debian's archive as seen through some mirrors.

    mirrors: where it is. downloads: the folder for what is fetched, by SHA-256.
    arch: `x86_64` or `aarch64`. check_valid_until: refuse releases that are out of date.
    """

    def __init__(
        self,
        mirrors: Mirrors,
        *,
        fetcher: Fetcher,
        downloads: Path,
        arch: str,
        keyring: Keyring | None = None,
        check_valid_until: bool = True,
    ) -> None:
        self._mirrors = mirrors
        self._fetcher = fetcher
        self._downloads = downloads
        self._architecture = ARCHITECTURES[arch]
        self._keyring = keyring
        self._check_valid_until = check_valid_until

    async def index(self, suite: str, progress: Progress = quiet) -> Index:
        """All packages of a release with its updates and security updates.

        suite: a codename such as `bookworm`.

        Raises DownloadFailed where the suite itself cannot be had; updates that a mirror
        does not carry are left out.
        """
        index = Index()
        await self._add(index, suite, self._mirrors.main, progress)
        for extra, uris in (
            (f"{suite}-updates", self._mirrors.main),
            (f"{suite}-security", self._mirrors.security),
        ):
            try:
                await self._add(index, extra, uris, progress)
            except DownloadFailed as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                log.warning("the mirror has no %s: going on without it", extra)
        return index

    async def fetch(
        self, packages: Sequence[Package], step: str, progress: Progress = quiet
    ) -> list[Path]:
        """The files of packages, in the same order; several are fetched at once.

        Raises DownloadFailed.
        """
        total = sum(package.size for package in packages)
        done = 0

        def tell(more: int) -> None:
            nonlocal done
            done += more
            progress(step, min(done, total), total)

        slots = asyncio.Semaphore(_AT_ONCE)

        async def one(package: Package) -> Path:
            async with slots:
                return await self._fetcher.file(
                    f"{package.base}/{package.filename}",
                    self._downloads / f"{package.sha256}.deb",
                    sha256=package.sha256,
                    size=package.size,
                    progress=tell,
                )

        progress(step, 0, total)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(package)) for package in packages]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        progress(step, total, total)
        return [task.result() for task in tasks]

    async def _add(self, index: Index, suite: str, uris: Sequence[str], progress: Progress) -> None:
        """Take a suite into the index, from the first mirror that has it, signed."""
        failures: list[DownloadFailed] = []
        for uri in uris:
            try:
                text = await self._packages(uri, suite, progress)
            except DownloadFailed as error:
                failures.append(error)
                continue
            await asyncio.to_thread(index.add, text, uri)
            return
        if not failures:
            raise DownloadFailed(f"No mirror is known for {suite}") from FileNotFoundError(suite)
        missing = [isinstance(failure.__cause__, FileNotFoundError) for failure in failures]
        if len(failures) == 1 or all(missing):
            raise failures[0]
        worst = failures[missing.index(False)]
        raise DownloadFailed(
            f"No mirror gives {suite}",
            why="; ".join(str(failure) for failure in failures),
        ) from worst

    async def _packages(self, uri: str, suite: str, progress: Progress) -> bytes:
        """The verified and unpacked `Packages` of a suite."""
        root = f"{uri}/dists/{suite}"
        release = self._verified(
            await self._fetcher.small(f"{root}/InRelease", _RELEASE_LIMIT), root, suite
        )
        plain = f"main/binary-{self._architecture}/Packages"
        for name in (f"{plain}.xz", f"{plain}.gz", plain):
            if name in release.files:
                break
        else:
            raise DownloadFailed(
                f"{root} is of no use here", why=f"it has no packages for {self._architecture}"
            )
        sha256, size = release.files[name]
        if size > _INDEX_LIMIT:
            raise DownloadFailed(f"{root}/{name} is too large", why=f"it has {size:,} bytes")
        folder, _, base = name.rpartition("/")
        url = f"{root}/{folder}/by-hash/SHA256/{sha256}" if release.by_hash else f"{root}/{name}"
        step = f"fetching the package index of {suite}"
        done = 0

        def tell(more: int) -> None:
            nonlocal done
            done += more
            progress(step, done, size)

        path = await self._fetcher.file(
            url, self._downloads / f"{sha256}-{base}", sha256=sha256, size=size, progress=tell
        )
        try:
            packed = await asyncio.to_thread(path.read_bytes)
            return await asyncio.to_thread(compression.decompress, packed, _INDEX_LIMIT)
        except compression.BadCompression as error:
            raise DownloadFailed(f"Cannot unpack {url}", why=str(error)) from error

    def _verified(self, message: bytes, root: str, suite: str) -> Release:
        self._keyring = self._keyring or Keyring()
        try:
            release = Release.parse(self._keyring.signed_text(message))
        except BadSignature as error:
            raise DownloadFailed(
                f"{root}/InRelease is not signed by Debian",
                why=str(error),
                fix="Something between here and the mirror changes files, or the mirror is not "
                "one of Debian's; NOVA_MIRROR names another",
            ) from error
        except BadIndex as error:
            raise DownloadFailed(f"{root}/InRelease is damaged", why=str(error)) from error
        if release.origin != "Debian" or suite not in release.names:
            names = " or ".join(sorted(release.names)) or "nothing"
            raise DownloadFailed(
                f"{root}/InRelease is of another release",
                why=f"it is signed as {names} of {release.origin or 'nobody'}",
            )
        now = datetime.datetime.now(datetime.UTC)
        if self._check_valid_until and release.valid_until and release.valid_until < now:
            raise DownloadFailed(
                f"{root}/InRelease is out of date",
                why=f"it was valid until {release.valid_until:%Y-%m-%d %H:%M} UTC",
                fix="Check this machine's clock, or use a mirror that is kept up to date. For a "
                'frozen mirror: set Acquire::Check-Valid-Until "false" in apt\'s configuration',
            )
        return release
