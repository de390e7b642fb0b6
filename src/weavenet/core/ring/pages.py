"""A ring, or part of one, as deltas to send: of one range each, and of bounded length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weavenet.core.limits import PAGE_BYTES_MAX
from weavenet.core.messages.gossip import RingDelta
from weavenet.core.ranges import by_range
from weavenet.core.types import Segment

SEGMENTS_PER_PAGE = PAGE_BYTES_MAX // 96
"""A segment has at most 96 bytes."""


def delta_pages(
    segments: Iterable[Segment], log_length: int, segments_max: int = SEGMENTS_PER_PAGE
) -> Iterator[RingDelta]:
    """Sorted ``segments`` in order, at most ``segments_max`` in each delta; nothing when there are none."""
    for number, content in by_range(segments):
        for first in range(0, len(content), segments_max):
            yield RingDelta(number, log_length, content[first : first + segments_max])
