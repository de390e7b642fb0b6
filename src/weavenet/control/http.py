"""Requests out of the bytes of one connection: llhttp (the parser of Node.js) through httptools, behind our bounds.

A parser takes whatever arrives and gives whole requests, in order. What a client can make it hold is bounded: the head
of a request by HEADER_BYTES_MAX, its body by BODY_BYTES_MAX, and what stands between and behind chunks as the head is.
After :class:`Malformed` the connection is of no use any more.

What this does not do: answer (``server.py``), know a path (``handlers.py``).
"""

from __future__ import annotations

from typing import NamedTuple

import httptools

HEADER_BYTES_MAX = 16 * 1024
BODY_BYTES_MAX = 256 * 1024
"""1024 targets of 255 characters; a longer body is answered 413."""


class Malformed(Exception):
    """No HTTP/1 request, or one beyond the bounds. ``status``: what to answer with."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Parsed(NamedTuple):
    """``target`` as sent, with its query. ``keep_alive``: another request may follow. ``host``: the Host header, of
    several the first; empty when there is none."""

    method: str
    target: str
    body: bytes
    keep_alive: bool
    host: str = ""


class RequestParser:
    """The methods ``on_*`` are those of the httptools protocol."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._complete: list[Parsed] = []
        self._refusal: Malformed | None = None
        self._is_open = False
        self._has_moved = False
        self._unfinished = 0
        self._head_bytes = 0
        self._target = self._host = b""
        self._body: list[bytes] = []
        self._body_bytes = 0

    @property
    def is_inside(self) -> bool:
        """A request has begun and not ended."""
        return self._is_open

    def feed(self, data: bytes) -> list[Parsed]:
        """Requests that are complete now. Raises Malformed."""
        self._has_moved = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise Malformed(400, "expected no change of protocol") from None
        except httptools.HttpParserError as error:
            raise self._refusal or Malformed(400, str(error) or type(error).__name__) from None
        complete, self._complete = self._complete, []
        # httptools keeps a header, or a trailer behind the last chunk, until it is whole. Behind another request, or
        # behind some of the body, in one piece its size is unknown; the next piece counts.
        if self._is_open and not (complete or self._has_moved):
            self._unfinished += len(data)
            if self._unfinished > HEADER_BYTES_MAX:
                raise _head_too_long()
        return complete

    def on_message_begin(self) -> None:
        self._is_open = True
        self._unfinished = self._head_bytes = self._body_bytes = 0
        self._target = self._host = b""
        self._body.clear()

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        if not self._host and name.lower() == b"host":
            self._host = value

    def on_headers_complete(self) -> None:
        self._move_on()

    def on_chunk_header(self) -> None:
        self._move_on()

    def on_body(self, body: bytes) -> None:
        self._move_on()
        self._body_bytes += len(body)
        if self._body_bytes > BODY_BYTES_MAX:
            self._refuse(Malformed(413, f"a body has at most {BODY_BYTES_MAX} bytes"))
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._is_open = False
        parser = self._parser
        self._complete.append(
            Parsed(
                parser.get_method().decode("ascii", "replace"),
                self._target.decode("ascii", "replace"),
                b"".join(self._body),
                parser.should_keep_alive(),
                self._host.decode("ascii", "replace"),
            )
        )

    def _move_on(self) -> None:
        self._has_moved = True
        self._unfinished = 0

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEADER_BYTES_MAX:
            self._refuse(_head_too_long())

    def _refuse(self, refusal: Malformed) -> None:
        self._refusal = refusal
        raise refusal  # llhttp stops; httptools raises an error of its own


def _head_too_long() -> Malformed:
    return Malformed(431, f"expected a request head of at most {HEADER_BYTES_MAX} bytes")
