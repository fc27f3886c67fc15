"""A small archive like Debian's, made and signed at test time, and a server with bad manners."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pysequoia

from novasandbox.images.mirrors import Mirrors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SUITES = ("bookworm", "bookworm-updates", "bookworm-security")


def tar(files: Mapping[str, bytes | str | None], modes: Mapping[str, int] | None = None) -> bytes:
    """A tar archive: bytes are files, text a link's target, None a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.mtime = 1_600_000_000
            member.mode = (modes or {}).get(name, 0o755 if content is None else 0o644)
            if content is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def ar(members: Mapping[str, bytes]) -> bytes:
    """An `ar` archive."""
    out = bytearray(b"!<arch>\n")
    for name, content in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) % 2)
    return bytes(out)


def deb(
    files: Mapping[str, bytes | str | None],
    modes: Mapping[str, int] | None = None,
    postinst: str = "",
) -> bytes:
    """A Debian package with these files, and this script."""
    control = {"control": b"", "md5sums": b"x"}
    if postinst:
        control["postinst"] = postinst.encode()
    return ar(
        {
            "debian-binary": b"2.0\n",
            "control.tar.xz": lzma.compress(tar(control)),
            "data.tar.xz": lzma.compress(tar(files, modes)),
        }
    )


@dataclass
class FakeArchive:
    """Files by path. Change them after `publish` to see whether it is noticed."""

    files: dict[str, bytes] = field(default_factory=dict)
    stanzas: dict[str, list[str]] = field(default_factory=dict)
    key: pysequoia.Tsk = field(
        default_factory=lambda: pysequoia.Tsk.generate("Archive <archive@example.org>")
    )
    header: str = "Origin: Debian\nSuite: oldstable\nCodename: {suite}\nAcquire-By-Hash: no\n"

    def add(
        self,
        name: str,
        content: bytes | None = None,
        *,
        suite: str = "bookworm",
        version: str = "1",
        extra: str = "",
    ) -> str:
        """Take a package in; gives the path of its file."""
        content = deb({}) if content is None else content
        path = f"pool/main/{name}_{version}_amd64.deb"
        self.files[path] = content
        self.stanzas.setdefault(suite, []).append(
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n{extra}"
            f"Filename: {path}\nSize: {len(content)}\n"
            f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
        )
        return path

    def publish(self, *, suites: tuple[str, ...] = SUITES, more: str = "") -> None:
        """Write the indices and sign them."""
        for suite in suites:
            packages = "\n".join(self.stanzas.get(suite, [])).encode()
            packed = lzma.compress(packages)
            name = "main/binary-amd64/Packages.xz"
            self.files[f"dists/{suite}/{name}"] = packed
            release = self.header.format(suite=suite) + more
            release += f"SHA256:\n {hashlib.sha256(packed).hexdigest()} {len(packed):>8} {name}\n"
            self.files[f"dists/{suite}/InRelease"] = self.sign(release.encode())

    def sign(self, text: bytes) -> bytes:
        """The text with an inline signature."""
        signer = self.key.signer()
        return pysequoia.sign(signer, text, mode=pysequoia.SignatureMode.CLEAR)

    def keys_in(self, folder: Path) -> Path:
        """A folder with the public key."""
        folder.mkdir(exist_ok=True)
        (folder / "archive.asc").write_text(str(self.key.extract_certificate()))
        return folder


@dataclass
class Manners:
    """How the server behaves, by path; everything else it serves as it is.

    cut: bytes after which it hangs up, the first `cuts` times. status: what it answers with,
    as often as the list is long. stall: seconds between pieces. longer: bytes it adds.
    ranges: whether it knows of them.
    """

    cut: dict[str, int] = field(default_factory=dict)
    cuts: int = 1
    status: dict[str, list[int]] = field(default_factory=dict)
    stall: dict[str, float] = field(default_factory=dict)
    longer: dict[str, int] = field(default_factory=dict)
    redirect: dict[str, str] = field(default_factory=dict)
    ranges: bool = True


@dataclass
class Served:
    """A running server: its address, its manners, and what was asked of it."""

    url: str
    manners: Manners
    asked: list[tuple[str, str]]
    connections: list[int]

    @property
    def mirrors(self) -> Mirrors:
        """The server as the only mirror."""
        return Mirrors((self.url,), (self.url,))


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Served]:
    """Serve files on the loopback for the time of a block."""
    served = Served("", Manners(), [], [])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            served.connections.append(1)

        def do_GET(self) -> None:
            path = self.path.lstrip("/").replace("%2B", "+")
            wanted = self.headers.get("Range", "")
            served.asked.append((path, wanted))
            statuses = served.manners.status.get(path)
            if path in served.manners.redirect:
                self._answer(302, {"Location": served.manners.redirect[path]}, b"")
            elif statuses:
                self._answer(statuses.pop(0), {}, b"no")
            elif path not in files:
                self._answer(404, {}, b"no such file")
            else:
                self._file(path, files[path], wanted)

        def _file(self, path: str, content: bytes, wanted: str) -> None:
            content += bytes(served.manners.longer.get(path, 0))
            status, headers = 200, dict[str, str]()
            if wanted and served.manners.ranges:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                status, content = 206, content[start:]
            cut = served.manners.cut.get(path)
            if cut is not None and served.manners.cuts:
                served.manners.cuts -= 1
                self.close_connection = True
                self._answer(status, headers, content[:cut], length=len(content))
            else:
                self._answer(status, headers, content, stall=served.manners.stall.get(path, 0))

        def _answer(
            self,
            status: int,
            headers: dict[str, str],
            content: bytes,
            *,
            length: int | None = None,
            stall: float = 0.0,
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            pieces = [content]
            if stall:
                pieces = [content[at : at + 1] for at in range(len(content))]
            for piece in pieces:
                try:
                    self.wfile.write(piece)
                    self.wfile.flush()
                except OSError:
                    self.close_connection = True
                    return
                time.sleep(stall)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
