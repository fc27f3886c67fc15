"""How a long build tells what it is doing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with each step's name, what of it is done, and the whole where it is known.

    The unit is the step's own: bytes for downloads and images, pieces else. It may be
    called from a thread other than the one that started the build, and must not block.
    A step ends with `done == total`.
    """

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """Take the news."""
        ...


def quiet(step: str, done: int, total: int | None) -> None:
    """The progress that nobody watches."""
