"""Kernels and initramfs: what is taken from a package, in which order modules load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cpio_reader import read_cpio
from debian_archive import FakeArchive, deb
from elf_files import elf_file
from kernel_package import BUILTIN, VMLINUX, module, package
from novasandbox.errors import DownloadFailed, InvalidConfig, TemplateBuildFailed
from novasandbox.images import initramfs, kernel
from novasandbox.images.modules import MissingModule, Modules
from novasandbox.images.packages import Index
from novasandbox.images.store import Store
from novasandbox.images.work import Stop

if TYPE_CHECKING:
    from pathlib import Path


def unpacked(folder: Path, content: bytes) -> Modules:
    path = folder / "kernel.deb"
    path.write_bytes(content)
    (folder / "out").mkdir()
    kernel.unpack(path, folder / "out", "x86_64", Stop())
    return Modules.of(folder / "out")


def test_of_a_package_the_kernel_and_the_few_modules_are_kept(tmp_path: Path) -> None:
    modules = unpacked(tmp_path, package())
    assert (tmp_path / "out" / "vmlinux").read_bytes() == VMLINUX
    assert "huge" not in modules.files
    assert modules.builtin == {"ext4", "rng_core"}
    assert modules.read("overlay") == module()


@pytest.mark.parametrize(
    "content",
    [b"", deb({}), package(image=b"no kernel"), package({"x/virtio_blk.ko": b"no module"})],
)
def test_a_package_that_is_no_kernel_is_a_failed_build(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(TemplateBuildFailed, match="not a kernel package that can be used"):
        unpacked(tmp_path, content)


def test_modules_load_after_what_they_need_and_built_in_ones_not_at_all(tmp_path: Path) -> None:
    modules = unpacked(tmp_path, package())
    order = modules.load_order(["virtio_pci", "ext4"], optional=["virtio_rng", "vmgenid"])
    assert order == ["virtio", "virtio_ring", "virtio_pci", "virtio_rng"]


def test_modules_that_are_missing_are_all_named_with_who_needs_them(tmp_path: Path) -> None:
    (tmp_path / "virtio_blk.ko").write_bytes(module("virtio"))
    modules = Modules.of(tmp_path)
    assert modules.load_order([], optional=["virtio_blk"]) == []
    with pytest.raises(MissingModule, match=r"no virtio for virtio_blk, overlay, neither"):
        modules.load_order(["virtio_blk", "overlay"])


def test_modules_that_need_each_other_end(tmp_path: Path) -> None:
    for name, depends in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.ko").write_bytes(module(depends))
    assert Modules.of(tmp_path).load_order(["a"]) == ["b", "a"]


def test_the_metapackage_leads_to_the_kernel(tmp_path: Path) -> None:
    made = FakeArchive()
    made.add("linux-image-cloud-amd64", extra="Depends: linux-image-6.1-cloud-amd64 (= 1)\n")
    index = Index()
    index.add("\n".join(made.stanzas["bookworm"]).encode(), "http://mirror")
    with pytest.raises(DownloadFailed, match="linux-image-cloud-amd64"):
        kernel.find_package(index, "x86_64")
    made.add("linux-image-6.1-cloud-amd64")
    index.add(made.stanzas["bookworm"][1].encode(), "http://mirror")
    assert kernel.find_package(index, "x86_64").name == "linux-image-6.1-cloud-amd64"
    with pytest.raises(DownloadFailed, match="linux-image-cloud-arm64"):
        kernel.find_package(index, "aarch64")


# --- a kernel of one's own ---


async def test_ones_own_kernel_is_taken_with_the_modules_beside_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "own" / "modules" / "sub").mkdir(parents=True)
    path = tmp_path / "own" / "vmlinux"
    path.write_bytes(VMLINUX)
    (tmp_path / "own" / "modules" / "sub" / "virtio.ko").write_bytes(module())
    (tmp_path / "own" / "modules" / "modules.builtin").write_bytes(BUILTIN)
    files = await kernel.own_kernel(store, path, arch="x86_64")
    assert files.image.read_bytes() == VMLINUX
    assert list(files.modules.files) == ["virtio"]
    assert "ext4" in files.modules.builtin
    assert (await kernel.own_kernel(store, path, arch="x86_64")).key == files.key
    path.write_bytes(VMLINUX + b"\0")
    assert (await kernel.own_kernel(store, path, arch="x86_64")).key != files.key


@pytest.mark.parametrize("content", [b"text", elf_file(machine=183), None])
async def test_what_is_no_kernel_is_refused_by_its_path(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "vmlinux"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidConfig, match=rf"{path} is not a kernel.*NOVA_KERNEL"):
        await kernel.own_kernel(Store(tmp_path), path, arch="x86_64")
    assert not list((tmp_path / "v1" / "tmp").iterdir())


# --- initramfs ---


def test_the_initramfs_holds_the_agent_and_the_modules_in_order(tmp_path: Path) -> None:
    modules = unpacked(tmp_path, package())
    agent, image = tmp_path / "agent", tmp_path / "image"
    agent.write_bytes(b"agent")
    initramfs.write(image, modules, agent, ["pci"])
    entries = read_cpio(image.read_bytes())
    assert [name for name, _ in entries] == [
        *("dev", "dev/console", "proc", "sys", "modules"),
        *("modules/00-virtio.ko", "modules/01-virtio_ring.ko", "modules/02-virtio_pci.ko"),
        *("modules/03-virtio_console.ko", "modules/04-virtio_blk.ko", "modules/05-overlay.ko"),
        "init",
    ]
    assert dict(entries)["init"] == b"agent"
    assert dict(entries)["modules/05-overlay.ko"] == module()


async def test_the_initramfs_is_made_anew_for_another_agent_only(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    files = kernel.KernelFiles("kernel-x", tmp_path / "vmlinux", unpacked(tmp_path, package()))
    agent = tmp_path / "agent"
    agent.write_bytes(b"one")
    one = await initramfs.obtain(store, files, agent)
    assert await initramfs.obtain(store, files, agent) == one
    agent.write_bytes(b"two")
    assert (await initramfs.obtain(store, files, agent)).key != one.key


async def test_a_kernel_without_a_driver_is_refused_and_names_it(tmp_path: Path) -> None:
    files = kernel.KernelFiles("kernel-x", tmp_path / "vmlinux", unpacked(tmp_path, package()))
    agent = tmp_path / "agent"
    agent.write_bytes(b"agent")
    with pytest.raises(InvalidConfig, match="no vmw_vsock_virtio_transport"):
        await initramfs.obtain(Store(tmp_path / "s"), files, agent, transports=["vsock"])
    with pytest.raises(InvalidConfig, match="'usb' is no transport"):
        await initramfs.obtain(Store(tmp_path / "s"), files, agent, transports=["usb"])
