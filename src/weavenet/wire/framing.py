"""Framing of messages on a link: four bytes of length, big-endian, then that many bytes of msgpack.

The bytes come out of TLS, so they are authentic once the peer's certificate was verified, yet never trusted: a length
beyond the bound is refused when its four bytes are there, before any of the body is held. Invariant: a decoder holds at
most one incomplete frame, i.e. ``bound + 4`` bytes beyond what one ``feed`` brought.

Does not know TLS, sockets, or what a message means.
"""

from __future__ import annotations

from collections.abc import Iterator

from weavenet.core.limits import HELLO_BYTES_MAX, MESSAGE_BYTES_MAX
from weavenet.core.messages import MalformedMessage, Message, decode_message, encode

LENGTH_BYTES = 4


class FrameTooLong(MalformedMessage):
    """A frame announces more bytes than the bound in force."""


def frame(message: Message) -> bytes:
    """One message, ready for the wire. Raises FrameTooLong when it would not be accepted by any peer: senders page
    larger state, so this is a programming error of ours."""
    body = encode(message)
    if len(body) > MESSAGE_BYTES_MAX:
        raise FrameTooLong(f"expected at most {MESSAGE_BYTES_MAX} bytes in a message, found {len(body)}")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


class FrameDecoder:
    """Incremental decoder of one direction of a link.

    The first frame is bounded by HELLO_BYTES_MAX; all further ones by MESSAGE_BYTES_MAX, which is what a peer may use
    after it has introduced itself. After an error the decoder refuses further input.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._bound = HELLO_BYTES_MAX
        self._broken = False

    @property
    def held_bytes(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield each message that became complete.

        Raises MalformedMessage (FrameTooLong among them) at the first frame that is wrong; messages before it have
        been yielded by then.
        """
        if self._broken:
            raise MalformedMessage("input after a malformed message")
        self._buffer += data
        try:
            while (body := self._next_body()) is not None:
                yield decode_message(body)
        except MalformedMessage:
            self._broken = True
            self._buffer.clear()
            raise

    def _next_body(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < LENGTH_BYTES:
            return None
        length = int.from_bytes(buffer[:LENGTH_BYTES], "big")
        if length > self._bound:
            raise FrameTooLong(f"expected at most {self._bound} bytes in a message, found {length} announced")
        if length == 0:
            raise MalformedMessage("an empty message")
        end = LENGTH_BYTES + length
        if len(buffer) < end:
            return None
        body = bytes(buffer[LENGTH_BYTES:end])
        del buffer[:end]
        self._bound = MESSAGE_BYTES_MAX
        return body
