"""The kernel in the form that a hypervisor starts directly.

x86_64: the ELF `vmlinux`, cut out of a bzImage where that is what there is. QEMU starts
it through its PVH note and Firecracker too, without the decompressor (0.5 s under TCG).
aarch64: the `Image`, which is a PE file as well; a gzipped one or an EFI zboot is unpacked.
"""

from __future__ import annotations

import struct

from novasandbox.images import compression, elf

_LIMIT = 512 << 20
_ZBOOT = struct.Struct("<4s4sII8x32s")
_ARM64_MAGIC = b"ARM\x64"


class NotAKernel(ValueError):
    """The file is not a kernel that can be started on this architecture."""


def kernel_image(data: bytes, arch: str) -> bytes:
    """The bytes to give to the hypervisor as its kernel.

    data: a vmlinux, bzImage, Image, Image.gz or EFI zboot.
    arch: `x86_64` or `aarch64`.

    Raises NotAKernel where it is none of those, or one for another machine.
    """
    try:
        if data.startswith(elf.MAGIC):
            return _checked_elf(data, arch)
        return _vmlinux(data) if arch == "x86_64" else _arm64(data)
    except (compression.BadCompression, elf.NotElf, struct.error) as error:
        raise NotAKernel(str(error)) from error


def has_pvh(data: bytes) -> bool:
    """Whether a vmlinux carries the PVH entry note, without which QEMU cannot start it."""
    # Elf64_Nhdr: namesz 4, descsz 4 or 8, type XEN_ELFNOTE_PHYS32_ENTRY (18), name "Xen".
    return any(struct.pack("<III", 4, size, 18) + b"Xen\0" in data[: len(data)] for size in (4, 8))


def _checked_elf(data: bytes, arch: str) -> bytes:
    if elf.machine(data) != elf.MACHINES[arch]:
        raise NotAKernel(f"it is an ELF file for another machine than {arch}")
    return data


def _vmlinux(data: bytes) -> bytes:
    """The payload of a bzImage, found through the header of the boot protocol."""
    if len(data) < 0x260 or data[0x202:0x206] != b"HdrS":
        raise NotAKernel("it is neither an ELF vmlinux nor a bzImage")
    (version,) = struct.unpack_from("<H", data, 0x206)
    if version < 0x208:
        raise NotAKernel("its boot protocol is older than 2.08 (Linux 2.6.26)")
    setup_sectors = data[0x1F1] or 4
    start, length = struct.unpack_from("<II", data, 0x248)
    start += (setup_sectors + 1) * 512
    payload = data[start : start + length]
    if not length or len(payload) != length:
        raise NotAKernel("the file ends before its payload does")
    image = compression.decompress(payload, _LIMIT)
    if not image.startswith(elf.MAGIC):
        raise NotAKernel("its payload is packed in a way that is not known here")
    return _checked_elf(image, "x86_64")


def _arm64(data: bytes) -> bytes:
    if data.startswith(compression.GZIP):
        data = compression.decompress(data, _LIMIT)
    if data[:2] == b"MZ" and data[4:8] == b"zimg":
        _, _, offset, size, _ = _ZBOOT.unpack_from(data)
        data = compression.decompress(data[offset : offset + size], _LIMIT)
    if data[0x38:0x3C] != _ARM64_MAGIC:
        raise NotAKernel("it is not an arm64 Image")
    return data
