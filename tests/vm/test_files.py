"""Files: any size, any name, any mistake, and never half of one."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import AsyncIterator

import pytest

from novasandbox import Sandbox
from novasandbox.errors import FileError, PathError

pytestmark = pytest.mark.vm

EVERY_BYTE = bytes(range(256))
NAMES = [
    "with space",
    "it's",
    'a "quote"',
    "100%",
    "#hash",
    "-rf",
    "--",
    "\N{GRINNING FACE} café",
    "x" * 255,
    "☕" * 85,
    "new\nline\tand\x1bescape",
    "*",
    "$HOME",
    "\\",
    "..hidden",
]


@pytest.fixture
async def full_place(sandbox: Sandbox) -> AsyncIterator[str]:
    """A folder of the user's with room for 64 KiB."""
    place = "/tmp/small"
    await sandbox.files.mkdir(place)
    # The image has no mount(8).
    mount = "import ctypes; assert ctypes.CDLL(None).{} == 0"
    on = f"mount(b's', b'{place}', b'tmpfs', 0, b'size=64k,mode=1777')"
    await sandbox.exec(["python3", "-c", mount.format(on)], user="root", check=True)
    yield place
    off = f"umount2(b'{place}', 0)"
    await sandbox.exec(["python3", "-c", mount.format(off)], user="root", check=True)


async def _digest(sandbox: Sandbox, path: str) -> str:
    result = await sandbox.exec(["sha256sum", "--", path], check=True)
    return result.stdout.split()[0]


@pytest.mark.parametrize("size", [0, 1, 18_000, 65_535, 65_536, 65_537, 5 << 20])
async def test_a_file_of_any_size_is_the_same_on_both_sides(sandbox: Sandbox, size: int) -> None:
    data = (EVERY_BYTE * (size // 256 + 1))[:size]
    await sandbox.files.write("sized", data)
    assert await _digest(sandbox, "sized") == hashlib.sha256(data).hexdigest()
    assert await sandbox.files.read("sized") == data
    assert (await sandbox.exec("echo more >> sized")).ok
    assert (await sandbox.files.stat("sized")).size == size + 5


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_two_hundred_mebibytes_go_in_and_out_in_pieces(sandbox: Sandbox) -> None:
    piece, total = EVERY_BYTE * 4096, hashlib.sha256()
    async with await sandbox.files.open("large", "wb") as writer:
        for number in range(200):
            stamped = number.to_bytes(4, "big") + piece[4:]
            total.update(stamped)
            await writer.write(stamped)
    assert await _digest(sandbox, "large") == total.hexdigest()
    back = hashlib.sha256()
    async with await sandbox.files.open("large") as reader:
        async for each in reader:
            back.update(each)
    assert back.hexdigest() == total.hexdigest()
    assert (await sandbox.exec("echo more >> large && rm large")).ok


async def test_a_part_of_a_file_can_be_read(sandbox: Sandbox) -> None:
    await sandbox.files.write("parts", EVERY_BYTE * 1000)
    assert await sandbox.files.read("parts", offset=255_990) == EVERY_BYTE[-10:]
    assert await sandbox.files.read("parts", offset=256, size=3) == b"\0\1\2"
    assert await sandbox.files.read("parts", offset=1 << 40) == b""
    async with await sandbox.files.open("parts") as file:
        assert await file.read(5) == EVERY_BYTE[:5]
        assert await file.read(300) == (EVERY_BYTE * 2)[5:305]


async def test_names_of_every_kind_work(sandbox: Sandbox) -> None:
    await sandbox.files.mkdir("names")
    for name in NAMES:
        await sandbox.files.write(f"names/{name}", name)
    assert [entry.name for entry in await sandbox.files.list("names")] == sorted(NAMES)
    counted = await sandbox.exec("ls -A1 --zero names | tr -cd '\\0' | wc -c")
    assert int(counted.stdout) == len(NAMES)
    for name in NAMES:
        assert await sandbox.files.read_text(f"names/{name}") == name
        assert (await sandbox.files.stat(f"names/{name}")).name == name
        await sandbox.files.remove(f"names/{name}")
    assert await sandbox.files.list("names") == []


async def test_a_leading_dash_needs_no_folder_before_it(sandbox: Sandbox) -> None:
    await sandbox.files.write("-n", "dash")
    assert await sandbox.files.read("-n") == b"dash"
    await sandbox.files.remove("-n")
    assert not await sandbox.files.exists("-n")


async def test_names_that_are_no_utf_8_work_as_bytes_and_as_listed(sandbox: Sandbox) -> None:
    await sandbox.files.mkdir("odd")
    await sandbox.files.write(b"odd/caf\xe9\xff", "latin")
    (entry,) = await sandbox.files.list("odd")
    assert os.fsencode(entry.name) == b"caf\xe9\xff"
    assert await sandbox.files.read(f"odd/{entry.name}") == b"latin"
    await sandbox.files.rename(f"odd/{entry.name}", b"odd/\xfe")
    assert (await sandbox.exec("ls odd | od -An -tx1")).stdout.split() == ["fe", "0a"]
    await sandbox.files.remove("odd", recursive=True)


@pytest.mark.parametrize(
    "path",
    ["", "a\0b", b"a\0b", "x" * 5_000, "y/" * 2_500, "x" * 256, b"x" * 256, "\ud800"],
    ids=["empty", "nul", "nul-bytes", "5000", "5000-deep", "256", "256-bytes", "surrogate"],
)
async def test_what_no_path_can_be_is_refused(sandbox: Sandbox, path: str | bytes) -> None:
    for call in (
        lambda: sandbox.files.read(path),
        lambda: sandbox.files.write(path, b""),
        lambda: sandbox.files.list(path),
        lambda: sandbox.files.rename("x", path),
        lambda: sandbox.files.remove(path),
    ):
        with pytest.raises(PathError):
            await call()


async def test_the_longest_path_works(sandbox: Sandbox) -> None:
    folder = "/tmp/" + "/".join(["d" * 250] * 16)
    path = f"{folder}/{'f' * (4_095 - len(folder) - 1)}"
    assert len(path) == 4_095
    await sandbox.files.write(path, "deep")
    assert await sandbox.files.read(path) == b"deep"
    await sandbox.files.remove("/tmp/" + "d" * 250, recursive=True)


async def test_dots_go_where_the_guest_says_and_no_further(sandbox: Sandbox) -> None:
    await sandbox.files.write("dots/a/../b", "here")
    assert await sandbox.files.read("dots/b") == b"here"
    assert await sandbox.files.read("/../../../etc/hostname") == await sandbox.files.read(
        "/etc/hostname"
    )
    with pytest.raises(FileError):
        await sandbox.files.write("/../../../../etc/passwd", "mine")


async def test_text_of_every_language_comes_back(sandbox: Sandbox) -> None:
    text = "naïve ☕ 日本語 \N{GRINNING FACE}\r\n\0end"
    await sandbox.files.write("text", text)
    assert await sandbox.files.read_text("text") == text


async def test_an_append_that_fails_changes_nothing(sandbox: Sandbox, full_place: str) -> None:
    path = f"{full_place}/log"
    await sandbox.files.write(path, "first\n")
    await sandbox.files.append(path, "second\n")
    with pytest.raises(FileError) as caught:
        await sandbox.files.append(path, EVERY_BYTE * 1024)
    assert caught.value.errno == errno.ENOSPC
    assert await sandbox.files.read(path) == b"first\nsecond\n"
    await sandbox.files.append(path, "third\n")
    assert await sandbox.files.read(path) == b"first\nsecond\nthird\n"


async def test_a_write_that_fails_leaves_the_old_file_alone(
    sandbox: Sandbox, full_place: str
) -> None:
    path = f"{full_place}/kept"
    await sandbox.files.write(path, "old")
    with pytest.raises(FileError) as caught:
        await sandbox.files.write(path, EVERY_BYTE * 4096)
    assert caught.value.errno == errno.ENOSPC
    assert await sandbox.files.read(path) == b"old"
    assert [entry.name for entry in await sandbox.files.list(full_place)] == ["kept"]


async def test_a_write_that_is_given_up_leaves_the_old_file_alone(sandbox: Sandbox) -> None:
    await sandbox.files.write("whole/file", "old")

    async def give_up() -> None:
        async with await sandbox.files.open("whole/file", "wb") as writer:
            await writer.write(EVERY_BYTE * 100)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await give_up()
    assert await sandbox.files.read("whole/file") == b"old"
    assert [entry.name for entry in await sandbox.files.list("whole")] == ["file"]


async def test_a_file_keeps_its_mode_and_owner_when_it_is_written(sandbox: Sandbox) -> None:
    await sandbox.files.write("script", "#!/bin/sh\necho 1\n", mode=0o755)
    await sandbox.files.write("script", "#!/bin/sh\necho 2\n")
    assert (await sandbox.exec(["./script"], cwd="/home/user")).stdout == "2\n"
    root = sandbox.files.as_user("root")
    await root.write("/home/user/script", "#!/bin/sh\necho 3\n")
    info = await sandbox.files.stat("script")
    assert (info.mode, info.uid) == (0o755, 1000)


async def test_writing_to_a_link_writes_where_it_leads(sandbox: Sandbox) -> None:
    await sandbox.files.write("real", "old")
    await sandbox.files.symlink("link", "real")
    await sandbox.files.write("link", "new")
    assert await sandbox.files.read("real") == b"new"
    assert await sandbox.files.readlink("link") == "real"
    assert (await sandbox.files.stat("link", follow=False)).kind == "link"
    assert (await sandbox.files.stat("link")).kind == "file"


async def test_what_is_there_is_told_and_changed(sandbox: Sandbox) -> None:
    files = sandbox.files
    await files.mkdir("told/sub")
    await files.mkdir("told/sub")
    await files.write("told/sub/file", "12345")
    await files.symlink("told/dead", "nowhere")
    await files.chmod("told/sub/file", 0o640)
    await files.utime("told/sub/file", 1_000_000_000.5)
    info = await files.stat("told/sub/file")
    assert (info.kind, info.size, info.mode, info.uid) == ("file", 5, 0o640, 1000)
    assert info.modified == 1_000_000_000.5
    dead, sub = await files.list("told")
    assert (dead.kind, dead.target, sub.kind) == ("link", "nowhere", "directory")
    assert not await files.exists("told/dead")
    assert await files.exists("told/dead", follow=False)
    await files.truncate("told/sub/file", 2)
    assert await files.read("told/sub/file") == b"12"
    await files.rename("told/sub", "told/moved")
    assert not await files.exists("told/sub/file")
    await files.remove("told", recursive=True)
    assert not await files.exists("told", follow=False)


async def test_a_recursive_removal_does_not_follow_links(sandbox: Sandbox) -> None:
    await sandbox.files.write("precious/file", "stays")
    await sandbox.files.mkdir("doomed")
    await sandbox.files.symlink("doomed/link", "../precious")
    await sandbox.files.remove("doomed", recursive=True)
    assert await sandbox.files.read("precious/file") == b"stays"


async def test_a_mistake_is_an_os_error_with_its_number(sandbox: Sandbox) -> None:
    files = sandbox.files
    await files.write("there", "x")
    await sandbox.exec("mkdir -p full/x; mkfifo -m 666 pipe", check=True)
    for wrong, number in (
        (files.read("missing"), errno.ENOENT),
        (files.read("there/below"), errno.ENOTDIR),
        (files.list("there"), errno.ENOTDIR),
        (files.read("full"), errno.EISDIR),
        (files.read("pipe"), errno.EINVAL),
        (files.read("/etc/shadow"), errno.EACCES),
        (files.write("/etc/new", ""), errno.EACCES),
        (files.remove("full"), errno.ENOTEMPTY),
        (files.mkdir("full", parents=False), errno.EEXIST),
        (files.write("no/parent", "", parents=False), errno.ENOENT),
        (files.symlink("there", "x"), errno.EEXIST),
        (files.readlink("there"), errno.EINVAL),
    ):
        with pytest.raises(FileError) as caught:
            await wrong
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == number, caught.value
        assert caught.value.sandbox_id == sandbox.id


async def test_files_without_a_size_are_read_through(sandbox: Sandbox) -> None:
    assert b"MemTotal" in await sandbox.files.read("/proc/meminfo")
    assert (await sandbox.files.read("/proc/self/status")).startswith(b"Name:")


async def test_a_reader_that_leaves_early_is_no_burden(sandbox: Sandbox) -> None:
    await sandbox.exec("head -c 8000000 /dev/zero > zeros", check=True)
    for _ in range(3):
        async with await sandbox.files.open("zeros") as file:
            assert await file.read(10) == bytes(10)
    assert (await sandbox.files.stat("zeros")).size == 8_000_000
