"""Replication of ring, log and records over the established links: Plumtree for speed, digests for certainty.

A change is pushed at once on *eager* links and forwarded by whoever it is new to. A push that taught nothing prunes
its link to *lazy* (both ends), as long as more than two stay eager. On lazy links, and with the heartbeats, goes a
digest; whoever differs starts a repair: log first (``LogPull``), then ring by buckets, records by buckets, marks,
pushes and pulls. A repair makes its link eager again, so the tree heals where it was cut. A peer with many links starts
with only a few of them eager, and the first exchange on a link is no reason for more: when a hundred peers start
together, each change would travel every link before the first prune.

Records are paced, log and ring are not. A push of records leaves at once when none left lately; what moves meanwhile
leaves together, after a pause that grows with the number of peers, and not to those that told us the same. While news
comes in, a difference in records is left to it for some pauses before it is repaired. Else a thousand peers that start
together would each forward an event per record and link, and repair what is on its way already.

A digest goes out once per link and change, and not at all when the peer's own digest already showed the same; so on
most lazy links one of the two sides speaks. Who hears a differing digest owns the repair and repeats it with its beats.

Termination: a repair is started only by a digest that differs, at most one per link and interval, and each of its
messages is answered at most once by messages of a lower kind (digest > buckets > marks > pull > push). What is pushed
is split into pages; the answer to one pull stops after a burst and the next digest goes on.

Does not decide what is true: ring and log merge in :class:`Shared`, records in :class:`Records`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from weavenet.core.deadlines import earliest
from weavenet.core.effects import Outbox, Send
from weavenet.core.limits import (
    DIGEST_BUCKETS,
    EAGER_LINKS_MIN,
    EAGER_LINKS_START,
    LAZY_DIGEST_DELAY_S,
    OWN_PAUSE_PUSHES,
    PAGE_BYTES_MAX,
    PULL_PENDING_S,
    PUSH_PAUSE_MAX_S,
    PUSH_PAUSE_PER_PEER_S,
    REPAIR_BURST_BYTES,
    REPAIR_INTERVAL_S,
    REPAIR_QUIET_PUSHES,
    REPAIR_WAIT_PUSHES,
)
from weavenet.core.mesh.links import Gossip, Link, Links
from weavenet.core.mesh.records import Applied, MalformedDelta, RecordRefused, Records
from weavenet.core.mesh.shared import Shared
from weavenet.core.messages import Message, encode
from weavenet.core.messages.gossip import (
    LogPull,
    Mark,
    OriginDelta,
    Prune,
    Push,
    RecordBuckets,
    RecordMarks,
    RecordPull,
    RingBuckets,
    RingDelta,
)
from weavenet.core.messages.link import Digest
from weavenet.core.types import LogEntry, PeerId

_MARKS_PER_PAGE = 1024
"""A mark has at most 37 bytes."""
_SEGMENTS_PER_PAGE = 640
"""A segment has at most 96 bytes: two 9-byte integers, an owner, an epoch and their headers."""
_DIGEST_REPEAT_S = 10.0
_PRUNE_PAUSE_S = 0.5
_REFUSAL_NOTE_PAUSE_S = 60.0
_REPAIR_TRIES = 3
_FIRST_EXCHANGE_S = 10.0
"""A link whose ends never agreed counts as past its first exchange after this long."""


class _Moved(NamedTuple):
    """An origin whose records are to be pushed: our mark of it at the last push, and the ids of the links over which
    the newest of them came, which need not be told."""

    before: Mark
    sources: set[int]


class Replication:
    """``on_applied(origin, applied)`` is called for each set of records that changed, before it is forwarded."""

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
        self._pulled: dict[PeerId, float] = {}
        self._noted: dict[PeerId, float] = {}
        self._announce_at: float | None = None
        self._unpushed: Mark | None = None
        self._unpushed_at: float | None = None
        self._own_pushed_at = float("-inf")
        self._moved: dict[PeerId, _Moved] = {}
        self._push_at: float | None = None
        self._pushed_at = self._moved_at = float("-inf")
        self._repair_at: float | None = None

    # --- our own changes ---

    def push_records(self, now: float, before: Mark, *, wait_s: float = 0.0) -> None:
        """Our records moved on from ``before``: push that, and what waited, now or within ``wait_s``."""
        if self._unpushed is None or self._unpushed.incarnation != self._records.incarnation:
            self._unpushed = before
        if wait_s == 0.0:
            self._push_unpushed(now)
        elif self._unpushed_at is None:
            self._unpushed_at = max(now + wait_s, self._own_pushed_at + self._pause_s(OWN_PAUSE_PUSHES))

    def _push_unpushed(self, now: float) -> None:
        self._unpushed_at, self._own_pushed_at = None, now
        if self._unpushed is not None:
            before, self._unpushed = self._unpushed, None
            self._note_moved(before, set())
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
        pages = list(_pages(log_start, log, ring, (), repair=False))
        self._spread(now, lambda link: link is not source, lambda link: pages)

    def _note_moved(self, before: Mark, sources: set[int]) -> None:
        """An origin moved on from ``before``, as it said on ``sources``."""
        known = self._moved.get(before.origin)
        self._moved[before.origin] = _Moved(before if known is None else known.before, sources)

    def _push_moved(self, now: float) -> None:
        """Push the records that moved, unless a push left a moment ago: then what moves meanwhile goes with them."""
        if not self._moved:
            return
        push_at = self._pushed_at + self._pause_s(1)
        if now < push_at:
            self._push_at = push_at
            return
        moved, self._moved = self._moved, {}
        self._push_at, self._pushed_at = None, now
        deltas = [(each.sources, delta) for each in moved.values() for delta in self._records.deltas(now, each.before)]
        informed = set[int]().union(*(sources for sources, _ in deltas))
        everything = list(_pages(0, (), (), (delta for _, delta in deltas), repair=False))

        def news(link: Link) -> Iterator[OriginDelta]:
            return (delta for sources, delta in deltas if link.id not in sources)

        self._spread(
            now,
            lambda link: link.id not in informed or any(True for _ in news(link)),
            lambda link: _pages(0, (), (), news(link), repair=False) if link.id in informed else everything,
        )

    def _pause_s(self, pushes: int) -> float:
        """For so many pushes that do not leave one by one."""
        return pushes * min(PUSH_PAUSE_MAX_S, PUSH_PAUSE_PER_PEER_S * len(self._records.origins))

    def _spread(self, now: float, is_news: Callable[[Link], bool], pages: Callable[[Link], Iterable[Push]]) -> None:
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
                for page in pages(link):
                    self._send(now, link, page)
            else:
                link.gossip.announce = True
        if len(eager) < len(links) and self._announce_at is None:
            # Spread out, so that on most links one side speaks and the other finds that it need not.
            self._announce_at = now + LAZY_DIGEST_DELAY_S * (1 + self._rng.random())

    def _send(self, now: float, link: Link, message: Message) -> None:
        link.used_at = now
        self._outbox.append(Send(link.id, message))

    # --- digests ---

    def digest(self) -> Digest:
        shared = self._shared
        root, ring, length, log = self._records.root, shared.ring_hash(), shared.log_length(), shared.log_hash()
        return Digest(root, ring, length, log, *shared.log_epoch())

    def started(self, now: float, link: Link) -> None:
        """``link`` was just established."""
        others = sum(other.gossip.eager for other in self._links.established() if other is not link)
        link.gossip.eager = others < EAGER_LINKS_START
        self._send_digest(now, link, self.digest())

    def deadline(self) -> float | None:
        return earliest((self._unpushed_at, self._push_at, self._announce_at, self._repair_at))

    def tick(self, now: float) -> None:
        """Push what waited; announce on the lazy links whose peer did not already show that it has what we have."""
        if self._unpushed_at is not None and now >= self._unpushed_at:
            self._push_unpushed(now)
        if self._push_at is not None and now >= self._push_at:
            self._push_moved(now)
        if self._announce_at is not None and now >= self._announce_at:
            self._announce_at = None
            mine = self.digest()
            for link in self._links.established():
                if link.gossip.announce:
                    link.gossip.announce = False
                    self._tell(now, link, mine)
        if self._repair_at is not None and now >= self._repair_at:
            self._repair_at = None
            mine = self.digest()
            for link in self._links.established():
                self._start_repair(now, link, mine)

    def beat(self, now: float, link: Link, mine: Digest) -> None:
        """Beside a heartbeat: tell news, repeat our digest now and then, go on with a repair."""
        gossip = link.gossip
        self._tell(now, link, mine)
        if now >= gossip.sent_at + _DIGEST_REPEAT_S:
            self._send_digest(now, link, mine)
        self._start_repair(now, link, mine)

    def _tell(self, now: float, link: Link, mine: Digest) -> None:
        if mine not in (link.gossip.sent, link.gossip.theirs):
            self._send_digest(now, link, mine)

    def _send_digest(self, now: float, link: Link, digest: Digest) -> None:
        link.gossip.sent, link.gossip.sent_at = digest, now
        self._outbox.append(Send(link.id, digest))

    def on_digest(self, now: float, link: Link, theirs: Digest) -> None:
        gossip = link.gossip
        gossip.theirs = theirs
        mine = self.digest()
        if mine == theirs:
            gossip.tries = 0
            gossip.differs_since = None
            gossip.has_agreed = True
            return
        gossip.tries = _REPAIR_TRIES
        if gossip.differs_since is None:
            gossip.differs_since = now
        self._start_repair(now, link, mine)

    def _news_until(self, now: float, gossip: Gossip) -> float:
        """While news comes in, it comes for most differences of records too: those are left to it for a while, unless
        nobody else was asked for everything yet."""
        others = (link.gossip for link in self._links.established() if link.gossip is not gossip)
        if not any(other.has_agreed or other.repair_after for other in others):
            return now
        since = now if gossip.differs_since is None else gossip.differs_since
        quiet_at = self._moved_at + self._pause_s(REPAIR_QUIET_PUSHES)
        return min(quiet_at, since + self._pause_s(REPAIR_WAIT_PUSHES))

    def _start_repair(self, now: float, link: Link, mine: Digest) -> None:
        gossip = link.gossip
        theirs = gossip.theirs
        if not gossip.tries or now < gossip.repair_after:
            return
        if theirs is None or theirs == mine:
            gossip.tries = 0
            return
        shared = (theirs.ring_hash, theirs.log_length, theirs.log_hash, theirs.epoch, theirs.epoch_id)
        if shared == (mine.ring_hash, mine.log_length, mine.log_hash, mine.epoch, mine.epoch_id):
            wait_until = self._news_until(now, gossip)
            if now < wait_until:
                self._repair_at = earliest((self._repair_at, wait_until))
                return
        gossip.tries -= 1
        gossip.repair_after = now + REPAIR_INTERVAL_S
        gossip.differs_since = now
        if theirs.records_root != mine.records_root:
            self._send(now, link, RecordBuckets(self._records.bucket_hashes()))
        their_epoch, my_epoch = (theirs.epoch, theirs.epoch_id), (mine.epoch, mine.epoch_id)
        if their_epoch > my_epoch:
            self._send(now, link, LogPull(0))  # however short: it replaces ours from the fork on
        elif their_epoch < my_epoch:
            pass  # they pull ours
        elif theirs.log_length > mine.log_length:
            self._send(now, link, LogPull(mine.log_length))
        elif theirs.log_length == mine.log_length and theirs.log_hash != mine.log_hash:
            self._send(now, link, LogPull(0))
        elif theirs.log_length == mine.log_length and theirs.ring_hash != mine.ring_hash:
            for index in range(len(self._shared.hello().ranges)):
                self._send(now, link, RingBuckets(index, self._shared.ring_bucket_hashes(index), True))

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
        if new_log or new_ring or moved:
            if not push.repair:
                link.gossip.eager = True
            else:
                self._graft(now, link)
            if new_log or new_ring:
                self._spread_shared(now, link, log_start=before, log=new_log, ring=new_ring)
            for mark in moved:
                self._note_moved(mark, {link.id})
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
            if applied.equal and delta.origin in self._moved:
                self._moved[delta.origin].sources.add(link.id)
            if applied.gap and applied.before is not None:
                gaps.append(applied.before)
            if applied.new and applied.before is not None:
                moved.setdefault(delta.origin, applied.before)
                self._moved_at = now
                self._pulled.pop(delta.origin, None)
                self._on_applied(now, delta.origin, applied)
        wanted = self._not_pulled_yet(now, gaps)
        if wanted:
            self._send(now, link, RecordPull(tuple(wanted)))
        return list(moved.values()), bool(gaps) or is_held_back

    def _note_refusal(self, now: float, origin: PeerId, text: str) -> None:
        if text and now >= self._noted.get(origin, float("-inf")) + _REFUSAL_NOTE_PAUSE_S:
            if len(self._noted) > _MARKS_PER_PAGE:
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

    def _repair(self, now: float, link: Link, pages: Iterable[Push]) -> None:
        burst_bytes = 0
        for page in pages:
            if burst_bytes == 0:
                self._graft(now, link)
            self._send(now, link, page)
            burst_bytes += len(encode(page))
            if burst_bytes >= REPAIR_BURST_BYTES:
                return

    # --- repair of log and ring ---

    def on_log_pull(self, now: float, link: Link, pull: LogPull) -> None:
        log = self._shared.log_from(pull.start)
        if log:
            self._repair(now, link, _pages(pull.start, log, (), (), repair=True))

    def on_ring_buckets(self, now: float, link: Link, theirs: RingBuckets) -> None:
        if theirs.range_index >= len(self._shared.hello().ranges):
            return
        mine = self._shared.ring_bucket_hashes(theirs.range_index)
        differing = [bucket for bucket in range(DIGEST_BUCKETS) if mine[bucket] != theirs.hashes[bucket]]
        if not differing:
            if theirs.reply:
                self._send_digest(now, link, self.digest())
            return
        if theirs.reply:
            link.gossip.repair_after = now + REPAIR_INTERVAL_S
            self._send(now, link, RingBuckets(theirs.range_index, mine, False))
        delta = self._shared.ring_buckets(theirs.range_index, differing)
        if delta.segments:
            self._repair(now, link, _pages(0, (), (delta,), (), repair=True))

    # --- repair of records ---

    def on_record_buckets(self, now: float, link: Link, theirs: RecordBuckets) -> None:
        mine = self._records.bucket_hashes()
        differing = {bucket for bucket in range(DIGEST_BUCKETS) if mine[bucket] != theirs.hashes[bucket]}
        if not differing:
            self._send_digest(now, link, self.digest())
            return
        link.gossip.repair_after = now + REPAIR_INTERVAL_S
        buckets: list[int] = []
        marks: list[Mark] = []
        for bucket, found in self._records.marks_by_bucket(differing).items():
            if marks and len(marks) + len(found) > _MARKS_PER_PAGE:
                self._send(now, link, RecordMarks(tuple(buckets), tuple(marks)))
                buckets, marks = [], []
            buckets.append(bucket)
            marks.extend(found)
        self._send(now, link, RecordMarks(tuple(buckets), tuple(marks)))

    def on_record_marks(self, now: float, link: Link, theirs: RecordMarks) -> None:
        """Pull where they are ahead, push where we are."""
        buckets = {bucket for bucket in theirs.buckets if bucket < DIGEST_BUCKETS}
        found = self._records.marks_by_bucket(buckets)
        ours = {mark.origin: mark for marks in found.values() for mark in marks}
        behind: list[Mark] = []
        ahead: list[Mark] = []
        for mark in theirs.marks:
            mine = ours.pop(mark.origin, None) or self._records.mark(mark.origin)
            if mark.origin == self._own:
                self._records.told_of_us(mark.incarnation, mark.top)
            if (mine.incarnation, mine.top) < (mark.incarnation, mark.top):
                behind.append(mine)
            elif (mine.incarnation, mine.top) > (mark.incarnation, mark.top):
                ahead.append(mark)
        ahead += [Mark(origin, 0, 0) for origin in ours]
        wanted = self._not_pulled_yet(now, behind)
        for start in range(0, len(wanted), _MARKS_PER_PAGE):
            self._send(now, link, RecordPull(tuple(wanted[start : start + _MARKS_PER_PAGE])))
        self._answer(now, link, ahead)

    def on_record_pull(self, now: float, link: Link, pull: RecordPull) -> None:
        self._answer(now, link, pull.marks)

    def _answer(self, now: float, link: Link, marks: Iterable[Mark]) -> None:
        deltas = (delta for mark in marks for delta in self._records.deltas(now, mark))
        self._repair(now, link, _pages(0, (), (), deltas, repair=True))

    def _not_pulled_yet(self, now: float, marks: list[Mark]) -> list[Mark]:
        """Those that were not asked of another link a moment ago: a new peer asks each of its links once for
        everything otherwise."""
        if len(self._pulled) > 2 * _MARKS_PER_PAGE:
            self._pulled = {origin: until for origin, until in self._pulled.items() if until > now}
        wanted = [mark for mark in marks if self._pulled.get(mark.origin, float("-inf")) <= now]
        for mark in wanted:
            self._pulled[mark.origin] = now + PULL_PENDING_S
        return wanted


def _pages(
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


__all__ = ["MalformedDelta", "Replication"]
