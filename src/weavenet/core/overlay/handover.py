"""The handover before a data path opens (spec 04b, "plane to q opens when").

Either side offers its state (hashes of ring and log). The other answers ``HandoverDone`` once it holds that state
durably and has blocked the addresses it lost by merging it: at once when the hashes are equal, else after pulling log
and ring in pages. A path opens when the peer confirmed our offer *and* we confirmed the peer's. Both halves are
needed: otherwise two containers with one address could be seen by a third peer before the loser's is blocked
(invariant I5).

An exchange belongs to one pair of incarnations and is repeated after a restart of either side, behind the paths that
stay open meanwhile. Every message may be lost; the offer is repeated until it is confirmed.
"""

from __future__ import annotations

import random
from typing import Protocol

import msgspec

from weavenet.core.effects import Outbox
from weavenet.core.limits import HANDOVER_RETRY_S
from weavenet.core.mesh.pages import read_page
from weavenet.core.messages import MalformedMessage
from weavenet.core.messages.gossip import Push
from weavenet.core.messages.unicast import HandoverDone, HandoverOffer, HandoverPage, HandoverPull
from weavenet.core.types import PeerId


class State(Protocol):
    """Ring and log as the handover sees them."""

    def ring_hash(self) -> bytes: ...
    def log_length(self) -> int: ...
    def log_hash(self) -> bytes: ...
    def pages(self, log_start: int) -> list[Push]:
        """Log from ``log_start`` and the whole ring, in pages of at most PAGE_BYTES_MAX."""
        ...

    def merge_page(self, now: float, page: Push) -> bool:
        """Merge durably, block what is lost. False when the page cannot be merged (other cluster, log too short)."""
        ...


class _Exchange:
    """With one incarnation of one peer."""

    __slots__ = (
        "confirmed_theirs",
        "incarnation",
        "next_offer_at",
        "received",
        "session",
        "their_session",
        "they_confirmed",
    )

    def __init__(self, incarnation: int, session: int) -> None:
        self.incarnation = incarnation
        self.session = session
        self.they_confirmed = False
        self.confirmed_theirs = False
        self.their_session: int | None = None
        self.received: set[int] = set()
        self.next_offer_at = 0.0

    @property
    def complete(self) -> bool:
        return self.they_confirmed and self.confirmed_theirs


class Handover:
    def __init__(self, *, state: State, outbox: Outbox, rng: random.Random) -> None:
        self._state = state
        self._outbox = outbox
        self._rng = rng
        self._exchanges: dict[PeerId, _Exchange] = {}
        self._unfinished: set[PeerId] = set()
        self.completed: set[PeerId] = set()
        """Peers whose handover finished since the data paths last looked; they clear it."""

    def deadline(self) -> float | None:
        if not self._unfinished:
            return None
        return min(self._exchanges[peer].next_offer_at for peer in self._unfinished)

    @property
    def unfinished(self) -> frozenset[PeerId]:
        return frozenset(self._unfinished)

    def is_complete(self, peer: PeerId) -> bool:
        exchange = self._exchanges.get(peer)
        return exchange is not None and exchange.complete

    def want(self, now: float, peer: PeerId, incarnation: int) -> None:
        """Keep an exchange going with ``peer`` (reachable, with a path in common) at this incarnation."""
        exchange = self._exchanges.get(peer)
        if exchange is None or exchange.incarnation != incarnation:
            self._exchanges[peer] = exchange = _Exchange(incarnation, self._rng.getrandbits(62))
            exchange.next_offer_at = now
            self._unfinished.add(peer)

    def unwant(self, peer: PeerId) -> None:
        """The peer is out of reach: an unfinished exchange starts anew when it is back."""
        if peer in self._unfinished:
            self._unfinished.discard(peer)
            del self._exchanges[peer]

    def forget(self, peer: PeerId) -> None:
        """The peer was removed, or its path closed: nothing it confirmed counts any more."""
        self._exchanges.pop(peer, None)
        self._unfinished.discard(peer)
        self.completed.discard(peer)

    def tick(self, now: float) -> None:
        for peer in sorted(self._unfinished):
            exchange = self._exchanges[peer]
            if now >= exchange.next_offer_at:
                exchange.next_offer_at = now + HANDOVER_RETRY_S
                self._offer(peer, exchange)

    def restart(self) -> None:
        """Our own state was replaced (a yielding singleton): everything must be handed over again."""
        self._exchanges.clear()
        self._unfinished.clear()

    def handle(
        self,
        now: float,
        source: PeerId,
        message: HandoverOffer | HandoverPull | HandoverPage | HandoverDone,
    ) -> None:
        exchange = self._exchanges.get(source)
        match message:
            case HandoverOffer():
                self._on_offer(source, exchange, message)
            case HandoverPull():
                pages = self._state.pages(message.log_start)
                for number, page in enumerate(pages):
                    body = msgspec.msgpack.encode(page)
                    self._outbox.unicast(source, HandoverPage(message.session, number, len(pages), body))
            case HandoverPage():
                if exchange is not None and message.session == exchange.their_session:
                    self._on_page(now, source, exchange, message)
            case HandoverDone():
                if exchange is not None and message.session == exchange.session and not exchange.they_confirmed:
                    exchange.they_confirmed = True
                    self._finish(source, exchange)

    def _on_offer(self, source: PeerId, exchange: _Exchange | None, offer: HandoverOffer) -> None:
        if exchange is None:
            return  # not reachable yet by our own routes; the offer comes again
        if offer.seeking and exchange.they_confirmed:
            self._offer(source, exchange)
        if exchange.their_session != offer.session:
            exchange.their_session = offer.session
            exchange.confirmed_theirs = False
            exchange.received.clear()
            self._unfinished.add(source)
        state = self._state
        same_log = offer.log_length == state.log_length() and offer.log_hash == state.log_hash()
        if exchange.confirmed_theirs or (same_log and offer.ring_hash == state.ring_hash()):
            self._confirm(source, exchange)
            return
        exchange.received.clear()
        self._outbox.unicast(source, HandoverPull(offer.session, 0 if not same_log else state.log_length()))

    def _on_page(self, now: float, source: PeerId, exchange: _Exchange, message: HandoverPage) -> None:
        try:
            page = read_page(message)
        except MalformedMessage as error:
            self._outbox.note("warning", "handover", f"page of {source.hex()} refused: {error}")
            return
        if not self._state.merge_page(now, page):
            return
        exchange.received.add(message.page)
        if len(exchange.received) == message.pages:
            self._confirm(source, exchange)

    def _confirm(self, source: PeerId, exchange: _Exchange) -> None:
        if exchange.their_session is None:
            return
        first = not exchange.confirmed_theirs
        exchange.confirmed_theirs = True
        self._outbox.unicast(source, HandoverDone(exchange.their_session))
        if first:
            self._finish(source, exchange)

    def _finish(self, source: PeerId, exchange: _Exchange) -> None:
        if exchange.complete:
            self.completed.add(source)
            self._unfinished.discard(source)

    def _offer(self, peer: PeerId, exchange: _Exchange) -> None:
        state = self._state
        self._outbox.unicast(
            peer,
            HandoverOffer(
                exchange.session,
                state.ring_hash(),
                state.log_length(),
                state.log_hash(),
                seeking=not exchange.confirmed_theirs,
            ),
        )
