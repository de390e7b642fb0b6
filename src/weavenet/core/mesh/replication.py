"""Replication of ring, log and records over the established links: Plumtree for speed, digests for certainty.

A change is pushed on *eager* links and forwarded by whoever it is new to: log and ring at once, records as
:class:`Pacing` says. A push that taught nothing prunes its link to *lazy* (both ends), as long as more than two stay
eager. On lazy links, and with the heartbeats, goes a digest; whoever differs starts a :class:`Repair`, which makes its
link eager again, so the tree heals where it was cut. A peer with many links starts with only a few of them eager, and
the first exchange on a link is no reason for more: when a hundred peers start together, each change would travel every
link before the first prune.

Does not decide what is true: ring and log merge in :class:`Shared`, records in :class:`Records`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from weavenet.core.deadlines import earliest
from weavenet.core.effects import Outbox, Send
from weavenet.core.limits import (
    EAGER_LINKS_MIN,
    EAGER_LINKS_START,
    LAZY_DIGEST_DELAY_S,
)
from weavenet.core.mesh.links import Link, Links
from weavenet.core.mesh.pacing import Pacing
from weavenet.core.mesh.pages import MARKS_PER_PAGE, pages
from weavenet.core.mesh.records import Applied, RecordRefused, Records
from weavenet.core.mesh.repair import Repair
from weavenet.core.mesh.shared import Shared
from weavenet.core.messages import Message
from weavenet.core.messages.gossip import (
    LogPull,
    Mark,
    OriginDelta,
    Prune,
    Push,
    RingDelta,
)
from weavenet.core.types import LogEntry, PeerId

_PRUNE_PAUSE_S = 0.5
_REFUSAL_NOTE_PAUSE_S = 60.0
_FIRST_EXCHANGE_S = 10.0
"""A link whose ends never agreed counts as past its first exchange after this long."""


class Replication:
    """``on_applied(now, origin, applied)`` is called for each set of records that changed, before it is forwarded."""

    def __init__(
        self,
        *,
        own: PeerId,
        records: Records,
        links: Links,
        shared: Shared,
        outbox: Outbox,
        rng: random.Random,
        on_applied: Callable[[float, PeerId, Applied], None],
    ) -> None:
        self._own = own
        self._records = records
        self._links = links
        self._shared = shared
        self._outbox = outbox
        self._rng = rng
        self._on_applied = on_applied
        self._pacing = Pacing(records)
        self.repair = Repair(
            own=own,
            records=records,
            links=links,
            shared=shared,
            outbox=outbox,
            pacing=self._pacing,
            graft=self._graft,
        )
        self._noted: dict[PeerId, float] = {}
        self._announce_at: float | None = None

    # --- our own changes ---

    def push_records(self, now: float, before: Mark, *, wait_s: float = 0.0) -> None:
        """Our records moved on from ``before``: push that, and what waited, now or within ``wait_s``."""
        self._pacing.own_moved(now, before, wait_s)
        self._push_moved(now)

    def push_ring(self, now: float, delta: RingDelta) -> None:
        self._spread_shared(now, None, ring=(delta,))

    def push_log(self, now: float, start: int) -> None:
        if self._links.established():  # entries that nobody is there to take do not count as given away
            self._spread_shared(now, None, log_start=start, log=self._shared.log_from(start))

    # --- the tree ---

    def _spread_shared(
        self,
        now: float,
        source: Link | None,
        *,
        log_start: int = 0,
        log: Sequence[LogEntry] = (),
        ring: Iterable[RingDelta] = (),
    ) -> None:
        """Log and ring go on at once, to all but ``source``."""
        messages = list(pages(log_start, log, ring, (), repair=False))
        self._spread(now, lambda link: link is not source, lambda link: messages)

    def _push_moved(self, now: float) -> None:
        """Push the records that moved and need not wait."""
        moved = self._pacing.take(now)
        if not moved:
            return
        deltas = [(each.sources, delta) for each in moved for delta in self._records.deltas(now, each.before)]
        informed = set[int]().union(*(sources for sources, _ in deltas))
        everything = list(pages(0, (), (), (delta for _, delta in deltas), repair=False))

        def news(link: Link) -> Iterator[OriginDelta]:
            return (delta for sources, delta in deltas if link.id not in sources)

        self._spread(
            now,
            lambda link: link.id not in informed or any(True for _ in news(link)),
            lambda link: pages(0, (), (), news(link), repair=False) if link.id in informed else everything,
        )

    def _spread(self, now: float, is_news: Callable[[Link], bool], messages: Callable[[Link], Iterable[Push]]) -> None:
        """Push on the eager links to which it is news; announce on the others."""
        links = self._links.established()
        if not links:
            return
        eager = [link for link in links if link.gossip.eager]
        if not eager:
            # Nobody would hear of it before the next digest; one link is enough to get it going.
            eager = [min(links, key=lambda link: link.id)]
            eager[0].gossip.eager = True
        for link in links:
            if not is_news(link):
                continue
            if link.gossip.eager:
                for message in messages(link):
                    self._send(now, link, message)
            else:
                link.gossip.announce = True
        if len(eager) < len(links) and self._announce_at is None:
            # Spread out, so that on most links one side speaks and the other finds that it need not.
            self._announce_at = now + LAZY_DIGEST_DELAY_S * (1 + self._rng.random())

    def _send(self, now: float, link: Link, message: Message) -> None:
        link.used_at = now
        self._outbox.append(Send(link.id, message))

    def started(self, now: float, link: Link) -> None:
        """``link`` was just established."""
        others = sum(other.gossip.eager for other in self._links.established() if other is not link)
        link.gossip.eager = others < EAGER_LINKS_START
        self.repair.send_digest(now, link, self.repair.digest())

    def deadline(self) -> float | None:
        return earliest((self._pacing.deadline(), self._announce_at, self.repair.deadline()))

    def tick(self, now: float) -> None:
        """Push what waited; announce on the lazy links whose peer did not already show that it has what we have."""
        self._push_moved(now)
        if self._announce_at is not None and now >= self._announce_at:
            self._announce_at = None
            mine = self.repair.digest()
            for link in self._links.established():
                if link.gossip.announce:
                    link.gossip.announce = False
                    self.repair.tell(now, link, mine)
        self.repair.tick(now)

    # --- pushes ---

    def on_push(self, now: float, link: Link, push: Push) -> None:
        """Raises MalformedDelta."""
        before = self._shared.log_length()
        is_open = False
        new_log: tuple[LogEntry, ...] = ()
        if push.log:
            gap = self._shared.log_gap(push.log_start, push.log)
            if gap is not None:
                is_open = True
                self._send(now, link, LogPull(gap))
            elif self._shared.merge_log(now, push.log_start, push.log):
                before = min(before, push.log_start)
                new_log = self._shared.log_from(before)
        new_ring: list[RingDelta] = []
        for ring in push.ring:
            gap = self._shared.ring_gap(ring)
            if gap is not None:
                is_open = True
                self._send(now, link, LogPull(gap))
                continue
            learnt = self._shared.merge_ring(now, ring)
            if learnt is not None:
                new_ring.append(learnt)
        moved, has_gap = self._apply(now, link, push.records)
        if push.repair:
            link.gossip.is_feeding = bool(moved)
        if new_log or new_ring or moved:
            if not push.repair:
                link.gossip.eager = True
            else:
                self._graft(now, link)
            if new_log or new_ring:
                self._spread_shared(now, link, log_start=before, log=new_log, ring=new_ring)
            for mark in moved:
                self._pacing.moved(now, mark, link.id)
            self._push_moved(now)
        elif not (is_open or has_gap or push.repair):
            self._prune(now, link)

    def _apply(self, now: float, link: Link, deltas: Iterable[OriginDelta]) -> tuple[list[Mark], bool]:
        """(marks before of the origins that moved, whether something could not be used yet)."""
        moved: dict[PeerId, Mark] = {}
        gaps: list[Mark] = []
        is_held_back = False
        for delta in deltas:
            if delta.origin == self._own:
                self._records.told_of_us(delta.incarnation, delta.top)
                continue
            try:
                applied = self._records.apply(now, delta)
            except RecordRefused as refusal:
                is_held_back = True
                self._note_refusal(now, delta.origin, str(refusal))
                continue
            if applied.equal:
                self._pacing.confirmed(delta.origin, link.id)
            if applied.gap and applied.before is not None:
                gaps.append(applied.before)
            if applied.new and applied.before is not None:
                moved.setdefault(delta.origin, applied.before)
                self.repair.pulled(delta.origin)
                self._on_applied(now, delta.origin, applied)
        self.repair.pull(now, link, gaps)
        return list(moved.values()), bool(gaps) or is_held_back

    def _note_refusal(self, now: float, origin: PeerId, text: str) -> None:
        if text and now >= self._noted.get(origin, float("-inf")) + _REFUSAL_NOTE_PAUSE_S:
            if len(self._noted) > MARKS_PER_PAGE:
                self._noted.clear()
            self._noted[origin] = now
            self._outbox.note("error", "records", text)

    def _prune(self, now: float, link: Link) -> None:
        gossip = link.gossip
        if gossip.eager and sum(other.gossip.eager for other in self._links.established()) <= EAGER_LINKS_MIN:
            return
        gossip.eager = False
        if now >= gossip.pruned_at + _PRUNE_PAUSE_S:
            gossip.pruned_at = now
            self._outbox.append(Send(link.id, Prune()))

    def on_prune(self, link: Link) -> None:
        link.gossip.eager = False

    def _graft(self, now: float, link: Link) -> None:
        """A repair had something to repair: the link is needed, unless this is just its first exchange."""
        is_first = not link.gossip.has_agreed and now < (link.established_at or now) + _FIRST_EXCHANGE_S
        if not is_first or sum(other.gossip.eager for other in self._links.established()) < EAGER_LINKS_START:
            link.gossip.eager = True
