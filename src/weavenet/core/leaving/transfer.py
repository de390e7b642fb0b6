"""What one custodian has confirmed of a leaver's ring and log, and what it still has to be sent.

The custodian confirms page by page (``StampAnswer``), each durable there. What it confirmed stays confirmed, since
stamps only grow; so a ring that changes meanwhile costs only what changed. A confirmed page also says that the
custodian's log is as long as the leaver's was.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from weavenet.core.effects import Outbox
from weavenet.core.limits import LEAVE_RETRY_S
from weavenet.core.messages.gossip import RingDelta
from weavenet.core.messages.unicast import StampPage
from weavenet.core.ranges import placed
from weavenet.core.ring.pages import delta_pages
from weavenet.core.ring.segments import Ring
from weavenet.core.types import PeerId


class Transfer:
    """To ``custodian``. Memory only: a leaver that restarts asks anew."""

    def __init__(self, custodian: PeerId, rng: random.Random) -> None:
        self.custodian = custodian
        self.session = rng.getrandbits(62)
        self.has_accepted = False
        """It has taken the custody, as last offered."""
        self._confirmed: Ring | None = None
        self._log_length = 0
        self._sent: dict[int, RingDelta] = {}
        self._next_page = 0
        self._send_at = 0.0

    def is_complete(self, ring: Ring, log_length: int) -> bool:
        return self._log_length >= log_length and not self._missing(ring)

    def _missing(self, ring: Ring) -> tuple[object, ...]:
        confirmed = self._confirmed
        if confirmed is None or confirmed.sizes != ring.sizes:
            return ring.segments
        return () if confirmed.segments == ring.segments else confirmed.merge(ring.segments)[1]

    def send(self, now: float, ring: Ring, log_length: int, outbox: Outbox) -> None:
        """What is missing, at most every LEAVE_RETRY_S."""
        if now < self._send_at:
            return
        self._send_at = now + LEAVE_RETRY_S
        self._sent.clear()
        for delta in self._pages(ring, log_length):
            self._sent[self._next_page] = delta
            outbox.unicast(self.custodian, StampPage(self.session, self._next_page, delta))
            self._next_page += 1

    def _pages(self, ring: Ring, log_length: int) -> Iterator[RingDelta]:
        confirmed = self._confirmed or Ring(ring.sizes)
        missing = confirmed.merge(ring.segments)[1]
        yield from delta_pages(missing, log_length)
        if not missing and self._log_length < log_length:
            yield RingDelta(0, log_length, ())

    def confirmed(self, page: int, ring: Ring) -> None:
        delta = self._sent.pop(page, None)
        if delta is None:
            return
        confirmed = self._confirmed if self._confirmed is not None else Ring(ring.sizes)
        self._confirmed = confirmed.merge(placed(delta.range_index, delta.segments))[0]
        if not self._sent:
            self._send_at = 0.0
            self._log_length = max(self._log_length, delta.log_length)
