"""A machine's own disk: a layer that QEMU finds no fault with, over a shared image."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from novasandbox.providers.scratch_layer import write_empty_layer


def layer_of(path: Path, size: int) -> Path:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    write_empty_layer(descriptor, size)
    os.close(descriptor)
    return path


@pytest.mark.parametrize("mib", [16, 511, 512, 513, 100_000, 4_194_304])
def test_an_empty_layer_is_sound_at_every_size(tmp_path: Path, mib: int) -> None:
    layer = layer_of(tmp_path / "layer", mib << 20)
    subprocess.run(["qemu-img", "check", str(layer)], check=True, capture_output=True)
    info = subprocess.run(
        ["qemu-img", "info", str(layer)], check=True, capture_output=True, text=True
    )
    assert f"({mib << 20} bytes)" in info.stdout
    assert layer.stat().st_blocks * 512 <= 1 << 20


def test_a_layer_shows_what_is_below_and_keeps_what_is_written(tmp_path: Path) -> None:
    below, copy = tmp_path / "below", tmp_path / "copy"
    below.write_bytes(b"x" * (1 << 20))
    layer = layer_of(tmp_path / "layer", 1 << 20)
    subprocess.run(
        ["qemu-img", "rebase", "-u", "-b", str(below), "-F", "raw", str(layer)], check=True
    )
    subprocess.run(["qemu-io", "-c", "write -P 7 65536 4096", str(layer)], check=True)
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(layer), str(copy)], check=True)
    assert copy.read_bytes() == b"x" * 65536 + b"\7" * 4096 + b"x" * ((1 << 20) - 69632)
    assert below.read_bytes() == b"x" * (1 << 20)
