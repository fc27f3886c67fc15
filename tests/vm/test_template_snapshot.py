"""A template's snapshot: made once, warm, right for its sizes, and never a danger to anybody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from novasandbox import Sandbox
from novasandbox.core import registry, template_snapshot
from novasandbox.core.ground import Ground, objects
from novasandbox.core.hypervisor import MEMORY
from novasandbox.core.template_manager import PACKAGED
from novasandbox.errors import TemplateBuildFailed
from novasandbox.images.store import Store
from novasandbox.providers import qemu_state

pytestmark = pytest.mark.vm


@pytest.fixture
async def own_template(nova_home: Path) -> AsyncIterator[Any]:
    """Writes templates that are like the default one but for some fields."""
    folder = nova_home / "templates"
    folder.mkdir(exist_ok=True)
    before = set(Store().keys())
    written = []

    def write(name: str, **fields: Any) -> str:
        content = json.loads((PACKAGED / "debian-python.json").read_text())
        path = folder / f"{name}.json"
        path.write_text(json.dumps(content | {"name": name} | fields))
        written.append(path)
        return name

    yield write
    for path in written:
        path.unlink()
    for key in set(Store().keys()) - before:
        if key.startswith(("snapshot-", "template-")):
            Store().remove(key)


def _memory(sandbox: Sandbox) -> str | None:
    ground = Ground.load(registry.get(sandbox.id).ground)
    assert ground is not None
    return ground.memory


async def test_a_template_is_warmed_once_and_every_copy_is_warm(own_template: Any) -> None:
    name = own_template(
        "warmed",
        warmup={"commands": ["date +%s%N >/home/user/warmed"], "files": ["/usr/bin/jq"]},
        hooks={
            "before_snapshot": ["id -u >/before"],
            "after_restore": ["cat /proc/sys/kernel/random/uuid >/after"],
        },
    )
    seen = []
    for _ in range(2):
        async with Sandbox.create(name) as sandbox:
            result = await sandbox.exec("cat /home/user/warmed /before /after", check=True)
            seen.append(result.stdout.split())
    (when, root, after), (when_again, _, after_again) = seen
    assert (when, root) == (when_again, "0")
    assert after != after_again


async def test_a_warmup_that_fails_is_said_and_the_sandbox_boots(
    own_template: Any, caplog: pytest.LogCaptureFixture
) -> None:
    name = own_template("coldish", warmup={"commands": ["echo why; exit 3"]})
    async with Sandbox.create(name) as sandbox:
        assert _memory(sandbox) is None
        assert (await sandbox.exec("echo $((6*7))")).stdout == "42\n"
    assert "warmup.commands" in caplog.text


async def test_a_hook_that_fails_after_the_restore_fails_the_creation(own_template: Any) -> None:
    name = own_template("hooked", hooks={"after_restore": ["echo no; exit 4"]})
    with pytest.raises(TemplateBuildFailed, match="after_restore") as failed:
        await Sandbox.create(name)
    assert "no" in failed.value.log


async def test_other_sizes_have_a_snapshot_of_their_own(qemu: str) -> None:
    async with (
        Sandbox.create() as usual,
        Sandbox.create(memory_mib=320, vcpus=2, disk_mib=512) as other,
    ):
        assert _memory(usual) != _memory(other)
        told = await other.exec("nproc; free -m | awk '/Mem:/{print $2}'; df -m / | tail -1")
        cpus, memory, disk = told.stdout.split("\n")[:3]
        assert cpus == "2"
        assert 256 < int(memory) <= 320
        assert 400 < int(disk.split()[1]) <= 512


async def test_cells_run_as_the_sandboxs_user_in_its_folder_with_its_variables(qemu: str) -> None:
    look = "import os; print(os.getuid(), os.getcwd(), os.environ.get('KEY'))"
    async with Sandbox.create(cwd="/tmp", env={"KEY": "v"}) as sandbox:
        assert (await sandbox.run_code(look)).stdout == "1000 /tmp v\n"
    async with Sandbox.create(user="root", cwd="/tmp", env={"KEY": "v"}) as sandbox:
        assert (await sandbox.run_code(look)).stdout == "0 /tmp v\n"
        assert await sandbox.processes() == []


async def test_two_who_need_it_at_once_make_one(
    own_template: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    run = template_snapshot._Build.run

    async def counted(self: Any) -> None:
        made.append(self)
        await run(self)

    monkeypatch.setattr(template_snapshot._Build, "run", counted)
    name = own_template("twice", env={"T": "1"})
    both = await asyncio.gather(*(Sandbox.create(name) for _ in range(2)))
    for sandbox in both:
        async with sandbox:
            assert (await sandbox.exec("echo $T")).stdout == "1\n"
    assert len(made) == 1


async def test_damaged_memory_is_made_anew_and_never_restored(own_template: Any) -> None:
    name = own_template("damaged", env={"T": "2"})
    async with Sandbox.create(name) as sandbox:
        key = str(_memory(sandbox))
    path = objects() / key
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(1 << 24)
        file.write(b"\xff" * 4096)
    async with Sandbox.create(name) as sandbox:
        assert _memory(sandbox) == key
        assert (await sandbox.exec("echo $T")).stdout == "2\n"
    assert path.read_bytes()[1 << 24 : (1 << 24) + 4096] != b"\xff" * 4096


async def test_a_host_that_cannot_save_boots_instead(
    own_template: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(qemu_state, "write_memory", forbidden)
    monkeypatch.setattr(template_snapshot, "_FIRST_PAUSE", 0.0)
    name = own_template("unsaved", env={"T": "3"})
    async with Sandbox.create(name) as sandbox:
        assert _memory(sandbox) is None
        assert (await sandbox.exec("echo $T")).stdout == "3\n"
    assert "has no snapshot" in caplog.text
    monkeypatch.undo()
    async with Sandbox.create(name) as sandbox:
        assert _memory(sandbox) is not None


async def test_the_memory_of_all_is_writable_to_none(sandbox: Sandbox) -> None:
    key = str(_memory(sandbox))
    assert key.endswith(f"/{MEMORY}")
    pid = (registry.get(sandbox.id).machine or {})["pid"]
    inode = (objects() / key).stat().st_ino
    found = []
    for number in Path(f"/proc/{pid}/fd").iterdir():
        if number.stat().st_ino == inode:
            flags = Path(f"/proc/{pid}/fdinfo/{number.name}").read_text().split("flags:")[1]
            found.append(int(flags.split()[0], 8) & 3)
    assert found
    assert set(found) == {0}
