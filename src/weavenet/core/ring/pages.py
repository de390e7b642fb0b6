"""A ring, or part of one, as deltas to send: of one range each, and of bounded length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weavenet.core.messages.gossip import RingDelta
from weavenet.core.ranges import by_range
from weavenet.core.types import Segment


def delta_pages(segments: Iterable[Segment], log_length: int, segments_max: int) -> Iterator[RingDelta]:
    """Sorted ``segments`` in order, at most ``segments_max`` in each delta; nothing when there are none."""
    for number, content in by_range(segments):
        for first in range(0, len(content), segments_max):
            yield RingDelta(number, log_length, content[first : first + segments_max])
