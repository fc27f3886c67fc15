"""Our terminal, while a guest's program has it: raw, resized, and always given back."""

from __future__ import annotations

import contextlib
import shutil
import termios
import time
import tty
from collections.abc import Iterator

from novasandbox.guest.launch import PtySize

ESCAPE = b"\x1d"  # Ctrl-]
_TIMES = 3
_WITHIN = 1.0


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Every key goes to the reader as it is, until the block ends; however it ends."""
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSANOW)
    try:
        yield
    finally:
        # Not TCSADRAIN: a terminal that nobody reads (Ctrl-S) would hold us for ever.
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def size() -> PtySize:
    """The terminal's size, 24 by 80 where there is none."""
    found = shutil.get_terminal_size()
    return PtySize(rows=max(1, found.lines), cols=max(1, found.columns))


class EscapeKey:
    """The way out when a guest no longer answers: Ctrl-] three times within a second."""

    def __init__(self) -> None:
        self._pressed: list[float] = []

    def pressed_in(self, data: bytes) -> bool:
        """Whether these bytes complete the way out."""
        for byte in data:
            if byte != ESCAPE[0]:
                self._pressed.clear()
                continue
            now = time.monotonic()
            self._pressed = [*(at for at in self._pressed if now - at < _WITHIN), now]
            if len(self._pressed) == _TIMES:
                return True
        return False
