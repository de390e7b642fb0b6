"""What daemon and worker say to each other: frames of a length (4 bytes, big-endian) and a msgpack array.

The worker listens on a unix socket and outlives the daemon. The newest connection is the daemon; an older one is
closed. On each the daemon sends one :class:`Configure` first, then :class:`Names`: the whole table in several frames,
of which only the last makes it valid, and changes of the valid one. Frames are small, so that reading one never delays
an answer by more than a fraction of a millisecond. The worker sends :class:`Listening` for the first configuration of
a connection and whenever that changed, and :class:`Status` when asked.

When the stream ends the last table stays valid. :class:`Stop` ends the worker, and so does a frame that does not
decode, which is a fault of ours.
"""

from __future__ import annotations

import msgspec

FRAME_BYTES_MAX = 1 << 20
NAMES_PER_FRAME = 50
"""About 0.3 ms of work for the worker."""


class Listen(msgspec.Struct, frozen=True, array_like=True):
    """``device``: take queries only from there; empty: from wherever they come to ``host``."""

    host: str
    port: int
    device: str = ""


class Configure(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """``ranges``: CIDRs whose reverse names are ours. ``own``: further addresses at which this server is reached."""

    domain: str
    ttl_s: int
    ranges: tuple[str, ...]
    listen: tuple[Listen, ...]
    resolv_conf: str
    own: tuple[str, ...] = ()


class Name(msgspec.Struct, frozen=True, array_like=True):
    """``addresses``: packed; none: the name is gone."""

    name: str
    addresses: tuple[bytes, ...]


class Names(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """``begins``: of a whole table; ``ends``: it is valid from now on. Neither: more of a table that began, else a
    change of the valid one."""

    begins: bool
    ends: bool
    names: tuple[Name, ...]


class AskStatus(msgspec.Struct, frozen=True, array_like=True, tag=3):
    pass


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """End the worker. Understood by every release, since the next one says it to the worker of the one before."""


class Listening(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """``failed``: (listen, why)."""

    open: tuple[Listen, ...]
    failed: tuple[tuple[Listen, str], ...]


class Status(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Counts since the worker started. ``looping``: upstreams that lead back to us."""

    names: int
    local: int
    forwarded: int
    from_cache: int
    stale: int
    failed: int
    refused: int
    malformed: int
    dropped: int
    false_answers: int
    upstreams: tuple[str, ...]
    looping: tuple[str, ...]


ToWorker = Configure | Names | AskStatus | Stop
ToDaemon = Listening | Status

_encoder = msgspec.msgpack.Encoder()


def encode(message: ToWorker | ToDaemon) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


class Frames:
    """Collects bytes, gives back frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, data: bytes) -> None:
        self._bytes += data

    def next(self) -> bytes | None:
        """A complete frame's body. Raises ValueError when it claims to be too long."""
        if len(self._bytes) < 4:
            return None
        size = int.from_bytes(self._bytes[:4], "big")
        if size > FRAME_BYTES_MAX:
            raise ValueError(f"expected a frame of at most {FRAME_BYTES_MAX} bytes; found: {size}")
        if len(self._bytes) < 4 + size:
            return None
        body = bytes(self._bytes[4 : 4 + size])
        del self._bytes[: 4 + size]
        return body
