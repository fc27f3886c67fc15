"""The package knows where its compiled parts are, and says what to do where one is missing."""

from __future__ import annotations

import os

import pytest

from novasandbox import native
from novasandbox.errors import ProviderUnavailable


@pytest.mark.parametrize("name", ["nova-agent", "nova-jail"])
def test_a_binary_for_this_machine_is_static_and_executable(name: str) -> None:
    binary = native.path(name)
    assert os.access(binary, os.X_OK)
    content = binary.read_bytes()
    assert content.startswith(b"\x7fELF")
    assert b"/ld-musl" not in content
    assert b"/ld-linux" not in content


def test_a_missing_binary_names_the_command_that_makes_it() -> None:
    with pytest.raises(ProviderUnavailable, match=r"make agent ARCH=riscv64"):
        native.path("nova-agent", "riscv64")
