"""HTTP GET over connections that are kept: one look-up and one handshake for many files."""

from __future__ import annotations

import base64
import http.client
import ssl
import threading
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from urllib.parse import SplitResult

_REDIRECTS = (301, 302, 303, 307, 308)
_HOPS = 8


class HttpError(Exception):
    """The server answered with something other than the file."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(f"the server says {status} {reason}".rstrip())


class NotHttp(ValueError):
    """The address, or one that it leads to, is not http or https."""


class Connections:
    """A pool of connections, for use from several threads.

    proxies: addresses of proxies by scheme, as in urllib; no_proxy is the environment's.
    timeout: seconds for connecting and for each read.
    """

    def __init__(self, proxies: dict[str, str], timeout: float) -> None:
        self._proxies = proxies
        self._timeout = timeout
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}

    @contextmanager
    def get(self, url: str, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        """The answer to a GET, its status 200 or 206; redirections are followed.

        Raises HttpError for any other status, NotHttp, OSError, http.client.HTTPException.
        """
        for _ in range(_HOPS):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise NotHttp(f"only http and https can be fetched, not {parts.scheme}:")
            connection, reply = self._ask(parts, headers)
            try:
                if reply.status in _REDIRECTS and (location := reply.getheader("Location")):
                    reply.read(1 << 16)
                    url = urljoin(url, location)
                    continue
                if reply.status not in (200, 206):
                    reply.read(1 << 16)
                    raise HttpError(reply.status, reply.reason)
                yield reply
                return
            finally:
                self._give_back(parts, connection, reply)
        raise HttpError(310, "too many redirections")

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _ask(
        self, parts: SplitResult, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        with self._lock:
            idle = self._idle.get((parts.scheme, parts.netloc))
            kept = idle.pop() if idle else None
        if kept is not None:
            try:
                return kept, self._send(kept, parts, headers)
            except (OSError, http.client.HTTPException):
                kept.close()  # the server had closed it meanwhile: a new one decides
        connection = self._connect(parts)
        try:
            return connection, self._send(connection, parts, headers)
        except BaseException:
            connection.close()
            raise

    def _send(
        self, connection: http.client.HTTPConnection, parts: SplitResult, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        target = parts.path or "/"
        if parts.query:
            target = f"{target}?{parts.query}"
        sent = {"User-Agent": "novasandbox", "Accept-Encoding": "identity", **headers}
        if parts.username:
            sent["Authorization"] = _basic(parts)
        proxy = self._proxy(parts)
        if proxy and parts.scheme == "http":
            target = f"http://{parts.netloc.rpartition('@')[2]}{target}"
            if proxy.username:
                sent["Proxy-Authorization"] = _basic(proxy)
        connection.request("GET", target, headers=sent)
        return connection.getresponse()

    def _connect(self, parts: SplitResult) -> http.client.HTTPConnection:
        host = parts.hostname or ""
        proxy = self._proxy(parts)
        if parts.scheme == "http":
            there = proxy or parts
            return http.client.HTTPConnection(
                there.hostname or "", there.port or 80, timeout=self._timeout
            )
        context = ssl.create_default_context()
        if proxy is None:
            return http.client.HTTPSConnection(
                host, parts.port or 443, timeout=self._timeout, context=context
            )
        connection = http.client.HTTPSConnection(
            proxy.hostname or "", proxy.port or 8080, timeout=self._timeout, context=context
        )
        credentials = {"Proxy-Authorization": _basic(proxy)} if proxy.username else {}
        connection.set_tunnel(host, parts.port or 443, headers=credentials)
        return connection

    def _proxy(self, parts: SplitResult) -> SplitResult | None:
        proxy = self._proxies.get(parts.scheme)
        if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
            return None
        return urlsplit(proxy if "://" in proxy else f"http://{proxy}")

    def _give_back(
        self,
        parts: SplitResult,
        connection: http.client.HTTPConnection,
        reply: http.client.HTTPResponse,
    ) -> None:
        """Keep the connection where the whole answer was read, else close it."""
        whole = reply.isclosed() or reply.length == 0  # read1() closes at chunked ends only
        if whole and not reply.will_close:
            reply.close()
            with self._lock:
                self._idle.setdefault((parts.scheme, parts.netloc), []).append(connection)
        else:
            connection.close()
            reply.close()


def _basic(parts: SplitResult) -> str:
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"
