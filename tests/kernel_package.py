"""A package like Debian's kernel: a little ELF file and modules with nothing in them."""

from __future__ import annotations

import gzip
import lzma

from debian_archive import deb
from elf_files import elf_file

VMLINUX = elf_file(sections={".text": b"kernel"})


def module(depends: str = "") -> bytes:
    return elf_file(sections={".modinfo": f"depends={depends}\0".encode()})


MODULES = {
    "virtio/virtio.ko": module(),
    "virtio/virtio_ring.ko": module("virtio"),
    "virtio/virtio_pci.ko": module("virtio_ring,virtio"),
    "virtio/virtio_mmio.ko": module("virtio"),
    "char/virtio_console.ko": module("virtio_ring"),
    "block/virtio_blk.ko": module("virtio_ring"),
    "fs/overlay.ko.xz": lzma.compress(module()),
    "char/virtio-rng.ko": module("rng-core"),
    "net/huge.ko": module(),
}
BUILTIN = b"kernel/fs/ext4/ext4.ko\nkernel/drivers/rng-core.ko\n"


def package(modules: dict[str, bytes] = MODULES, image: bytes = VMLINUX) -> bytes:
    root = "lib/modules/6.1-test"
    return deb(
        {
            "boot/vmlinuz-6.1-test": gzip.compress(image) if image is not VMLINUX else image,
            f"{root}/modules.builtin": BUILTIN,
            **{f"{root}/kernel/{name}": content for name, content in modules.items()},
        }
    )
