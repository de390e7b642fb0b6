"""What the heir of removed peers does before it may use their addresses: two rounds among everybody known.

Round 1: each known, not removed peer says that it has applied the removal (links and data paths to the removed are
closed, durably), and the heir merges its ring. Only then the heir stamps what still belongs to the removed, on *hold*:
a grant that anybody known had heard of is honoured (history *remove-hides-grant*). Round 2: each of them says that it
holds the stamped ranges and has blocked what it lost by them. Then the hold ends.

The heir asks, the others answer: they keep no state, the heir's may be memory only, and a lost message or a restart of
either side costs one more question. A new decree of removal starts over, since an answer given before it may miss what
that removed peer told its neighbours afterwards. Whoever becomes known meanwhile has to answer both rounds too.

Durable: what is on hold (``Estate``) and up to which decree all was collected (table ``collect``). An heir that
restarts in between begins again with round 1, behind the hold.

What this does not do: decide removals, close links, answer the operator.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

import msgspec

from weavenet.core.effects import Change, Outbox
from weavenet.core.limits import COLLECT_RETRY_S
from weavenet.core.mesh.pages import read_page
from weavenet.core.messages import MalformedMessage
from weavenet.core.messages.gossip import Push, RingDelta
from weavenet.core.messages.unicast import (
    AppliedAnswer,
    AppliedQuery,
    HoldAnswer,
    HoldQuery,
    RingPage,
    RingPull,
    StampAnswer,
    StampPage,
)
from weavenet.core.ring import Ipam, Log
from weavenet.core.ring.pages import delta_pages
from weavenet.core.types import Bytes16, PeerId, Remove, Uint

TABLE = "collect"
_DONE = b"done"

CollectMessage = AppliedQuery | AppliedAnswer | RingPull | RingPage | StampPage | StampAnswer | HoldQuery


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """An entry of the log: its number and hash."""

    number: Uint
    entry: Bytes16


class State(Protocol):
    """Ring and log as they travel in pages."""

    def ring_hash(self) -> bytes: ...
    def log_length(self) -> int: ...
    def pages(self, log_start: int) -> list[Push]: ...
    def merge_page(self, now: float, page: Push) -> bool: ...
    def merge_ring(self, now: float, delta: RingDelta) -> RingDelta | None: ...


class _Answers(msgspec.Struct):
    """What one peer has confirmed in this session."""

    applied: bool = False
    ring_hash: bytes = b""
    pages: set[int] = msgspec.field(default_factory=set)
    stamped: set[int] = msgspec.field(default_factory=set)


class Collect:
    """``known()``: everybody who has to confirm, ourselves and the removed excluded. ``reachable()``: who can be asked.
    ``spread(now, delta)`` passes on what a page taught us."""

    def __init__(
        self,
        *,
        me: PeerId,
        log: Log,
        ipam: Ipam,
        state: State,
        done_row: bytes | None,
        outbox: Outbox,
        rng: random.Random,
        known: Callable[[], frozenset[PeerId]],
        reachable: Callable[[], frozenset[PeerId]],
        spread: Callable[[float, RingDelta], None],
    ) -> None:
        self._me = me
        self._log = log
        self._ipam = ipam
        self._state = state
        self._outbox = outbox
        self._rng = rng
        self._known = known
        self._reachable = reachable
        self._spread = spread
        self._done = None if done_row is None else msgspec.msgpack.decode(done_row, type=Mark)
        self._goal: Mark | None = None
        self._session = 0
        self._answers: dict[PeerId, _Answers] = {}
        self._stamps: list[RingDelta] | None = None
        """Pages of round 2; None while round 1 lasts."""
        self._ask_at = 0.0
        self._seen_log = b""
        self._is_needed = False

    @staticmethod
    def disk_key() -> tuple[str, bytes]:
        return TABLE, _DONE

    # --- views ---

    @property
    def is_needed(self) -> bool:
        """We stand for somebody removed whose addresses are not usable yet."""
        if self._log.hash != self._seen_log:
            self._seen_log = self._log.hash
            self._is_needed = self._has_uncollected()
        return self._is_needed or self._ipam.holds or self._ipam.inherits

    def _has_uncollected(self) -> bool:
        log, done = self._log, self._done
        if self._me in log.removed:
            return False
        first = 0 if done is None or not log.chain.holds(done.number, done.entry) else done.number + 1
        return any(
            position.number >= first and log.heir(peer) == self._me for peer, (_, position) in log.removed.items()
        )

    @property
    def waiting_for(self) -> tuple[PeerId, ...]:
        """Who has not confirmed the present round yet, or an earlier one."""
        if not self.is_needed:
            return ()
        has_answered = self._has_applied if self._stamps is None else self._is_complete
        return tuple(sorted(peer for peer in self._known() if not has_answered(peer)))

    def _has_applied(self, peer: PeerId) -> bool:
        answers = self._answers.get(peer)
        return answers is not None and answers.applied

    def _is_complete(self, peer: PeerId) -> bool:
        answers = self._answers.get(peer)
        if answers is None or not answers.applied or self._stamps is None:
            return False
        return len(answers.stamped) == len(self._stamps)

    def deadline(self) -> float | None:
        return self._ask_at if self.is_needed else None

    # --- the heir ---

    def advance(self, now: float) -> None:
        """Go on with the rounds as far as answers allow; ask again whom nothing was heard from."""
        if not self.is_needed:
            return
        self._begin(now)
        known = self._known()
        has_round_one = all(map(self._has_applied, known))
        if has_round_one and (self._stamps is None or self._ipam.inherits):
            self._stamp(now)
        if self._stamps is not None and all(self._is_complete(peer) for peer in known):
            self._finish(now)
        elif now >= self._ask_at:
            self._ask(now, known)

    def force(self, now: float) -> None:
        """An operator takes the responsibility: what we inherited is usable at once."""
        if not self.is_needed:
            return
        self._begin(now)
        names = ", ".join(peer.hex() for peer in self.waiting_for)
        self._ipam.inherit()
        self._outbox.note("warning", "removal", f"hold ended by force without {names}: addresses may be used twice")
        self._finish(now)

    def restart(self) -> None:
        """Somebody left, whose word counted or was waited for: its custodians have to answer anew, now that they know
        what it knew."""
        self._seen_log = b""
        self._goal, self._answers, self._stamps = None, {}, None

    def _begin(self, now: float) -> None:
        """Start over when another peer was removed since."""
        goal = self._last_removal()
        if goal == self._goal:
            return
        self._goal = goal
        self._session = self._rng.getrandbits(62)
        self._answers = {}
        self._stamps = None
        self._ask_at = now

    def _last_removal(self) -> Mark | None:
        for number in range(len(self._log) - 1, 0, -1):
            if isinstance(self._log.entries[number].decree, Remove):
                return Mark(number, self._log.chain.hashes[number])
        return None

    def _stamp(self, now: float) -> None:
        self._ipam.inherit()
        segments = self._ipam.held_segments()
        self._stamps = list(delta_pages(segments, self._state.log_length()))
        self._session = self._rng.getrandbits(62)
        for answers in self._answers.values():
            answers.stamped.clear()
        self._ask_at = now

    def _finish(self, now: float) -> None:
        goal = self._goal
        if goal is None:
            return
        self._done = goal
        self._seen_log = b""
        self._outbox.persist(Change(TABLE, _DONE, msgspec.msgpack.encode(goal)))
        addresses = self._ipam.release_held(now)
        self._goal, self._answers, self._stamps = None, {}, None
        if addresses:
            self._outbox.note("info", "removal", f"{addresses} inherited addresses are usable now")

    def _ask(self, now: float, known: frozenset[PeerId]) -> None:
        self._ask_at = now + COLLECT_RETRY_S
        goal = self._goal
        reachable = self._reachable()
        for peer in sorted(known & reachable):
            answers = self._answers.setdefault(peer, _Answers())
            if not answers.applied and goal is not None:
                self._outbox.unicast(peer, AppliedQuery(self._session, goal.number, goal.entry))
            for page, delta in enumerate(self._stamps or ()):
                if page not in answers.stamped:
                    self._outbox.unicast(peer, StampPage(self._session, page, delta))

    # --- messages ---

    def handle(self, now: float, source: PeerId, message: CollectMessage) -> None:
        match message:
            case AppliedQuery():
                if self._log.chain.holds(message.number, message.entry):
                    self._outbox.unicast(source, AppliedAnswer(message.session, self._state.ring_hash()))
            case RingPull():
                pages = self._state.pages(self._state.log_length())
                digest = self._state.ring_hash()
                for number, page in enumerate(pages):
                    body = msgspec.msgpack.encode(page)
                    self._outbox.unicast(source, RingPage(message.session, digest, number, len(pages), body))
            case StampPage():
                self._on_stamp(now, source, message)
            case HoldQuery():
                self._on_hold_query(now, source, message)
            case AppliedAnswer() | RingPage() | StampAnswer():
                answers = self._answers.get(source)
                if answers is not None and message.session == self._session and self._goal is not None:
                    self._on_answer(now, source, answers, message)

    def _on_answer(
        self, now: float, source: PeerId, answers: _Answers, message: AppliedAnswer | RingPage | StampAnswer
    ) -> None:
        match message:
            case AppliedAnswer():
                if message.ring_hash == self._state.ring_hash():
                    answers.applied = True
                elif not answers.applied:
                    self._outbox.unicast(source, RingPull(message.session))
            case RingPage():
                self._on_page(now, source, answers, message)
            case StampAnswer():
                if self._stamps is not None and message.page < len(self._stamps):
                    answers.stamped.add(message.page)

    def _on_page(self, now: float, source: PeerId, answers: _Answers, message: RingPage) -> None:
        """Merge a page. Pages of two states of that ring do not add up to either, so they are counted apart."""
        try:
            page = read_page(message)
        except MalformedMessage as error:
            self._outbox.note("warning", "removal", f"page of {source.hex()} refused: {error}")
            return
        for delta in page.ring:  # nothing of it is merged while our log is behind; it is asked for again then
            learnt = self._state.merge_ring(now, delta)
            if learnt is not None:
                self._spread(now, learnt)
            if not self._ipam.dominates(delta):
                return
        if answers.ring_hash != message.ring_hash:
            answers.ring_hash = message.ring_hash
            answers.pages.clear()
        answers.pages.add(message.page)
        answers.applied = answers.applied or len(answers.pages) == message.pages

    def _on_stamp(self, now: float, source: PeerId, message: StampPage) -> None:
        learnt = self._state.merge_ring(now, message.delta)
        if learnt is not None:
            self._spread(now, learnt)
        if self._ipam.dominates(message.delta):
            self._outbox.unicast(source, StampAnswer(message.session, message.page))

    def _on_hold_query(self, now: float, source: PeerId, message: HoldQuery) -> None:
        if not self._log.chain.holds(message.number, message.entry):
            return
        if message.force:
            self.force(now)
        self._outbox.unicast(source, HoldAnswer(message.session, not self.is_needed, self.waiting_for[:64]))
