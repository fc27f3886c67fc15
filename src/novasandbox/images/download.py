"""Fetching over HTTP: bounded, resumed, and checked against a SHA-256 while it streams."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import random
import re
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from novasandbox.errors import DownloadFailed
from novasandbox.images.connections import Connections, HttpError, NotHttp
from novasandbox.images.locks import try_lock
from novasandbox.images.work import Stop, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

T = TypeVar("T")

_PIECE = 1 << 16
# A cancelled download that waits for a silent server goes on alone: it can only add to a part.
_PATIENCE = 2.0
_LATER = (408, 425, 429, 500, 502, 503, 504)


class _Wrong(Exception):
    """What came is not what was asked for; asking again gives the same."""


class Fetcher:
    """How to reach servers; a context manager, since it keeps connections.

    proxies: by scheme, as in urllib; those of the environment where not given.
    timeout: seconds without a byte after which an attempt has failed.
    attempts: how often to try; between two it waits, each time longer.
    pause: the first of those waits, in seconds.
    minimum_rate: bytes a second; slower than that over `grace` seconds has failed.
    """

    def __init__(
        self,
        *,
        proxies: dict[str, str] | None = None,
        timeout: float = 30.0,
        attempts: int = 5,
        pause: float = 0.5,
        minimum_rate: int = 2000,
        grace: float = 60.0,
    ) -> None:
        if proxies is None:
            proxies = urllib.request.getproxies()
        self.connections = Connections(proxies, timeout)
        self.attempts = attempts
        self.pause = pause
        self.minimum_rate = minimum_rate
        self.grace = grace

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are idle."""
        self.connections.close()

    async def small(self, url: str, limit: int) -> bytes:
        """The body of a file of at most `limit` bytes.

        Raises DownloadFailed; its cause is a FileNotFoundError where there is none (404).
        """
        return await in_thread(
            lambda stop: _Fetch(self, url, stop).small(limit), patience=_PATIENCE
        )

    async def file(
        self,
        url: str,
        target: Path,
        *,
        sha256: str,
        size: int,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Path:
        """A file of known size and hash, as `target`; one that is there already is checked.

        What came before an interruption lies beside it as `.part` and is gone on with.
        Two processes that want the same take turns.

        progress: called from another thread with the bytes that came since the last call.

        Raises DownloadFailed where it cannot be had, or is not what the hash promises.
        """
        return await in_thread(
            lambda stop: _Fetch(self, url, stop, progress).file(target, sha256, size),
            patience=_PATIENCE,
        )


class _Fetch:
    """One download, in a thread of its own."""

    def __init__(
        self,
        how: Fetcher,
        url: str,
        stop: Stop,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._how = how
        self._url = url
        self._shown = re.sub(r"//[^/@]*@", "//", url)  # without a mirror's password
        self._stop = stop
        self._progress = progress
        self._told = 0

    def small(self, limit: int) -> bytes:
        return self._persistently(lambda: self._body(limit))

    def file(self, target: Path, sha256: str, size: int) -> Path:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        while (lock := try_lock(part)) is None:
            self._stop.rest(0.1)
        try:
            if target.exists() and _digest(target, target.stat().st_size).hexdigest() == sha256:
                self._tell(size)
                part.unlink()
                return target
            self._persistently(lambda: self._attempt(part, sha256, size))
            part.replace(target)
            return target
        finally:
            os.close(lock)

    def _body(self, limit: int) -> bytes:
        body = bytearray()
        with self._open() as reply:
            for piece in self._pieces(reply):
                body += piece
                if len(body) > limit:
                    raise _Wrong(f"it has more than {limit:,} bytes")
        return bytes(body)

    def _attempt(self, part: Path, sha256: str, size: int) -> None:
        """Go on where the part ends; what came stays there when the attempt fails."""
        start = have = part.stat().st_size if part.stat().st_size <= size else 0
        digest = _digest(part, have)
        if have < size:
            with part.open("r+b") as stream, self._open(have) as reply:
                if have and reply.status != 206:
                    start, have, digest = 0, 0, hashlib.sha256()
                stream.seek(have)
                stream.truncate()
                for piece in self._pieces(reply):
                    have += len(piece)
                    if have > size:
                        break
                    digest.update(piece)
                    stream.write(piece)
                    self._tell(have)
        if have < size:
            raise ConnectionError(f"it ended after {have:,} of {size:,} bytes")
        if have == size and digest.hexdigest() == sha256:
            return
        os.truncate(part, 0)
        if start:
            raise ConnectionError("what lay here from an earlier attempt was damaged")
        what = "is longer than" if have > size else "has another SHA-256 than"
        raise _Wrong(f"it {what} the signed index of the archive promises")

    @contextmanager
    def _open(self, offset: int = 0) -> Iterator[http.client.HTTPResponse]:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._how.connections.get(self._url, headers) as reply:
            there = reply.headers.get("Content-Range", "")
            if reply.status == 206 and not there.startswith(f"bytes {offset}-"):
                raise ConnectionError(f"the server sent another part than was asked for: {there}")
            yield reply

    def _pieces(self, reply: http.client.HTTPResponse) -> Iterator[bytes]:
        started, got = time.monotonic(), 0
        while piece := reply.read1(_PIECE):
            self._stop.check()
            yield piece
            got += len(piece)
            spent = time.monotonic() - started
            if spent > self._how.grace and got < spent * self._how.minimum_rate:
                raise TimeoutError(f"only {got:,} bytes came in {spent:.0f} s")
        if reply.length:  # what Content-Length promised and did not come
            raise ConnectionError(f"it ended {reply.length:,} bytes too early")

    def _persistently(self, attempt: Callable[[], T]) -> T:
        """Try until it works, it cannot work, or the attempts are used up."""
        for number in range(1, self._how.attempts + 1):
            self._stop.check()
            try:
                return attempt()
            except (_Wrong, NotHttp) as error:
                raise self._failed(str(error)) from error
            except HttpError as error:
                if error.status in (404, 410):
                    raise self._failed("the server has no such file") from FileNotFoundError(
                        errno.ENOENT, "no such file", self._shown
                    )
                if error.status not in _LATER or number == self._how.attempts:
                    raise self._failed(str(error)) from error
            except (OSError, http.client.HTTPException) as error:
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if number == self._how.attempts:
                    raise self._failed(
                        f"{error or type(error).__name__} ({number} attempts)",
                        fix="Check the network, the proxy settings of apt and of the "
                        "environment, and the mirror (NOVA_MIRROR names another)",
                    ) from error
            self._stop.rest(self._how.pause * 2 ** (number - 1) * random.uniform(0.8, 1.2))  # noqa: S311
        raise AssertionError("a Fetcher makes at least one attempt")

    def _failed(self, why: str, fix: str | None = None) -> DownloadFailed:
        return DownloadFailed(f"Cannot fetch {self._shown}", why=why, fix=fix)

    def _tell(self, have: int) -> None:
        if have > self._told:
            self._progress(have - self._told)
            self._told = have


def _digest(path: Path, length: int) -> hashlib._Hash:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while length > 0 and (piece := stream.read(min(length, 1 << 20))):
            digest.update(piece)
            length -= len(piece)
    return digest
