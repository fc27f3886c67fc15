"""Whether anybody waits for a process or writes to it: else it keeps no sandbox awake."""

from __future__ import annotations

from novasandbox.guest.channel import Channel
from novasandbox.guest.stream import Stream


class Attendance:
    """Tells the channel of a process that rests whether anybody waits for it or writes to it."""

    def __init__(self, channel: Channel, stream: Stream, rests: bool) -> None:
        self._channel = channel
        self._stream = stream
        self._rests = rests
        self._count = 0
        if rests:
            channel.rest(stream)

    def change(self, change: int) -> None:
        """One more (1), or one less (-1)."""
        was, self._count = self._count, self._count + change
        if self._rests and (was > 0) != (self._count > 0):
            self._channel.rest(self._stream, over=self._count > 0)
