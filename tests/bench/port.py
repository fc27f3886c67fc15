"""The agent's port by hand: a blocking socket, one request after the other (docs/protocol.md)."""

from __future__ import annotations

import os
import socket
import struct
import time

from novasandbox.guest.frames import FieldList, Fields, encode, encode_data, encode_fields
from novasandbox.guest.interpreter import wire
from novasandbox.guest.protocol import ATTACH_MAGIC, HEADER_SIZE, VERSION, Frame, Op, Tag

_HEADER = struct.Struct("<BBHII")
_STATUS = struct.Struct("<I")
_OFFSET_SIZE = 8
_DEADLINE = 60.0


class Port:
    """A connection to the agent of a guest that was restored."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_DEADLINE)
        self._socket.connect(path)
        self._received = bytearray()
        self._stream = 0
        self._context: int | None = None
        self._sent = 0
        # What is over is released with the next request: alone it would be one more exit to QEMU.
        self._owed = b""

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def attach(self) -> None:
        """Shake hands. What was saved stood between two frames, so nothing is skipped."""
        nonce = os.urandom(16)
        version = VERSION.to_bytes(2, "little")
        self._socket.sendall(encode(Frame.ATTACH, payload=nonce + os.urandom(16) + version))
        head = ATTACH_MAGIC + nonce
        while True:
            kind, _, payload = self._frame()
            if kind == Frame.ATTACHED and payload.startswith(head):
                self._stream = Fields.decode(payload[len(head) :]).number(Tag.NEXT_STREAM)
                return

    def configure(self) -> None:
        """Make the guest another one than all that it is a copy of."""
        self.request(
            Op.CONFIGURE,
            [
                (Tag.HOSTNAME, "floor"),
                (Tag.MACHINE_ID, os.urandom(16).hex()),
                (Tag.ENTROPY, os.urandom(64)),
                (Tag.CLOCK, time.time_ns()),
            ],
        )

    def renew(self) -> None:
        """Fresh entropy and the right time, for a guest that slept."""
        self.request(Op.ENTROPY, [(Tag.ENTROPY, os.urandom(64))])
        self.set_clock()

    def set_clock(self) -> None:
        """Set the guest's clock to the host's."""
        self.request(Op.CLOCK, [(Tag.CLOCK, time.time_ns())])

    def ping(self) -> None:
        """A round trip."""
        self.request(Op.PING)

    def request(self, op: Op, fields: FieldList = ()) -> None:
        """A request that is over with its reply. Raises RuntimeError where it is refused."""
        stream = self._begin(op, fields)
        while True:
            kind, of, payload = self._frame()
            if kind == Frame.REPLY and of == stream:
                break
        self._owed = encode(Frame.RELEASE, stream)
        (status,) = _STATUS.unpack_from(payload)
        if status:
            raise RuntimeError(f"{op.name} was refused: {os.strerror(status)}")

    def cell(self, code: str) -> bytes:
        """Run a cell in the default context; gives its events. Raises RuntimeError.

        All go by one connection, which takes some thousands of small ones before its window
        is used up.
        """
        body = wire.REQUEST.pack(len(code), os.urandom(8)) + code.encode()
        if self._context is None:
            path = wire.CONTEXT + wire.DEFAULT.encode()
            self._context = self._begin(Op.CONNECT, [(Tag.PATH, path)], body)
        else:
            self._socket.sendall(encode_data(self._context, 0, self._sent, body))
        self._sent += len(body)
        events = b""
        while not _is_done(events):
            kind, of, payload = self._frame()
            if kind == Frame.DATA and of == self._context:
                events += payload[_OFFSET_SIZE:]
            elif kind == Frame.REPLY and of == self._context:
                raise RuntimeError(f"the cell was not run to its end: {events!r}")
        return events

    def _begin(self, op: Op, fields: FieldList, data: bytes = b"") -> int:
        stream = self._stream
        self._stream += 1
        request = encode(Frame.REQUEST, stream, op.to_bytes(2, "little") + encode_fields(fields))
        more = encode_data(stream, 0, 0, data) if data else b""
        self._socket.sendall(self._owed + request + more)
        return stream

    def _frame(self) -> tuple[int, int, bytes]:
        """Type, stream and payload of the next frame."""
        received = self._received
        while True:
            if len(received) >= HEADER_SIZE:
                kind, _, _, stream, length = _HEADER.unpack_from(received)
                end = HEADER_SIZE + length
                if len(received) >= end:
                    payload = bytes(received[HEADER_SIZE:end])
                    del received[:end]
                    return kind, stream, payload
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError("the bare machine has ended")
            received += data


def _is_done(events: bytes) -> bool:
    at = 0
    while at + wire.EVENT.size <= len(events):
        kind, length = wire.EVENT.unpack_from(events, at)
        at += wire.EVENT.size + int(length)
        if kind == wire.DONE:
            return at <= len(events)
    return False
