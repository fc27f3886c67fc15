"""Watching: every change is told, or it is said that some were not."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator

import pytest

from novasandbox import Change, FileEvent, Lost, Sandbox
from novasandbox.errors import FileError

pytestmark = pytest.mark.vm


@pytest.fixture
async def watched(sandbox: Sandbox) -> AsyncIterator[str]:
    """An empty folder."""
    await sandbox.exec("mkdir -p watched", check=True)
    yield "watched"
    await sandbox.files.remove("watched", recursive=True)


class Seen:
    """Collects a watch's events until one of a path arrives."""

    def __init__(self, watch: AsyncIterator[FileEvent | Lost]) -> None:
        self._watch = watch
        self.events: list[FileEvent | Lost] = []

    async def until(self, path: str, change: Change) -> list[FileEvent | Lost]:
        async with asyncio.timeout(60):
            async for event in self._watch:
                self.events.append(event)
                if isinstance(event, FileEvent) and (event.path, event.change) == (path, change):
                    return self.events
        raise AssertionError(f"no {change} of {path}")

    def of(self, change: Change) -> list[str]:
        return [e.path for e in self.events if isinstance(e, FileEvent) and e.change is change]


async def test_folders_that_appear_are_watched_at_once(sandbox: Sandbox, watched: str) -> None:
    async with sandbox.files.watching(watched) as watch:
        # Idle for a while first: that broke others.
        await sandbox.exec("sleep 5; mkdir -p watched/a/b/c; echo x > watched/a/b/c/f", check=True)
        seen = Seen(aiter(watch))
        await seen.until("a/b/c/f", Change.CREATED)
        created = seen.of(Change.CREATED)
        assert set(created) == {"a", "a/b", "a/b/c", "a/b/c/f"}
        folders = [e for e in seen.events if isinstance(e, FileEvent) and e.is_directory]
        assert {event.path for event in folders} >= {"a", "a/b", "a/b/c"}
        await sandbox.exec("echo y >> watched/a/b/c/f; rm watched/a/b/c/f", check=True)
        await seen.until("a/b/c/f", Change.REMOVED)
        assert "a/b/c/f" in seen.of(Change.MODIFIED)


async def test_a_tree_as_deep_as_paths_go_is_watched(sandbox: Sandbox, watched: str) -> None:
    dig = "import os\nos.chdir('watched')\nfor _ in range(1950): os.mkdir('d'); os.chdir('d')"
    await sandbox.exec(["python3", "-c", dig], check=True)
    async with sandbox.files.watching(watched) as watch:
        bottom = "/".join(["d"] * 1950)
        await sandbox.exec(f"touch watched/{bottom}/end", check=True)
        await Seen(aiter(watch)).until(f"{bottom}/end", Change.CREATED)


async def test_five_saves_by_rename_give_five_events(sandbox: Sandbox, watched: str) -> None:
    async with sandbox.files.watching(watched) as watch:
        save = "for i in 1 2 3 4 5; do echo $i > watched/.new; mv watched/.new watched/doc; done"
        await sandbox.exec(f"{save}; touch watched/end", check=True)
        seen = Seen(aiter(watch))
        await seen.until("end", Change.CREATED)
        assert seen.of(Change.MOVED_TO) == ["doc"] * 5
        assert seen.of(Change.MOVED_FROM) == [".new"] * 5


async def test_a_flood_is_told_whole_or_as_lost(sandbox: Sandbox, watched: str) -> None:
    flood = "for n in range(1500): open(f'watched/{n:0240}', 'w').close()"
    async with sandbox.files.watching(watched) as watch:
        await sandbox.exec(["python3", "-c", flood], check=True)
        await sandbox.exec("touch watched/end", check=True)
        created, lost = 0, False
        async with asyncio.timeout(60):
            async for event in watch:
                lost = lost or isinstance(event, Lost)
                created += isinstance(event, FileEvent) and event.change is Change.CREATED
                if lost or created >= 1500:
                    break
        assert lost or created >= 1500
        # What happens afterwards is told again.
        await sandbox.exec("mkdir watched/later; echo x > watched/later/file", check=True)
        await Seen(aiter(watch)).until("later/file", Change.WRITTEN)


async def test_every_kind_of_change_has_its_name(sandbox: Sandbox, watched: str) -> None:
    async with sandbox.files.watching(watched) as watch:
        change = "echo x > f; chmod 600 f; mv f g; rm g; mkdir d; rmdir d; touch end"
        await sandbox.exec(change, cwd="/home/user/watched", check=True)
        seen = Seen(aiter(watch))
        await seen.until("end", Change.CREATED)
        assert seen.of(Change.CREATED) == ["f", "d", "end"]
        assert "f" in seen.of(Change.MODIFIED)
        assert "f" in seen.of(Change.WRITTEN)
        assert "f" in seen.of(Change.ATTRIBUTES)
        assert seen.of(Change.MOVED_FROM) == ["f"]
        assert seen.of(Change.MOVED_TO) == ["g"]
        assert seen.of(Change.REMOVED) == ["g", "d"]


async def test_only_a_recursive_watch_looks_below(sandbox: Sandbox, watched: str) -> None:
    await sandbox.files.mkdir("watched/sub")
    async with sandbox.files.watching(watched, recursive=False) as watch:
        await sandbox.exec("echo x > watched/sub/unseen; echo x > watched/seen", check=True)
        seen = Seen(aiter(watch))
        await seen.until("seen", Change.WRITTEN)
        assert "sub/unseen" not in seen.of(Change.CREATED)


async def test_a_folder_moved_in_is_watched_under_its_new_name(
    sandbox: Sandbox, watched: str
) -> None:
    await sandbox.exec("mkdir -p moved/deep watched/old", check=True)
    async with sandbox.files.watching(watched) as watch:
        await sandbox.exec("mv moved watched/in; mv watched/old watched/new", check=True)
        await sandbox.exec("echo x > watched/in/deep/f; echo x > watched/new/g", check=True)
        seen = Seen(aiter(watch))
        await seen.until("new/g", Change.WRITTEN)
        assert "in/deep/f" in seen.of(Change.CREATED)
        assert "old/g" not in seen.of(Change.CREATED)


async def test_a_missing_path_is_an_error_and_a_removed_one_the_end(sandbox: Sandbox) -> None:
    with pytest.raises(FileError) as caught:
        async with sandbox.files.watching("not/there"):
            pass
    assert caught.value.errno == errno.ENOENT
    await sandbox.files.mkdir("brief")
    async with sandbox.files.watching("brief") as watch:
        await sandbox.files.remove("brief")
        async with asyncio.timeout(30):
            events = [event async for event in watch]
    assert any(isinstance(e, FileEvent) and e.change is Change.REMOVED for e in events)
