"""Who is reachable, over which neighbour: shortest paths over the links that both ends report.

Our own established links count at once; a link between two others counts when both publish it, so a half-dead link
carries nothing. The tree of shortest paths is kept up incrementally: a new link relaxes it, the loss of a link that is
not in the tree changes nothing, the loss of one that is rebuilds it when somebody asks next. With 1000 peers a rebuild
costs milliseconds, and a cluster that is just forming would otherwise rebuild at every record.

Per published link only its number is kept, since every peer holds those of all peers; addresses are read from the
records when somebody asks.

Invariant: depths equal those of a fresh breadth-first search. Does not send and knows no link ids.
"""

from __future__ import annotations

from collections import deque

from weavenet.core.errors import InvariantBroken
from weavenet.core.types import PeerId


class Routes:
    def __init__(self, own: PeerId) -> None:
        self.own = own
        self._published: dict[PeerId, dict[PeerId, int]] = {}
        self._same: dict[PeerId, PeerId] = {}
        """One object per peer: thousands of records name it."""
        self._linked: set[PeerId] = set()
        self._depth: dict[PeerId, int] = {own: 0}
        self._parent: dict[PeerId, PeerId] = {}
        self._is_stale = False
        self._known: set[PeerId] = {own}
        self._view: frozenset[PeerId] | None = None
        self.has_changed = False
        self.touched: set[PeerId] = set()
        """Peers to whom a link came or went, ours or one that others report, since the owner last cleared this."""

    # --- input ---

    def set_linked(self, peer: PeerId, is_up: bool) -> None:
        """Our own link to ``peer`` came up or went down."""
        if is_up:
            self._linked.add(peer)
            self._join(self.own, peer)
        else:
            self._linked.discard(peer)
            self._part(self.own, peer)
        self.has_changed = True
        self.touched.add(peer)

    def publish(self, origin: PeerId, sequence: int, peer: PeerId) -> None:
        """Record ``sequence`` of ``origin`` says that it has a link to ``peer``."""
        if origin in (self.own, peer):
            return
        peers = self._published.setdefault(origin, {})
        is_new = peer not in peers
        peers[self._same.setdefault(peer, peer)] = sequence
        self.has_changed = True
        self.touched.add(peer)
        if is_new and peer != self.own and origin in self._published.get(peer, ()):
            self._join(origin, peer)

    def withdraw(self, origin: PeerId, sequence: int, peer: PeerId) -> None:
        peers = self._published.get(origin)
        if peers is None or peers.get(peer) != sequence:
            return  # replaced meanwhile
        self.has_changed = True
        self.touched.add(peer)
        del peers[peer]
        if not peers:
            del self._published[origin]
        if peer != self.own:
            self._part(origin, peer)

    # --- shortest paths ---

    def neighbours(self, peer: PeerId) -> list[PeerId]:
        """Whom ``peer`` has a link to that counts, sorted."""
        if peer == self.own:
            return sorted(self._linked)
        published = self._published
        near = [other for other in published.get(peer, ()) if other != self.own and peer in published.get(other, ())]
        if peer in self._linked:
            near.append(self.own)
        return sorted(near)

    def _join(self, one: PeerId, other: PeerId) -> None:
        if self._is_stale:
            return
        for near, far in ((one, other), (other, one)):
            depth = self._depth.get(near)
            if depth is not None and self._depth.get(far, depth + 2) > depth + 1:
                self._settle(far, depth + 1, near)
                self._relax(deque([far]))

    def _part(self, one: PeerId, other: PeerId) -> None:
        if self._parent.get(one) == other or self._parent.get(other) == one:
            self._is_stale = True

    def _settle(self, peer: PeerId, depth: int, parent: PeerId) -> None:
        self._depth[peer] = depth
        self._parent[peer] = parent
        self._view = None

    def _relax(self, queue: deque[PeerId]) -> None:
        """Carry shorter depths on from the peers in ``queue``, whose own are right."""
        while queue:
            peer = queue.popleft()
            depth = self._depth[peer]
            for neighbour in self.neighbours(peer):
                if self._depth.get(neighbour, depth + 2) > depth + 1:
                    self._settle(neighbour, depth + 1, peer)
                    queue.append(neighbour)

    def _refresh(self) -> None:
        if self._is_stale:
            self._is_stale = False
            self._view = None
            self._depth = {self.own: 0}
            self._parent = {}
            self._relax(deque([self.own]))

    # --- output ---

    def reachable(self) -> frozenset[PeerId]:
        """All peers a unicast can get to, ourselves included."""
        self._refresh()
        if self._view is None:
            self._view = frozenset(self._depth)
        return self._view

    def take_reachability(self) -> tuple[set[PeerId], set[PeerId]]:
        """(gained, lost) since the last call."""
        view = self.reachable()
        if len(view) == len(self._known) and view == self._known:
            return set(), set()
        gained, lost = set(view - self._known), set(self._known - view)
        self._known = set(view)
        return gained, lost

    def next_peer(self, peer: PeerId) -> PeerId | None:
        """The neighbour that is nearest to ``peer``; ``peer`` itself when linked; None when unreachable."""
        if peer in self._linked:
            return peer
        self._refresh()
        if peer not in self._depth or peer == self.own:
            return None
        while True:
            parent = self._parent[peer]
            if parent == self.own:
                return peer
            peer = parent

    def published(self, origin: PeerId) -> list[tuple[PeerId, int]]:
        """(peer, number of the record) of each link that ``origin`` reports, sorted."""
        return sorted(self._published.get(origin, {}).items())

    def sightings(self, peer: PeerId) -> list[tuple[PeerId, int]]:
        """(origin, number of its record) of each report of a link to ``peer`` that ``peer`` reports too, sorted."""
        published = self._published
        return [
            (origin, published[origin][peer])
            for origin in sorted(published.get(peer, ()))
            if origin != self.own and peer in published.get(origin, ())
        ]

    def check(self) -> None:
        """Raises InvariantBroken."""
        self._refresh()
        depths = {self.own: 0}
        queue = deque([self.own])
        while queue:
            peer = queue.popleft()
            for neighbour in self.neighbours(peer):
                if neighbour not in depths:
                    depths[neighbour] = depths[peer] + 1
                    queue.append(neighbour)
        if depths != self._depth:
            raise InvariantBroken("shortest paths differ from a fresh search")
