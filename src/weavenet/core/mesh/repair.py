"""Repair: whatever a push did not bring is found by digests and fetched.

A digest goes out once per link and change, and not at all when the peer's own digest already showed the same; so on
most lazy links one of the two sides speaks. Who hears a differing digest owns the repair and repeats it with its beats.
While news comes in, a difference in records is left to it for some pauses: it is on its way most likely.

Termination: a repair is started only by a digest that differs, at most one per link and interval, and each of its
messages is answered at most once by messages of a lower kind (digest > buckets > marks > pull > push). What is pushed
is split into pages; the answer to one pull stops after a burst and the next digest goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from weavenet.core.deadlines import earliest
from weavenet.core.effects import Outbox, Send
from weavenet.core.limits import (
    DIGEST_BUCKETS,
    PULL_PENDING_S,
    REPAIR_BURST_BYTES,
    REPAIR_INTERVAL_S,
    REPAIR_QUIET_PUSHES,
    REPAIR_WAIT_PUSHES,
)
from weavenet.core.mesh.links import Gossip, Link, Links
from weavenet.core.mesh.pacing import Pacing
from weavenet.core.mesh.pages import MARKS_PER_PAGE, pages
from weavenet.core.mesh.records import Records
from weavenet.core.mesh.shared import Shared
from weavenet.core.messages import Message, encode
from weavenet.core.messages.gossip import LogPull, Mark, Push, RecordBuckets, RecordMarks, RecordPull, RingBuckets
from weavenet.core.messages.link import Digest
from weavenet.core.types import PeerId

_DIGEST_REPEAT_S = 10.0
_REPAIR_TRIES = 3


class Repair:
    """``graft(now, link)``: called when a repair over ``link`` had something to repair."""

    def __init__(
        self,
        *,
        own: PeerId,
        records: Records,
        links: Links,
        shared: Shared,
        outbox: Outbox,
        pacing: Pacing,
        graft: Callable[[float, Link], None],
    ) -> None:
        self._own = own
        self._records = records
        self._links = links
        self._shared = shared
        self._outbox = outbox
        self._pacing = pacing
        self._graft = graft
        self._pulled: dict[PeerId, float] = {}
        self._repair_at: float | None = None

    def deadline(self) -> float | None:
        return self._repair_at

    def tick(self, now: float) -> None:
        """Begin what waited for news to end."""
        if self._repair_at is not None and now >= self._repair_at:
            self._repair_at = None
            mine = self.digest()
            for link in self._links.established():
                self._start_repair(now, link, mine)

    def _send(self, now: float, link: Link, message: Message) -> None:
        link.used_at = now
        self._outbox.append(Send(link.id, message))

    # --- digests ---

    def digest(self) -> Digest:
        shared = self._shared
        root, ring, length, log = self._records.root, shared.ring_hash(), shared.log_length(), shared.log_hash()
        return Digest(root, ring, length, log, *shared.log_epoch())

    def beat(self, now: float, link: Link, mine: Digest) -> None:
        """Beside a heartbeat: tell news, repeat our digest now and then, go on with a repair."""
        gossip = link.gossip
        self.tell(now, link, mine)
        if now >= gossip.sent_at + _DIGEST_REPEAT_S:
            self.send_digest(now, link, mine)
        self._start_repair(now, link, mine)

    def tell(self, now: float, link: Link, mine: Digest) -> None:
        if mine not in (link.gossip.sent, link.gossip.theirs):
            self.send_digest(now, link, mine)

    def send_digest(self, now: float, link: Link, digest: Digest) -> None:
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
        """A push is on its way for most differences of records, and for more of them while others come in: those are
        left to it for a while, unless nobody else was asked for everything yet, or what we ask of this link is news."""
        if gossip.is_feeding:
            return now
        others = (link.gossip for link in self._links.established() if link.gossip is not gossip)
        if not any(other.has_agreed or other.repair_after for other in others):
            return now
        since = now if gossip.differs_since is None else gossip.differs_since
        quiet_at = max(since, self._pacing.moved_at) + self._pacing.pause_s(REPAIR_QUIET_PUSHES)
        return min(quiet_at, since + self._pacing.pause_s(REPAIR_WAIT_PUSHES))

    def _start_repair(self, now: float, link: Link, mine: Digest) -> None:
        gossip = link.gossip
        theirs = gossip.theirs
        if not gossip.tries or now < gossip.repair_after:
            return
        if theirs is None or theirs == mine:
            gossip.tries = 0
            gossip.differs_since = None
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

    def _repair(self, now: float, link: Link, messages: Iterable[Push]) -> None:
        burst_bytes = 0
        for page in messages:
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
            self._repair(now, link, pages(pull.start, log, (), (), repair=True))

    def on_ring_buckets(self, now: float, link: Link, theirs: RingBuckets) -> None:
        if theirs.range_index >= len(self._shared.hello().ranges):
            return
        mine = self._shared.ring_bucket_hashes(theirs.range_index)
        differing = [bucket for bucket in range(DIGEST_BUCKETS) if mine[bucket] != theirs.hashes[bucket]]
        if not differing:
            if theirs.reply:
                self.send_digest(now, link, self.digest())
            return
        if theirs.reply:
            link.gossip.repair_after = now + REPAIR_INTERVAL_S
            self._send(now, link, RingBuckets(theirs.range_index, mine, False))
        delta = self._shared.ring_buckets(theirs.range_index, differing)
        if delta.segments:
            self._repair(now, link, pages(0, (), (delta,), (), repair=True))

    # --- repair of records ---

    def on_record_buckets(self, now: float, link: Link, theirs: RecordBuckets) -> None:
        mine = self._records.bucket_hashes()
        differing = {bucket for bucket in range(DIGEST_BUCKETS) if mine[bucket] != theirs.hashes[bucket]}
        if not differing:
            self.send_digest(now, link, self.digest())
            return
        link.gossip.repair_after = now + REPAIR_INTERVAL_S
        buckets: list[int] = []
        marks: list[Mark] = []
        for bucket, found in self._records.marks_by_bucket(differing).items():
            if marks and len(marks) + len(found) > MARKS_PER_PAGE:
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
        self.pull(now, link, behind)
        self._answer(now, link, ahead)

    def on_record_pull(self, now: float, link: Link, pull: RecordPull) -> None:
        self._answer(now, link, pull.marks)

    def _answer(self, now: float, link: Link, marks: Iterable[Mark]) -> None:
        deltas = (delta for mark in marks for delta in self._records.deltas(now, mark))
        self._repair(now, link, pages(0, (), (), deltas, repair=True))

    def pull(self, now: float, link: Link, marks: list[Mark]) -> None:
        """Ask ``link`` for what comes after ``marks``."""
        wanted = self._not_pulled_yet(now, marks)
        for start in range(0, len(wanted), MARKS_PER_PAGE):
            self._send(now, link, RecordPull(tuple(wanted[start : start + MARKS_PER_PAGE])))

    def pulled(self, origin: PeerId) -> None:
        """What was asked for of ``origin`` has come."""
        self._pulled.pop(origin, None)

    def _not_pulled_yet(self, now: float, marks: list[Mark]) -> list[Mark]:
        """Those that were not asked of another link a moment ago: a new peer asks each of its links once for
        everything otherwise."""
        if len(self._pulled) > 2 * MARKS_PER_PAGE:
            self._pulled = {origin: until for origin, until in self._pulled.items() if until > now}
        wanted = [mark for mark in marks if self._pulled.get(mark.origin, float("-inf")) <= now]
        for mark in wanted:
            self._pulled[mark.origin] = now + PULL_PENDING_S
        return wanted
