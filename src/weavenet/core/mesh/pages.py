"""Replicated state cut into messages of bounded size, and numbered pages of it read again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from weavenet.core.errors import UNDECODABLE
from weavenet.core.limits import PAGE_BYTES_MAX
from weavenet.core.messages import MalformedMessage, encode
from weavenet.core.messages.gossip import OriginDelta, Push, RingDelta
from weavenet.core.messages.unicast import HandoverPage, RingPage
from weavenet.core.types import LogEntry

MARKS_PER_PAGE = 1024
"""A mark has at most 37 bytes."""
PAGES_MAX = 256
"""Of one ring and log: 256 pages of 64 kB hold the largest allowed."""
_SEGMENTS_PER_PAGE = 640
"""A segment has at most 96 bytes: two 9-byte integers, an owner, an epoch and their headers."""
_push_decoder = msgspec.msgpack.Decoder(Push)


def pages(
    log_start: int,
    log: Sequence[LogEntry],
    ring: Iterable[RingDelta],
    deltas: Iterable[OriginDelta],
    *,
    repair: bool,
) -> Iterator[Push]:
    """The given state as pushes of bounded size, to be applied in order: log, then ring, then records."""
    yield from _log_pages(log_start, log, repair)
    for whole in ring:
        for start in range(0, len(whole.segments), _SEGMENTS_PER_PAGE):
            part = RingDelta(whole.range_index, whole.log_length, whole.segments[start : start + _SEGMENTS_PER_PAGE])
            yield Push(0, (), (part,), (), repair)
    page: list[OriginDelta] = []
    page_bytes = 0
    for delta in deltas:
        delta_bytes = len(encode(Push(0, (), (), (delta,))))
        if page and page_bytes + delta_bytes > PAGE_BYTES_MAX:
            yield Push(0, (), (), tuple(page), repair)
            page, page_bytes = [], 0
        page.append(delta)
        page_bytes += delta_bytes
    if page:
        yield Push(0, (), (), tuple(page), repair)


def _log_pages(log_start: int, log: Sequence[LogEntry], repair: bool) -> Iterator[Push]:
    page: list[LogEntry] = []
    page_bytes = 0
    for entry in log:
        entry_bytes = len(encode(Push(0, (entry,), (), ())))
        if page and page_bytes + entry_bytes > PAGE_BYTES_MAX:
            yield Push(log_start, tuple(page), (), (), repair)
            log_start += len(page)
            page, page_bytes = [], 0
        page.append(entry)
        page_bytes += entry_bytes
    if page:
        yield Push(log_start, tuple(page), (), (), repair)


def read_page(page: HandoverPage | RingPage) -> Push:
    """The part of another peer's state that ``page`` carries. Raises MalformedMessage."""
    if not 0 < page.pages <= PAGES_MAX or page.page >= page.pages:
        raise MalformedMessage(f"page {page.page} of {page.pages}")
    try:
        return _push_decoder.decode(page.body)
    except UNDECODABLE as error:
        raise MalformedMessage(str(error)) from error
