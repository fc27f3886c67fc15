"""Templates found, built from a small archive of our own, kept and collected."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from debian_archive import FakeArchive, Served, deb, serve
from kernel_package import package
from novasandbox.core import template_manager
from novasandbox.core.template_manager import TemplateManager
from novasandbox.errors import (
    DownloadFailed,
    InvalidConfig,
    InvalidRequest,
    TemplateNotFound,
)
from novasandbox.images.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MINE = {"name": "mine", "source": {"type": "debian", "packages": ["tool"]}}


@pytest.fixture(scope="module")
def signed() -> FakeArchive:
    made = FakeArchive()
    made.add("linux-image-cloud-amd64", extra="Depends: linux-image-6-cloud-amd64\n")
    made.add("linux-image-6-cloud-amd64", package())
    made.add("tool", deb({"usr/bin/tool": b"#!/bin/sh"}), extra="Depends: lib\n")
    made.add("lib", deb({"usr/lib/lib": b"1"}))
    made.add("base", deb({"bin/dash": b"x"}), extra="Essential: yes\n")
    made.publish()
    return made


class Lab:
    """A manager with a store, an archive and templates of its own."""

    def __init__(self, made: FakeArchive, server: Served, folder: Path) -> None:
        self.made = made
        self.server = server
        self.folder = folder
        self.store = Store(folder / "images")
        self.agent = folder / "agent"
        self.agent.write_bytes(b"agent")
        (folder / "templates").mkdir()
        self.write("mine", MINE)

    def write(self, name: str, content: Any) -> Path:
        path = self.folder / "templates" / f"{name}.json"
        path.write_text(json.dumps(content))
        return path

    def manager(self, **settings: Any) -> TemplateManager:
        return TemplateManager(
            **{
                "paths": [self.folder / "templates"],
                "store": self.store,
                "mirrors": [self.server.url],
                "keys": self.made.keys_in(self.folder / "keys"),
                "agent": self.agent,
                "arch": "x86_64",
                **settings,
            }
        )

    def left(self) -> list[str]:
        return [path.name for path in (self.store.root / "tmp").iterdir()]


@pytest.fixture
def lab(signed: FakeArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(template_manager, "home", lambda: tmp_path / "home")
    monkeypatch.delenv("NOVA_KERNEL", raising=False)
    made = FakeArchive(dict(signed.files), dict(signed.stanzas), signed.key)
    with serve(made.files) as server:
        yield Lab(made, server, tmp_path)


# --- finding ---


async def test_templates_are_found_where_the_first_hides_the_later(lab: Lab) -> None:
    lab.write("debian-python", {**MINE, "name": "debian-python", "description": "mine"})
    names = [row.template.name for row in await lab.manager().list()]
    assert names == ["alpine-python", "debian-python", "debian-science", "mine"]
    assert (await lab.manager().get("debian-python")).description == "mine"
    assert (await lab.manager(paths=[]).get("debian-python")).description != "mine"


async def test_a_users_template_lies_in_the_home(lab: Lab) -> None:
    (lab.folder / "home" / "templates").mkdir(parents=True)
    path = lab.folder / "home" / "templates" / "own.json"
    path.write_text(json.dumps({**MINE, "name": "own"}))
    assert (await lab.manager(paths=[]).get("own")).name == "own"
    assert (await lab.manager(paths=[]).get(str(path))).name == "own"


async def test_an_unknown_template_is_told_with_the_nearest_names(lab: Lab) -> None:
    with pytest.raises(TemplateNotFound, match="Did you mean debian-python"):
        await lab.manager().get("debian-pyhton")
    with pytest.raises(
        TemplateNotFound, match="alpine-python, debian-python, debian-science, mine"
    ):
        await lab.manager().get("zzzz")


async def test_a_broken_file_is_passed_over_in_the_list_and_told_when_asked_for(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    lab.write("broken", {"name": "broken"})
    rows = await lab.manager().list()
    assert "broken" not in [row.template.name for row in rows]
    assert "broken" in caplog.text
    with pytest.raises(InvalidConfig, match="source"):
        await lab.manager().get("broken")


async def test_a_file_or_a_mapping_is_validated(lab: Lab) -> None:
    manager = lab.manager()
    assert await manager.validate(MINE) == await manager.validate(lab.write("x", MINE))
    with pytest.raises(InvalidConfig):
        await manager.validate({})


# --- building ---


async def test_a_template_is_built_once_and_then_taken_without_the_network(lab: Lab) -> None:
    steps: list[tuple[str, int, int | None]] = []
    manager = lab.manager()
    first = await manager.build("mine", progress=lambda *news: steps.append(news))
    for path in (first.kernel, first.initramfs, first.rootfs):
        assert path.is_file()
        assert not path.stat().st_mode & 0o222
    begun = {step for step, *_ in steps}
    assert {"fetching packages", "fetching the kernel", "making the image"} <= begun
    ended = {step for step, done, total in steps if done == total}
    assert begun == ended
    asked = len(lab.server.asked)
    assert await manager.artifacts("mine") == first
    assert len(lab.server.asked) == asked
    assert lab.left() == []


async def test_the_list_says_what_is_built(lab: Lab) -> None:
    await lab.manager().build("mine")
    asked = len(lab.server.asked)
    rows = {row.template.name: row for row in await lab.manager().list()}
    assert rows["mine"].built
    assert rows["mine"].size > 0
    assert not rows["debian-python"].built
    assert len(lab.server.asked) == asked


async def test_only_what_changed_is_built_again(lab: Lab) -> None:
    first = await lab.manager().build("mine")
    lab.agent.write_bytes(b"another agent")
    second = await lab.manager().build("mine")
    assert second.initramfs != first.initramfs
    assert (second.kernel, second.rootfs) == (first.kernel, first.rootfs)
    lab.write("mine", {**MINE, "env": {"A": "1"}})
    third = await lab.manager().build("mine")
    assert third.rootfs == first.rootfs
    assert third.key != second.key


async def test_a_forced_build_takes_newer_packages_and_the_older_stay_while_held(lab: Lab) -> None:
    manager = lab.manager()
    first = await manager.build("mine")
    assert (await manager.build("mine", force=True)).rootfs == first.rootfs
    lab.made.stanzas = {suite: list(stanzas) for suite, stanzas in lab.made.stanzas.items()}
    lab.made.add("lib", deb({"usr/lib/lib": b"2"}), suite="bookworm-security", version="2")
    lab.made.publish()
    with manager.hold(first):
        second = await manager.build("mine", force=True)
        assert second.rootfs != first.rootfs
        await manager.prune()
        assert first.rootfs.exists()
    await manager.prune()
    assert not first.rootfs.exists()
    assert second.rootfs.exists()


async def test_two_builders_at_once_give_one_result(lab: Lab) -> None:
    one, other = await asyncio.gather(lab.manager().build("mine"), lab.manager().build("mine"))
    assert one == other
    fetched = [path for path, _ in lab.server.asked if path.startswith("pool/main/tool")]
    assert len(fetched) == 1


async def test_a_damaged_image_is_built_again(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    first = await lab.manager().build("mine")
    before = first.rootfs.read_bytes()
    first.rootfs.chmod(0o644)
    first.rootfs.write_bytes(before[:-1] + b"?")
    second = await lab.manager().artifacts("mine")
    assert second == first
    assert second.rootfs.read_bytes() == before
    assert "damaged" in caplog.text


async def test_a_cancelled_build_leaves_nothing_and_the_next_is_right(lab: Lab) -> None:
    lab.server.manners.stall["pool/main/tool_1_amd64.deb"] = 0.2
    task = asyncio.create_task(lab.manager().build("mine"))
    while not any(path.startswith("pool/main/tool") for path, _ in lab.server.asked):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lab.left() == []
    lab.server.manners.stall.clear()
    assert (await lab.manager().build("mine")).rootfs.is_file()


async def test_a_package_that_does_not_exist_is_the_templates_fault(lab: Lab) -> None:
    lab.write("wrong", {**MINE, "source": {"type": "debian", "packages": ["gone"]}})
    with pytest.raises(InvalidConfig, match=r"no package gone.*source\.packages"):
        await lab.manager().build("wrong")
    assert lab.left() == []


async def test_an_archive_that_is_not_debians_is_refused(lab: Lab) -> None:
    with pytest.raises(DownloadFailed, match="not signed by Debian"):
        await lab.manager(keys=None).build("mine")
    assert lab.left() == []


async def test_an_oci_source_is_told_not_to_be_in_this_version(lab: Lab) -> None:
    with pytest.raises(InvalidConfig, match=r"OCI image .* this version builds only"):
        await lab.manager().build("alpine-python")
    lab.write("steps", {**MINE, "steps": ["true"]})
    with pytest.raises(InvalidConfig, match="it has steps"):
        await lab.manager().build("steps")


async def test_ones_own_kernel_is_taken_from_the_environment(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = lab.folder / "vmlinux"
    monkeypatch.setenv("NOVA_KERNEL", str(own))
    with pytest.raises(InvalidConfig, match="is not a kernel"):
        await lab.manager().build("mine")


# --- collecting ---


async def test_a_template_in_use_is_not_removed(lab: Lab) -> None:
    manager = lab.manager()
    artifacts = await manager.build("mine")
    with manager.hold(artifacts), pytest.raises(InvalidRequest, match="mine is in use"):
        await manager.remove("mine")
    removed = await manager.remove("mine")
    assert {key.partition("-")[0] for key in removed} == {
        "kernel",
        "initramfs",
        "rootfs",
        "template",
    }
    assert await manager.remove("mine") == {}
    assert not artifacts.rootfs.exists()


async def test_what_another_template_uses_stays(lab: Lab) -> None:
    manager = lab.manager()
    lab.write("other", {**MINE, "name": "other"})
    await manager.build("mine")
    other = await manager.build("other")
    await manager.remove("mine")
    assert other.kernel.exists()
    assert other.rootfs.exists()
    assert [row.template.name for row in await manager.list() if row.built] == ["other"]


async def test_a_prune_keeps_what_templates_use_and_takes_downloads(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    manager = lab.manager()
    artifacts = await manager.build("mine")
    assert set(await manager.prune()) == {"downloads"}
    assert await manager.artifacts("mine") == artifacts
    (lab.folder / "templates" / "mine.json").unlink()
    assert len(await manager.prune()) == 4
