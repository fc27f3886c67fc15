"""Downloads over HTTP: resumed, bounded, checked, and each fault a clear error."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import TYPE_CHECKING

import pytest

from debian_archive import Served, serve
from novasandbox.errors import DownloadFailed
from novasandbox.images.download import Fetcher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Served]:
    with serve({"file": CONTENT, "small": b"hello", "nothing": b""}) as served:
        yield served


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    with Fetcher(proxies={}, timeout=2, attempts=3, pause=0.01) as made:
        yield made


async def fetch(fetcher: Fetcher, server: Served, target: Path, sha256: str = SHA256) -> Path:
    return await fetcher.file(f"{server.url}/file", target, sha256=sha256, size=len(CONTENT))


async def test_a_file_arrives_whole_and_its_progress_adds_up(
    fetcher: Fetcher, server: Served, tmp_path: Path
) -> None:
    told: list[int] = []
    path = await fetcher.file(
        f"{server.url}/file",
        tmp_path / "a",
        sha256=SHA256,
        size=len(CONTENT),
        progress=told.append,
    )
    assert path.read_bytes() == CONTENT
    assert sum(told) == len(CONTENT)
    assert [found.name for found in tmp_path.iterdir()] == ["a"]


async def test_a_file_that_is_there_is_not_fetched_again(
    fetcher: Fetcher, server: Served, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    await fetch(fetcher, server, tmp_path / "a")
    assert server.asked == []
    assert [found.name for found in tmp_path.iterdir()] == ["a"]


async def test_a_damaged_file_that_is_there_is_replaced(
    fetcher: Fetcher, server: Served, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(CONTENT[:-1] + b"?")
    assert (await fetch(fetcher, server, tmp_path / "a")).read_bytes() == CONTENT


async def test_many_files_come_over_one_connection(
    fetcher: Fetcher, server: Served, tmp_path: Path
) -> None:
    for number in range(5):
        await fetch(fetcher, server, tmp_path / str(number))
    assert len(server.connections) == 1


@pytest.mark.parametrize("ranges", [True, False])
async def test_an_interrupted_download_goes_on_where_it_was(
    fetcher: Fetcher, server: Served, tmp_path: Path, ranges: bool
) -> None:
    server.manners.cut["file"] = 1000
    server.manners.ranges = ranges
    assert (await fetch(fetcher, server, tmp_path / "a")).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == ["", "bytes=1000-"]


async def test_a_part_left_by_a_killed_process_is_used(
    fetcher: Fetcher, server: Served, tmp_path: Path
) -> None:
    (tmp_path / "a.part").write_bytes(CONTENT[:4000])
    await fetch(fetcher, server, tmp_path / "a")
    assert [wanted for _, wanted in server.asked] == ["bytes=4000-"]


@pytest.mark.parametrize("left", [b"wrong" * 10, CONTENT + b"more"])
async def test_a_part_with_other_contents_does_no_harm(
    fetcher: Fetcher, server: Served, tmp_path: Path, left: bytes
) -> None:
    (tmp_path / "a.part").write_bytes(left)
    assert (await fetch(fetcher, server, tmp_path / "a")).read_bytes() == CONTENT


async def test_a_download_that_is_always_cut_fails_and_says_how_far_it_came(
    fetcher: Fetcher, server: Served, tmp_path: Path
) -> None:
    server.manners.cut["file"] = 10
    server.manners.cuts = 99
    with pytest.raises(DownloadFailed, match=r"it ended .* \(3 attempts\)"):
        await fetch(fetcher, server, tmp_path / "a")
    assert not (tmp_path / "a").exists()


async def test_wrong_content_is_refused_without_asking_again(
    fetcher: Fetcher, server: Served, tmp_path: Path
) -> None:
    with pytest.raises(DownloadFailed, match="another SHA-256"):
        await fetch(fetcher, server, tmp_path / "a", sha256="0" * 64)
    assert len(server.asked) == 1
    assert not (tmp_path / "a").exists()


async def test_more_than_the_promised_size_is_refused(
    fetcher: Fetcher, server: Served, tmp_path: Path
) -> None:
    server.manners.longer["file"] = 1
    with pytest.raises(DownloadFailed, match="longer than"):
        await fetch(fetcher, server, tmp_path / "a")


async def test_a_server_in_trouble_is_asked_again(fetcher: Fetcher, server: Served) -> None:
    server.manners.status["small"] = [503, 429]
    assert await fetcher.small(f"{server.url}/small", 100) == b"hello"


@pytest.mark.parametrize("status", [403, 404, 500])
async def test_an_answer_that_is_final_is_an_error_with_its_reason(
    fetcher: Fetcher, server: Served, status: int
) -> None:
    server.manners.status["small"] = [status] * 9
    with pytest.raises(
        DownloadFailed, match=f"/small: the server (says {status}|has no such)"
    ) as e:
        await fetcher.small(f"{server.url}/small", 100)
    assert isinstance(e.value.__cause__, FileNotFoundError) == (status == 404)


async def test_a_small_file_is_bounded(fetcher: Fetcher, server: Served) -> None:
    assert await fetcher.small(f"{server.url}/nothing", 0) == b""
    with pytest.raises(DownloadFailed, match="more than 4 bytes"):
        await fetcher.small(f"{server.url}/small", 4)


async def test_a_redirection_is_followed_but_not_away_from_http(
    fetcher: Fetcher, server: Served
) -> None:
    server.manners.redirect["old"] = "/small"
    assert await fetcher.small(f"{server.url}/old", 100) == b"hello"
    server.manners.redirect["old"] = "file:///etc/passwd"
    with pytest.raises(DownloadFailed, match="only http and https"):
        await fetcher.small(f"{server.url}/old", 100)
    server.manners.redirect["old"] = "/old"
    with pytest.raises(DownloadFailed, match="too many redirections"):
        await fetcher.small(f"{server.url}/old", 100)


async def test_a_silent_server_is_given_up(server: Served) -> None:
    server.manners.stall["small"] = 30
    with (
        Fetcher(proxies={}, timeout=0.1, attempts=2, pause=0.01) as fetcher,
        pytest.raises(DownloadFailed, match="timed out"),
    ):
        await fetcher.small(f"{server.url}/small", 100)


async def test_a_server_that_trickles_is_given_up(server: Served, tmp_path: Path) -> None:
    server.manners.stall["file"] = 0.01
    with (
        Fetcher(proxies={}, attempts=1, minimum_rate=10_000, grace=0.1) as fetcher,
        pytest.raises(DownloadFailed, match=r"only .* bytes came in"),
    ):
        await fetch(fetcher, server, tmp_path / "a")


async def test_nobody_there_is_an_error_that_says_what_to_check(fetcher: Fetcher) -> None:
    with pytest.raises(DownloadFailed, match="NOVA_MIRROR"):
        await fetcher.small("http://127.0.0.1:9/x", 100)


async def test_a_mirrors_password_is_in_no_message(fetcher: Fetcher) -> None:
    with pytest.raises(DownloadFailed) as error:
        await fetcher.small("http://me:secret@127.0.0.1:9/x", 100)
    assert "secret" not in str(error.value)


async def test_two_that_want_the_same_file_fetch_it_once(
    fetcher: Fetcher, server: Served, tmp_path: Path
) -> None:
    await asyncio.gather(*(fetch(fetcher, server, tmp_path / "a") for _ in range(4)))
    assert len(server.asked) == 1


async def test_a_cancelled_download_ends_at_once_and_its_part_is_of_use(
    server: Served, tmp_path: Path
) -> None:
    server.manners.stall["file"] = 0.002
    with Fetcher(proxies={}) as fetcher:
        task = asyncio.create_task(fetch(fetcher, server, tmp_path / "a"))
        while not server.asked:
            await asyncio.sleep(0.01)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 1
        server.manners.stall.clear()
        assert (await fetch(fetcher, server, tmp_path / "a")).read_bytes() == CONTENT


async def test_a_proxy_is_asked_for_the_whole_address(tmp_path: Path) -> None:
    with (
        serve({"http://nowhere.invalid/x": b"from the proxy"}) as proxy,
        Fetcher(proxies={"http": proxy.url}, attempts=1) as fetcher,
    ):
        assert await fetcher.small("http://nowhere.invalid/x", 100) == b"from the proxy"
