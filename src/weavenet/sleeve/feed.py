"""The socket between daemon and worker: a unix stream that the worker listens on.

Each message is a length (4 bytes, big-endian, at most MESSAGE_BYTES_MAX) and that much msgpack: ``SleeveDesired`` or
:class:`Stop` downwards, ``SleeveStatus`` upwards (``weavenet.core.overlay.sleeve``). The newest connection is the
daemon; an older one is closed. No daemon: the last state stays in force.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct

import msgspec

from weavenet.core.overlay.sleeve import SleeveDesired, SleeveStatus

MESSAGE_BYTES_MAX = 64 << 20
"""4096 peers with a hundred containers each are 4 MB."""
WRITE_WAIT_S = 0.2
"""A daemon that does not read for so long is disconnected; it connects again."""
_LENGTH = struct.Struct("!I")


class Stop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """End the worker: the daemon does not want this plane any more."""


_decoder: msgspec.msgpack.Decoder[SleeveDesired | Stop] = msgspec.msgpack.Decoder(SleeveDesired | Stop)
_status_decoder = msgspec.msgpack.Decoder(SleeveStatus)


def frame(message: SleeveDesired | SleeveStatus | Stop) -> bytes:
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


class Splitter:
    """Bytes of a stream to whole messages. :meth:`feed` raises ValueError for a length that cannot be."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._buffer += data
        bodies = []
        while len(self._buffer) >= 4:
            length = _LENGTH.unpack_from(self._buffer)[0]
            if length > MESSAGE_BYTES_MAX:
                raise ValueError(f"expected a message of at most {MESSAGE_BYTES_MAX} bytes, found {length}")
            if len(self._buffer) < 4 + length:
                break
            bodies.append(bytes(self._buffer[4 : 4 + length]))
            del self._buffer[: 4 + length]
        return bodies


def decode_wanted(body: bytes) -> SleeveDesired | Stop:
    """Raises msgspec.DecodeError (a ValueError) with the place of what is wrong."""
    return _decoder.decode(body)


def decode_status(body: bytes) -> SleeveStatus:
    """Raises msgspec.DecodeError (a ValueError)."""
    return _status_decoder.decode(body)


class Listener:
    """The worker's side. ``path``: of the socket, made anew; only its owner may connect."""

    def __init__(self, path: str) -> None:
        self._path = path
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 (pathlib takes 2 MB)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            self._socket.bind(path)
        finally:
            os.umask(before)
        self._socket.listen(4)
        self._socket.setblocking(False)
        self._daemon: socket.socket | None = None
        self._splitter = Splitter()

    @property
    def fds(self) -> tuple[int, ...]:
        return (self._socket.fileno(), *([self._daemon.fileno()] if self._daemon else ()))

    def accept(self) -> int | None:
        """The file descriptor to watch for the new daemon; None when nobody was there after all."""
        try:
            accepted, _ = self._socket.accept()
        except OSError:
            return None
        self._drop()
        accepted.setblocking(False)
        self._daemon, self._splitter = accepted, Splitter()
        return accepted.fileno()

    def receive(self) -> list[SleeveDesired | Stop]:
        """What the daemon said; nothing when it went away or talked nonsense, which ends the connection."""
        if self._daemon is None:
            return []
        try:
            data = self._daemon.recv(1 << 18)
            if not data:
                self._drop()
                return []
            return [decode_wanted(body) for body in self._splitter.feed(data)]
        except BlockingIOError:
            return []
        except (OSError, ValueError):
            self._drop()
            return []

    def send(self, status: SleeveStatus) -> None:
        if self._daemon is None:
            return
        try:
            self._daemon.settimeout(WRITE_WAIT_S)
            self._daemon.sendall(frame(status))
            self._daemon.setblocking(False)
        except OSError:
            self._drop()

    def _drop(self) -> None:
        if self._daemon is not None:
            self._daemon.close()
            self._daemon = None

    def close(self) -> None:
        self._drop()
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)  # noqa: PTH108
