"""Kernels in all their wrappings, ELF files, and damage in each."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import struct

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from elf_files import elf_file
from novasandbox.images import compression, elf, vmlinux


def lz4_legacy(data: bytes) -> bytes:
    pieces = [data[at : at + (8 << 20)] for at in range(0, len(data), 8 << 20)]
    packed = [lz4.block.compress(piece, store_size=False) for piece in pieces]
    return compression.LZ4_LEGACY + b"".join(
        len(piece).to_bytes(4, "little") + piece for piece in packed
    )


PACKERS = [lzma.compress, gzip.compress, bz2.compress, zstandard.compress, lz4_legacy]


@given(st.binary(min_size=1, max_size=2000), st.sampled_from(PACKERS), st.binary(max_size=8))
def test_what_was_packed_comes_back_whatever_follows(
    data: bytes, pack: object, after: bytes
) -> None:
    assert callable(pack)
    follows = len(data).to_bytes(4, "little") if pack is lz4_legacy else after
    assert compression.decompress(pack(data) + follows) == data


@pytest.mark.parametrize("pack", PACKERS)
def test_content_beyond_the_limit_is_refused(pack: object) -> None:
    assert callable(pack)
    with pytest.raises(compression.BadCompression, match="more than"):
        compression.decompress(pack(bytes(5000)), 1000)


@given(st.sampled_from(PACKERS), st.integers(0, 60), st.binary(min_size=1, max_size=3))
def test_damage_in_packed_data_is_one_kind_of_error(pack: object, at: int, damage: bytes) -> None:
    assert callable(pack)
    whole = pack(b"some content that is packed" * 9)
    with contextlib.suppress(compression.BadCompression):
        compression.decompress(whole[:at] + damage + whole[at + len(damage) :], 1 << 20)


def bzimage(payload: bytes, version: int = 0x20F) -> bytes:
    image = bytearray(0x1000)
    image[0x1F1] = 3
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<II", image, 0x248, len(image) - 4 * 512, len(payload))
    return bytes(image) + payload


@pytest.mark.parametrize("pack", [*PACKERS, bytes])
def test_vmlinux_is_cut_out_of_a_bzimage(pack: object) -> None:
    assert callable(pack)
    kernel = elf_file()
    payload = pack(kernel) + len(kernel).to_bytes(4, "little")
    assert vmlinux.kernel_image(bzimage(payload), "x86_64").startswith(kernel)
    assert vmlinux.kernel_image(kernel, "x86_64") == kernel


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        bytes(0x400),
        bzimage(b""),
        bzimage(gzip.compress(b"not a kernel")),
        bzimage(gzip.compress(elf_file())[:-20]),
        bzimage(gzip.compress(elf_file()), version=0x207),
        elf_file(machine=183),
        bzimage(gzip.compress(elf_file(machine=183))),
    ],
)
def test_what_is_no_kernel_is_refused(data: bytes) -> None:
    with pytest.raises(vmlinux.NotAKernel):
        vmlinux.kernel_image(data, "x86_64")


def test_an_arm64_image_is_taken_as_it_is_or_unpacked() -> None:
    image = b"MZ" + bytes(0x36) + b"ARM\x64" + bytes(100)
    packed = gzip.compress(image)
    zboot = struct.pack("<4s4sII8x32s", b"MZ\0\0", b"zimg", 56, len(packed), b"gzip") + packed
    for data in (image, packed, zboot):
        assert vmlinux.kernel_image(data, "aarch64") == image
    with pytest.raises(vmlinux.NotAKernel):
        vmlinux.kernel_image(bytes(200), "aarch64")


def test_the_pvh_note_is_found() -> None:
    assert vmlinux.has_pvh(elf_file(sections={".notes": struct.pack("<III", 4, 8, 18) + b"Xen\0"}))
    assert not vmlinux.has_pvh(elf_file())


def test_a_modules_information_is_read() -> None:
    module = elf_file(sections={".modinfo": b"license=GPL\0depends=a,b\0alias=x\0alias=y\0junk"})
    assert elf.modinfo(module) == {"license": ["GPL"], "depends": ["a,b"], "alias": ["x", "y"]}
    with pytest.raises(elf.NotElf, match=r"no \.modinfo"):
        elf.modinfo(elf_file())


MODULE = elf_file(sections={".modinfo": b"depends=a\0"})


@given(st.integers(0, len(MODULE) - 1), st.binary(min_size=1, max_size=8))
def test_a_damaged_elf_file_is_read_or_refused(at: int, damage: bytes) -> None:
    for data in (MODULE[:at], MODULE[:at] + damage + MODULE[at + len(damage) :]):
        for read in (elf.modinfo, elf.soname):
            with contextlib.suppress(elf.NotElf):
                read(data)
