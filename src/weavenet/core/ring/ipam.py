"""IPAM of one peer: its estate, the commands of its containers, and space to and from other peers.

Only an owner grants or re-versions its own usable space. A grant is final: it is durable before it is sent, repeated
for the same request, and never given to anybody else, since in the ring it belongs to the requester from then on. Own
touching segments are joined under one stamp now and then (compaction), so that grants do not fragment the ring.

It does not replicate the ring (:meth:`Ipam.take_delta` says what to push), decide the genesis, or talk to the bridge.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from weavenet.core.commands import Command
from weavenet.core.config import NodeConfig
from weavenet.core.deadlines import earliest
from weavenet.core.effects import Change, Outbox
from weavenet.core.limits import SEGMENTS_MAX, STAMP_VERSION_MAX
from weavenet.core.messages.gossip import RingDelta
from weavenet.core.messages.unicast import SpaceDenied, SpaceGrant, SpaceRequest
from weavenet.core.ranges import RANGE_BITS, base, by_range, placed, told
from weavenet.core.report import IpamReport
from weavenet.core.ring.allocation import Allocation, taken
from weavenet.core.ring.estate import Estate
from weavenet.core.ring.genesis import seed_owner
from weavenet.core.ring.granting import Given, Grants, choose_block, next_stamp
from weavenet.core.ring.log import Log
from weavenet.core.ring.reporting import ipam_report
from weavenet.core.ring.seedshare import SeedShare
from weavenet.core.ring.seeking import Need, Seeker
from weavenet.core.ring.segments import Ring, SegmentsInvalid
from weavenet.core.types import PeerId, Segment

COMPACT_INTERVAL_S = 60.0
"""Own touching segments are joined at most this often: each time costs one gossiped change."""
DELTA_SEGMENTS_MAX = 512
"""Segments per pushed delta: about 25 kB, well inside a page."""


class Ipam:
    """``incarnation`` grows from start to start in its bits above the lowest 32. Raises WeaveError for unreadable
    rows."""

    def __init__(  # noqa: PLR0917
        self,
        config: NodeConfig,
        log: Log,
        disk: Mapping[tuple[str, bytes], bytes],
        outbox: Outbox,
        rng: random.Random,
        incarnation: int,
    ) -> None:
        self._config = config
        self._log = log
        self._outbox = outbox
        self.estate = Estate(config, log, disk, outbox)
        self.allocation = Allocation(self.estate, config.default_subnets)
        self.seeker = Seeker(incarnation, outbox, rng)
        self._grants = Grants(disk)
        self._reachable: frozenset[PeerId] = frozenset()
        self.seed_share = SeedShare(config, log, self.estate, disk, outbox)
        self._reclaiming: Need | None = None
        self._reclaim_at: float | None = None
        self._compact_at: float | None = None
        self._news: list[Segment] = []

    def start(self, now: float) -> None:
        """Persist what loading put right; go on claiming back what is blocked."""
        self.estate.store_repairs()
        self._want_compaction(now)
        self._pump(now)

    # --- views ---

    @property
    def ring(self) -> Ring:
        return self.estate.ring

    @property
    def ring_hash(self) -> bytes:
        return self.estate.ring.hash

    @property
    def has_ring(self) -> bool:
        return self.estate.has_ring

    @property
    def used(self) -> bool:
        """Was anything ever allocated, claimed or granted here? Durable; a used singleton does not yield."""
        return self.estate.used

    @property
    def active(self) -> int:
        """Addresses in use on this host."""
        return len(self.estate.holdings.by_offset)

    @property
    def needs_genesis(self) -> bool:
        """A request waits for the first division of addresses."""
        return bool(self.allocation.waiting) and not self.estate.has_ring

    def blocked(self) -> tuple[tuple[str, str], ...]:
        """(ident, address) whose frames the bridge must drop, sorted."""
        return self.estate.blocked.pairs()

    def owns_space(self, peer: PeerId) -> bool:
        return peer in self.estate.ring.shares

    def bucket_hashes(self, range_index: int) -> tuple[bytes, ...]:
        return self.estate.ring.bucket_hashes(range_index)

    def buckets(self, range_index: int, buckets: Sequence[int]) -> RingDelta:
        """The ring's content in the given 64ths of the range."""
        ring = self.estate.ring
        pieces = [piece for bucket in buckets for piece in ring.within(*ring.bucket_bounds(bucket, range_index))]
        return RingDelta(range_index, len(self._log), told(range_index, Ring(ring.sizes, pieces).segments))

    def report(
        self,
        now: float,
        *,
        label: Callable[[PeerId], tuple[str, str]],
        unreachable_since: Callable[[PeerId], float | None],
        container: Callable[[str], str] = str,
    ) -> IpamReport:
        """What ``status ipam`` shows, except for what only the election knows (quorum, missing electors)."""
        return ipam_report(
            now,
            estate=self.estate,
            waiting=self.allocation.waiting.values(),
            seeker=self.seeker,
            reachable=self._reachable,
            default_subnets=self._config.default_subnets,
            label=lambda peer: self._label(peer, label),
            unreachable_since=unreachable_since,
            container=container,
        )

    def _label(self, peer: PeerId, known: Callable[[PeerId], tuple[str, str]]) -> tuple[str, str]:
        """Names also the virtual owners of seeds, which are nobody's record."""
        for name in self._config.seeds:
            if peer == seed_owner(name, self._config.seed_salt):
                return name, "seed, not started yet"
        return known(peer)

    def check(self) -> None:
        """Raises InvariantBroken when the state is not sound."""
        self.estate.check()

    # --- the ring, as the node feeds it ---

    def adopt_genesis(self, now: float) -> None:
        """The log just got its genesis: make the ring and serve who waited for it."""
        self.estate.adopt_genesis()
        self._take_share()
        self._pump(now)

    def forget(self) -> None:
        """Yield: drop the ring, which nobody used. What waits goes on waiting for the other cluster's."""
        self.estate.forget()
        self._outbox.persist(*self._grants.forget_all(), *self.seed_share.forget())
        self.seeker.clear()
        self._news.clear()

    def allow_binding(self, now: float) -> None:
        """The share of our seed may be taken, see :meth:`SeedShare.allow`."""
        self.seed_share.allow()
        if self._take_share():
            self._pump(now)

    def _take_share(self) -> bool:
        changed = self.seed_share.take()
        if changed is None:
            return False
        self._news.extend(changed)
        return True

    def merge_ring(self, now: float, delta: RingDelta) -> RingDelta | None:
        """Merge what others know; what was new, durable here, to be passed on."""
        if not self._is_range(delta) or self._log.chain.ring_gap(delta.log_length, delta.segments) is not None:
            return None
        changed = self.estate.learn(self._credible(placed(delta.range_index, delta.segments)))
        if not changed:
            return None
        self._after_change(now, changed)
        self._pump(now)
        return RingDelta(delta.range_index, len(self._log), told(delta.range_index, changed))

    def _is_range(self, body: RingDelta | SpaceRequest | SpaceGrant) -> bool:
        return body.range_index < len(self.estate.ring.sizes)

    def set_leased(self, now: float, is_leased: bool) -> None:
        """False for an ephemeral peer without a lease: it neither gives out nor grants."""
        if self.estate.is_leased != is_leased:
            self.estate.is_leased = is_leased
            self._pump(now)

    # --- what was a removed peer's ---

    @property
    def inherits(self) -> bool:
        """Some range is still stamped with a removed peer that we stand for."""
        return self.estate.inherits

    @property
    def held(self) -> tuple[tuple[int, int], ...]:
        """Intervals of offsets that are ours and not usable yet."""
        return tuple(self.estate.space.held) if self.holds else ()

    @property
    def holds(self) -> bool:
        """Whether anything of ours is not usable yet."""
        return self.estate.space.held.total > 0

    @property
    def may_own(self) -> bool:
        """May space be given to us, as to an heir?"""
        return self.could_own and self.estate.may_use

    @property
    def could_own(self) -> bool:
        """The same, leaving aside whether we leave."""
        return self.estate.is_on and self.estate.has_ring and self.estate.me not in self._log.removed

    def inherit(self) -> None:
        """Stamp what belonged to those we stand for as ours, on hold."""
        self._news.extend(self.estate.inherit())

    def held_segments(self) -> tuple[Segment, ...]:
        """What is on hold, with its stamps."""
        return tuple(piece for low, high in self.held for piece in self.estate.ring.within(low, high))

    def dominates(self, delta: RingDelta) -> bool:
        """Whether our ring already says all that ``delta`` does, or something newer."""
        if not self._is_range(delta):
            return False
        try:
            return not self.estate.ring.merge(placed(delta.range_index, delta.segments))[1]
        except SegmentsInvalid:
            return False

    def release_held(self, now: float) -> int:
        """What was on hold is usable; the number of addresses."""
        released = self.estate.release()
        self._want_compaction(now)
        self._pump(now)
        return released

    # --- leaving, and those who left ---

    @property
    def free_addresses(self) -> tuple[int, ...]:
        """Of each range."""
        space = self.estate.space
        free = [space.free.count(base(n), base(n) + size) for n, size in enumerate(space.ring.sizes)]
        for offset in space.resting:
            free[offset >> RANGE_BITS] += 1
        return tuple(free)

    def set_leaving(self, now: float, is_leaving: bool) -> None:
        """While leaving nothing is allocated, granted, asked for or bound."""
        self.estate.leaving = is_leaving
        self._pump(now)

    def vacate(self, now: float) -> None:
        """No container of this host is on the network any more, and none comes back: free everything, refuse who
        waits."""
        self.allocation.close(now)
        self._pump(now)

    def surrender(self, heirs: Mapping[PeerId, Sequence[int]]) -> frozenset[PeerId]:
        """Give all our space to ``heirs`` (→ their free addresses of each range); those of them that got some."""
        given = self.estate.surrender(heirs)
        self._news.extend(given)
        return frozenset(piece.stamp.owner for piece in given)

    def succeed(self, now: float) -> None:
        """Take what strayed to peers that left in our favour."""
        taken = self.estate.succeed()
        if taken:
            self._news.extend(taken)
            self._after_change(now, taken)
            self._pump(now)

    def dismiss(self, gone: Iterable[PeerId]) -> None:
        """These were removed, or left: what they were given is not to be repeated to them any more."""
        self._outbox.persist(*self._grants.forget(gone))

    def _credible(self, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        """Without versions that counting cannot have reached: one above them would not fit on the wire."""
        found = tuple(segment for segment in segments if segment.stamp.version <= STAMP_VERSION_MAX)
        if len(found) < len(segments):
            self._outbox.note("warning", "ipam", "ignored ring segments with an impossible version")
        return found

    def set_reachable(self, now: float, peers: frozenset[PeerId]) -> None:
        if peers != self._reachable:
            self._reachable = peers
            self._pump(now)

    def take_delta(self) -> RingDelta | None:
        """Own ring changes to push, a page of one range at a time; None when all were taken."""
        if not self._news:
            return None
        number = self._news[0].start >> RANGE_BITS
        page = [piece for piece in self._news[:DELTA_SEGMENTS_MAX] if piece.start >> RANGE_BITS == number]
        rest = [piece for piece in self._news[:DELTA_SEGMENTS_MAX] if piece.start >> RANGE_BITS != number]
        self._news = rest + self._news[DELTA_SEGMENTS_MAX:]
        return RingDelta(number, len(self._log), told(number, Ring(self.estate.ring.sizes, page).segments))

    # --- commands and time ---

    def command(self, now: float, request: int, command: Command) -> bool:
        """Answer a command now or later; False when it is not about addresses."""
        handled = self.allocation.command(now, request, command)
        if self.allocation.stirred:
            self._pump(now)
        return handled

    def cancel(self, request: int) -> None:
        """Its client went away. The need for space is dropped with the next event that looks at it."""
        self.allocation.cancel(request)

    def deadline(self) -> float | None:
        times = (self.allocation.deadline(), self.seeker.deadline(), self._reclaim_at, self._compact_at)
        return earliest(times)

    def tick(self, now: float) -> None:
        self.allocation.tick(now)
        if self._compact_at is not None and now >= self._compact_at:
            self._compact_at = None
            self._compact()
        self._pump(now)

    # --- messages between peers ---

    def body(self, now: float, source: PeerId, body: SpaceRequest | SpaceGrant | SpaceDenied) -> None:
        match body:
            case SpaceRequest():
                self._requested(now, source, body)
            case SpaceGrant():
                self._granted(now, source, body)
            case SpaceDenied():
                self._denied(now, source, body)

    def _requested(self, now: float, source: PeerId, body: SpaceRequest) -> None:
        estate = self.estate
        if source == estate.me or self._log.is_gone(source) or not estate.has_ring:
            return
        last = self._grants.last(source)
        if last is not None and body.request <= last.request:
            if body.request == last.request:
                self._answer(source, last)
            return
        denial = ""
        chosen: tuple[int, int] | None = None
        if self._is_range(body) and body.low < body.high <= estate.ring.sizes[body.range_index] and estate.may_use:
            low, high = base(body.range_index) + body.low, base(body.range_index) + body.high
            if len(estate.ring.segments) + 2 > SEGMENTS_MAX:
                self._outbox.note("warning", "ipam", f"gave no space: the ring has {SEGMENTS_MAX} segments")
            elif body.exact:
                denial = self._holder_within(low, high)
                chosen = None if denial or not estate.space.owns_all(low, high) else (low, high)
            else:
                estate.space.wake(now)
                chosen = choose_block(estate.space.free, low, high)
        if chosen is None:
            self._outbox.unicast(source, SpaceDenied(body.request, denial))
        else:
            self._give(now, source, body.request, *chosen)

    def _give(self, now: float, requester: PeerId, request: int, low: int, high: int) -> None:
        """One step to disk: the space is the requester's, and the answer is remembered."""
        segment = Segment(low, high, next_stamp(self.estate.ring.within(low, high), requester))
        ((number, segments),) = by_range((segment,))
        given = Given(request, segments, number)
        rows = self.retire(segment)
        self._outbox.persist(*rows, self._grants.remember(requester, given), *self.estate.use())
        self._answer(requester, given)
        self._after_change(now, (segment,))
        self._news.append(segment)

    def retire(self, segment: Segment) -> list[Change]:
        """Take granted space out of our hands for ever; the rows that make it so."""
        return self.estate.merge((segment,))[1]

    def _answer(self, requester: PeerId, given: Given) -> None:
        self._outbox.unicast(requester, SpaceGrant(given.request, given.range_index, len(self._log), given.segments))

    def _holder_within(self, low: int, high: int) -> str:
        """Who here uses an address of [low, high), in words; empty when nobody does."""
        held = self.estate.holdings.within(low, high)
        if not held:
            return ""
        return f"{self.estate.holdings.by_offset[held[0]].ident} on {self._config.nickname or self._config.name}"

    def _granted(self, now: float, source: PeerId, body: SpaceGrant) -> None:
        if not self._is_range(body) or self._log.chain.ring_gap(body.log_length, body.segments) is not None:
            return  # asked again until our log has caught up
        changed = self.estate.learn(self._credible(placed(body.range_index, body.segments)))
        ask = self.seeker.answered(source, body.request)
        if changed:
            self._after_change(now, changed)
            self._news.extend(changed)
        elif ask is not None:
            self.seeker.denied(now, ask)  # it taught nothing and did not help: somebody else's turn
        self._pump(now)

    def _denied(self, now: float, source: PeerId, body: SpaceDenied) -> None:
        ask = self.seeker.answered(source, body.request)
        if ask is None:
            return
        self.seeker.denied(now, ask)
        if ask.need.exact and body.taken_by and self.estate.area is not None:
            self.allocation.refuse(ask.need, taken(self.estate.area.address(ask.need.low), body.taken_by))
        if ask.need == self._reclaiming:
            self._reclaiming = None
            if ask.need.low in self.estate.blocked:
                self._outbox.persist(*self.estate.blocked.refused(now, ask.need.low, body.taken_by))
        self._pump(now)

    # --- own changes ---

    def _pump(self, now: float) -> None:
        """Serve who can be served, and go after what the others need."""
        is_staying = not self.estate.leaving
        needs = self.allocation.serve(now) if self.allocation.waiting and is_staying else []
        self.allocation.stirred = False
        self._reclaim_at = None
        if not self.estate.is_leased:
            needs = []  # nobody's space is of use now
        elif self.estate.blocked and is_staying:
            needs += self._reclaim(now)
        if needs:
            self.seeker.seek(now, needs, self._owners, self._reachable)
        elif not self.seeker.is_idle:
            self.seeker.clear()

    def _reclaim(self, now: float) -> list[Need]:
        """The one blocked address to claim back next, if its owner can be asked."""
        blocked = self.estate.blocked
        self._reclaim_at = blocked.deadline(now)
        current = self._reclaiming
        if current is not None and current in self.seeker.asks and current.low in blocked:
            return [current]
        for offset in blocked.due(now):
            need = Need(offset, offset + 1, exact=True)
            if any(owner in self._reachable for owner in self._owners(need)):
                self._reclaiming = need
                return [need]
        self._reclaiming = None
        return []

    def _owners(self, need: Need) -> Mapping[PeerId, int]:
        """Others who have space in the window (heirs for the removed) → how much."""
        shares: dict[PeerId, int] = {}
        for piece in self.estate.ring.within(need.low, need.high):
            owner = self._log.heir(piece.stamp.owner)
            if owner != self.estate.me:
                shares[owner] = shares.get(owner, 0) + piece.end - piece.start
        return shares

    def _after_change(self, now: float, changed: Sequence[Segment]) -> None:
        if any(piece.stamp.owner == self.estate.me for piece in changed):
            self._want_compaction(now)

    def _want_compaction(self, now: float) -> None:
        if self._compact_at is None and self.estate.has_ring:
            self._compact_at = now + COMPACT_INTERVAL_S

    def _compact(self) -> None:
        if not self.estate.may_use:
            return
        runs: list[list[Segment]] = []
        for segment in self.estate.ring.segments:
            if segment.stamp.owner != self.estate.me or self.estate.space.held.count(segment.start, segment.end):
                continue
            if runs and runs[-1][-1].end == segment.start:
                runs[-1].append(segment)
            else:
                runs.append([segment])
        joined = [Segment(run[0].start, run[-1].end, next_stamp(run, self.estate.me)) for run in runs if len(run) > 1]
        if joined:
            self._news.extend(self.estate.learn(joined))
