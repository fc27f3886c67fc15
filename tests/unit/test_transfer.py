"""Trees out of a guest: whatever it calls its files, nothing outside the target is touched."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from novasandbox.errors import FileError, OperationFailed
from novasandbox.guest.files import Files
from novasandbox.guest.protocol import Frame, Op, Tag
from novasandbox.guest.transfer import Refused, download, link_stays_inside, upload
from support.linked import Linked
from support.peer import Connection, Heard, data, end, record, reply, state

NAMES = st.sampled_from(["a", "b", "..", ".", ""])
TARGETS = st.lists(NAMES, max_size=6).map("/".join)
PLACES = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=4)


@settings(max_examples=60)
@given(st.lists(st.tuples(PLACES, TARGETS), max_size=8))
@example([(["a"], "..")])
@example([(["a"], "."), (["b"], "a/..")])
@example([(["a", "b"], "../.."), (["a", "a"], "..")])
def test_links_that_are_made_never_lead_out_of_the_tree(
    links: list[tuple[list[str], str]],
) -> None:
    """The oracle is the file system itself: where every place really is, all links made."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "x" / "root"
        root.mkdir(parents=True)
        # What a link that leads out would find.
        for outside in (root.parent, root.parent.parent):
            (outside / "a" / "b").mkdir(parents=True)
            (outside / "b" / "a").mkdir(parents=True)
        made = []
        for place, target in links:
            parent = root
            for name in place[:-1]:
                parent /= name
                if parent.is_symlink() or parent.is_file():
                    break
                parent.mkdir(exist_ok=True)
            else:
                path = parent / place[-1]
                if link_stays_inside(target, len(place) - 1) and not os.path.lexists(path):
                    path.symlink_to(target)
                    made.append(path)
        for path in made:
            for below in ("", "/a", "/b/a", "/a/b/a"):
                with contextlib.suppress(OSError):  # Nothing is there, or a circle of links.
                    real = os.path.realpath(f"{path}{below}", strict=True)
                    assert real == str(root) or real.startswith(f"{root}/")


@pytest.mark.parametrize(
    ("target", "depth", "stays"),
    [
        ("a", 0, True),
        ("a/b", 0, True),
        ("..", 0, False),
        ("..", 1, True),
        ("../..", 1, False),
        ("./../a", 1, True),
        ("a/../..", 5, False),
        ("a/..", 0, False),
        ("//a", 3, False),
        ("/etc/passwd", 3, False),
        ("", 3, False),
        ("a\0b", 3, False),
        ("...", 0, True),
        ("..a", 0, True),
    ],
)
def test_where_a_link_leads(target: str, depth: int, stays: bool) -> None:
    assert link_stays_inside(target, depth) is stays


Entry = dict[Tag, Any]


class TreeGuest:
    """A guest that answers LIST, STAT and READ from a table, names and all as it likes."""

    def __init__(self, connection: Connection, listings: dict[bytes, list[Entry]]) -> None:
        self._connection = connection
        self._listings = listings

    async def serve(self) -> None:
        while True:
            heard = await self._connection.expect(Frame.REQUEST)
            (path,) = heard.fields[Tag.PATH]
            match heard.op:
                case Op.STAT:
                    self._connection.send(reply(heard.stream, 0, (Tag.KIND, 2), (Tag.MODE, 0o755)))
                case Op.LIST:
                    body = b"".join(record(*each.items()) for each in self._listings[path])
                    self._output(heard, body)
                case Op.READ if path.endswith(b"secret"):
                    self._connection.send(reply(heard.stream, errno.EACCES))
                case Op.READ:
                    self._output(heard, b"content of " + path)

    def _output(self, heard: Heard, body: bytes) -> None:
        frames = [data(heard.stream, 0, body)] if body else []
        self._connection.send(
            state(heard.stream), *frames, end(heard.stream, len(body)), reply(heard.stream)
        )


def entry(name: bytes, kind: int = 1, **more: Any) -> Entry:
    """A directory's entry, as the guest writes it."""
    found: Entry = {Tag.NAME: name, Tag.KIND: kind, Tag.MODE: more.get("mode", 0o644)}
    if "target" in more:
        found[Tag.TARGET_PATH] = more["target"]
    return found


@pytest.fixture
async def serving() -> AsyncIterator[list[asyncio.Task[None]]]:
    """Tasks that are ended after the test."""
    tasks: list[asyncio.Task[None]] = []
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def fetched(
    linked: Linked,
    serving: list[asyncio.Task[None]],
    listings: dict[bytes, list[Entry]],
    target: Path,
) -> list[Refused]:
    """Download `/t` from a guest with these directories."""
    channel, connection = linked
    serving.append(asyncio.create_task(TreeGuest(connection, listings).serve()))
    async with asyncio.timeout(20):
        return await download(Files(channel, "box"), "/t", target)


async def test_a_tree_comes_out_with_its_modes_and_links(
    linked: Linked, serving: list[asyncio.Task[None]], tmp_path: Path
) -> None:
    listings = {
        b"/t": [
            entry(b"d", 2, mode=0o750),
            entry(b"f", mode=0o640),
            entry(b"l", 3, target=b"d/g"),
            entry(b"\xff"),
        ],
        b"/t/d": [entry(b"g", mode=0o4755), entry(b"up", 3, target=b"../f")],
    }
    refused = await fetched(linked, serving, listings, tmp_path / "out")
    assert refused == []
    out = tmp_path / "out"
    assert (out / "f").read_bytes() == b"content of /t/f"
    assert (out / "f").stat().st_mode & 0o7777 == 0o640
    assert (out / "d/g").stat().st_mode & 0o7777 == 0o755  # A guest gives out no setuid.
    assert (out / "d").stat().st_mode & 0o7777 == 0o750
    assert os.readlink(out / "l") == "d/g"
    assert (out / "d/up").read_bytes() == b"content of /t/f"
    assert os.listdir(os.fsencode(out)).count(b"\xff") == 1
    assert not any(name.startswith(".nova-") for name in os.listdir(out))


async def test_names_and_links_that_lead_out_are_refused(
    linked: Linked, serving: list[asyncio.Task[None]], tmp_path: Path
) -> None:
    listings = {
        b"/t": [
            entry(b".."),
            entry(b"."),
            entry(b""),
            entry(b"../evil"),
            entry(b"/etc/evil"),
            entry(b"nul\0"),
            entry(b"l1", 3, target=b"/etc/passwd"),
            entry(b"l2", 3, target=b"../evil"),
            entry(b"l3", 3, target=b"a/../../evil"),
            entry(b"pipe", 4),
            entry(b"secret"),
            entry(b"good"),
        ]
    }
    refused = await fetched(linked, serving, listings, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["good"]
    assert sorted(os.listdir(tmp_path)) == ["agent.sock", "out"]
    assert len(refused) == 11
    whys = {each.path: each.why for each in refused}
    assert whys["secret"] == "Permission denied"
    assert "outside" in whys["l1"]


async def test_a_link_that_becomes_a_directory_is_not_followed(
    linked: Linked, serving: list[asyncio.Task[None]], tmp_path: Path
) -> None:
    """The guest lists a name twice, first as a link out of the way, then as a directory."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").symlink_to(outside)
    listings = {
        b"/t": [
            entry(b"d", 3, target=b"e"),
            entry(b"d", 2),
            entry(b"mine", 2),
            entry(b"e", 2),
        ],
        b"/t/d": [entry(b"f")],
        b"/t/mine": [entry(b"f")],
        b"/t/e": [],
    }
    refused = await fetched(linked, serving, listings, tmp_path / "out")
    assert {each.path for each in refused} == {"d", "mine"}
    assert os.listdir(outside) == []
    assert os.listdir(tmp_path / "out" / "e") == []


async def test_a_local_link_in_the_way_of_a_file_is_replaced_not_followed(
    linked: Linked, serving: list[asyncio.Task[None]], tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "f").symlink_to(victim)
    assert await fetched(linked, serving, {b"/t": [entry(b"f")]}, tmp_path / "out") == []
    assert victim.read_text() == "precious"
    assert not (tmp_path / "out" / "f").is_symlink()


async def test_a_path_that_grows_too_long_is_refused_and_the_rest_comes(
    linked: Linked, serving: list[asyncio.Task[None]], tmp_path: Path
) -> None:
    name, path = b"n" * 250, b"/t"
    listings: dict[bytes, list[Entry]] = {}
    for _ in range(17):
        listings[path] = [entry(name, 2, mode=0o755), entry(b"f")]
        path += b"/" + name
    refused = await fetched(linked, serving, listings, tmp_path / "out")
    assert len(refused) == 1
    assert sum(len(files) for _, _, files in os.walk(tmp_path / "out")) >= 10


async def test_a_file_that_cannot_be_written_in_the_guest_is_that_error(
    linked: Linked, tmp_path: Path
) -> None:
    """And not a group of errors, though several files are on their way."""
    channel, connection = linked
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(20):
        (tree / f"f{number}").write_bytes(b"x")

    async def refuse() -> None:
        while True:
            heard = await connection.read()
            if heard.type == Frame.REQUEST:
                status = errno.EROFS if heard.op == Op.WRITE else 0
                connection.send(reply(heard.stream, status))

    refusing = asyncio.create_task(refuse())
    try:
        with pytest.raises(FileError) as caught:
            await upload(Files(channel, "box"), tree, "/t")
        assert caught.value.errno == errno.EROFS
    finally:
        refusing.cancel()
        await asyncio.gather(refusing, return_exceptions=True)


async def test_local_files_that_are_none_are_refused(linked: Linked, tmp_path: Path) -> None:
    channel, connection = linked
    tree = tmp_path / "tree"
    tree.mkdir()
    os.mkfifo(tree / "pipe")
    (tree / "link").symlink_to("anywhere")

    async def answer() -> list[int]:
        asked = []
        while True:
            heard = await connection.read()
            if heard.type == Frame.REQUEST:
                asked.append(heard.op)
                connection.send(reply(heard.stream))
                if heard.op == Op.SYMLINK:
                    return asked

    answering = asyncio.create_task(answer())
    refused = await upload(Files(channel, "box"), tree, "/t")
    assert [each.path for each in refused] == ["pipe"]
    assert await answering == [Op.MKDIR, Op.SYMLINK]


async def test_a_download_takes_no_more_than_it_was_allowed(
    linked: Linked, serving: list[asyncio.Task[None]], tmp_path: Path
) -> None:
    channel, connection = linked
    guest = TreeGuest(connection, {b"/t": [entry(b"f")]})
    serving.append(asyncio.create_task(guest.serve()))
    with pytest.raises(OperationFailed, match="more than 10 bytes"):
        await download(Files(channel, "box"), "/t", tmp_path / "out", max_bytes=10)
    assert list((tmp_path / "out").iterdir()) == []
    size = len(b"content of /t/f")
    await download(Files(channel, "box"), "/t", tmp_path / "out", max_bytes=size)
    assert (tmp_path / "out" / "f").stat().st_size == size


async def test_a_cancelled_download_leaves_no_file_and_no_descriptor(
    linked: Linked, tmp_path: Path
) -> None:
    channel, connection = linked
    before = set(os.listdir("/proc/self/fd"))
    loading = asyncio.create_task(download(Files(channel, "box"), "/t", tmp_path / "out"))
    heard = await connection.request(Op.STAT)
    connection.send(reply(heard.stream, 0, (Tag.KIND, 1), (Tag.MODE, 0o644)))
    heard = await connection.request(Op.READ)
    connection.send(state(heard.stream), data(heard.stream, 0, b"half"))
    await asyncio.sleep(0.05)
    loading.cancel()
    await asyncio.wait((loading,))
    assert loading.cancelled()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".nova")] == []
    assert set(os.listdir("/proc/self/fd")) == before
