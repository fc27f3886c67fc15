"""Sandboxes on a kernel of one's own: Debian's, with another builder's address in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from command_line import nova
from novasandbox import Sandbox
from novasandbox.core import registry
from novasandbox.core.template_manager import DEFAULT, TemplateManager

pytestmark = pytest.mark.vm

# Who built a kernel is a part of /proc/version, and of nothing else; as long as what it replaces.
BUILDER = b"debian-kernel@lists.debian.org"
SOMEBODY = b"a-kernel-of-ones-own@nova.test"
TELL = "uname -r; cat /proc/version"


@dataclass(frozen=True)
class OwnKernel:
    """path: its file. release: what `uname -r` says."""

    path: Path
    release: str

    def is_told_by(self, output: str) -> bool:
        """Whether `TELL` printed that on this kernel."""
        release, version = output.splitlines()
        return release == self.release and f"({SOMEBODY.decode()})" in version


@pytest.fixture(scope="module")
async def own(
    qemu: str, nova_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[OwnKernel]:
    """The template's kernel as somebody else's, its modules beside it."""
    source = (await TemplateManager().artifacts(DEFAULT)).kernel.parent
    folder = tmp_path_factory.mktemp("own")
    image = (source / "vmlinux").read_bytes()
    assert BUILDER in image
    path = folder / "vmlinux"
    path.write_bytes(image.replace(BUILDER, SOMEBODY))
    shutil.copytree(source / "modules", folder / "modules")
    shutil.copy(source / "modules.builtin", folder / "modules")
    yield OwnKernel(path, json.loads((source / "kernel.json").read_text())["release"])
    # The store is the user's own, and shall not grow by it.
    manager = TemplateManager(kernel=path)
    made = await manager.artifacts(DEFAULT)
    for key in (made.key, made.initramfs.parent.name, made.kernel.parent.name):
        assert manager.store.remove(key)


async def test_a_sandbox_starts_with_the_kernel_it_is_given(own: OwnKernel) -> None:
    async with Sandbox.create(kernel=str(own.path)) as sandbox:
        assert own.is_told_by((await sandbox.exec(TELL)).stdout)
        assert registry.get(sandbox.id).config["kernel"] == str(own.path)


async def test_a_detached_one_starts_with_that_of_its_makers_environment(
    own: OwnKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The keeper is started without it, and is told.
    async with await Sandbox.create(detach=True, timeout=300) as before:
        assert not own.is_told_by((await before.exec(TELL)).stdout)
        await before.kill()
    monkeypatch.setenv("NOVA_KERNEL", str(own.path))
    async with await Sandbox.create(detach=True, timeout=300) as sandbox:
        assert own.is_told_by((await sandbox.exec(TELL)).stdout)
        await sandbox.kill()


@pytest.mark.parametrize("by", ["--kernel", "NOVA_KERNEL"])
def test_the_command_line_takes_it_as_an_option_and_from_the_environment(
    own: OwnKernel, by: str
) -> None:
    words = ["--kernel", str(own.path)] if by == "--kernel" else []
    env = {"NOVA_KERNEL": str(own.path)} if by == "NOVA_KERNEL" else {}
    done = nova("run", *words, "--shell", "-c", TELL, env=env)
    assert (done.code, done.err) == (0, "")
    assert own.is_told_by(done.out)
