"""Who is reachable, over which neighbour: shortest paths over the links that both ends report.

Our own established links count at once; a link between two others counts when both publish it, so a half-dead link
carries nothing. The tree of shortest paths is kept up incrementally: a new link relaxes it, the loss of a link that is
not in the tree changes nothing, the loss of one that is rebuilds it when somebody asks next. With 1000 peers a rebuild
costs milliseconds, and a cluster that is just forming would otherwise rebuild at every record.

Invariant: depths equal those of a fresh breadth-first search. Does not send and knows no link ids.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from weavenet.core.errors import InvariantBroken
from weavenet.core.messages.gossip import NeighbourRecord
from weavenet.core.types import PeerId


class Routes:
    def __init__(self, own: PeerId) -> None:
        self.own = own
        self._published: dict[PeerId, dict[PeerId, dict[int, NeighbourRecord]]] = {}
        self._sighted: dict[PeerId, set[PeerId]] = {}
        self._linked: set[PeerId] = set()
        self._adjacent: dict[PeerId, set[PeerId]] = {own: set()}
        self._depth: dict[PeerId, int] = {own: 0}
        self._parent: dict[PeerId, PeerId] = {}
        self._is_stale = False
        self._known: set[PeerId] = {own}
        self._view: frozenset[PeerId] | None = None
        self.has_changed = False

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

    def publish(self, origin: PeerId, sequence: int, record: NeighbourRecord) -> None:
        if origin in (self.own, record.peer):
            return
        peers = self._published.setdefault(origin, {})
        peers.setdefault(record.peer, {})[sequence] = record
        self._sighted.setdefault(record.peer, set()).add(origin)
        self.has_changed = True
        if record.peer != self.own and origin in self._published.get(record.peer, ()):
            self._join(origin, record.peer)

    def withdraw(self, origin: PeerId, sequence: int, record: NeighbourRecord) -> None:
        records = self._published.get(origin, {}).get(record.peer)
        if records is None or records.pop(sequence, None) is None:
            return
        self.has_changed = True
        if records:
            return
        del self._published[origin][record.peer]
        if not self._published[origin]:
            del self._published[origin]
        sighted = self._sighted[record.peer]
        sighted.discard(origin)
        if not sighted:
            del self._sighted[record.peer]
        if record.peer != self.own:
            self._part(origin, record.peer)

    # --- shortest paths ---

    def _join(self, one: PeerId, other: PeerId) -> None:
        self._adjacent.setdefault(one, set()).add(other)
        self._adjacent.setdefault(other, set()).add(one)
        if self._is_stale:
            return
        for near, far in ((one, other), (other, one)):
            depth = self._depth.get(near)
            if depth is not None and self._depth.get(far, depth + 2) > depth + 1:
                self._settle(far, depth + 1, near)
                self._relax(deque([far]))

    def _settle(self, peer: PeerId, depth: int, parent: PeerId) -> None:
        self._depth[peer] = depth
        self._parent[peer] = parent
        self._view = None

    def _part(self, one: PeerId, other: PeerId) -> None:
        for left, right in ((one, other), (other, one)):
            neighbours = self._adjacent.get(left)
            if neighbours is not None:
                neighbours.discard(right)
                if not neighbours and left != self.own:
                    del self._adjacent[left]
        if self._parent.get(one) == other or self._parent.get(other) == one:
            self._is_stale = True

    def _relax(self, queue: deque[PeerId]) -> None:
        """Carry shorter depths on from the peers in ``queue``, whose own are right."""
        while queue:
            peer = queue.popleft()
            depth = self._depth[peer]
            for neighbour in sorted(self._adjacent[peer]):
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

    def neighbours_of(self, origin: PeerId) -> Iterator[NeighbourRecord]:
        """What ``origin`` publishes, one record per peer."""
        for _, records in sorted(self._published.get(origin, {}).items()):
            yield records[max(records)]

    def sightings(self, peer: PeerId) -> list[NeighbourRecord]:
        """How others reach ``peer``, those who called it first: their address is known to lead there."""
        found = [
            (not record.outbound, origin, record)
            for origin in self._sighted.get(peer, ())
            for record in [self._published[origin][peer][max(self._published[origin][peer])]]
        ]
        found.sort(key=lambda item: item[:2])
        return [record for _, _, record in found]

    def sighted(self) -> list[PeerId]:
        """Every peer that some other peer reports a link to, sorted."""
        return sorted(peer for peer in self._sighted if peer != self.own)

    def check(self) -> None:
        """Raises InvariantBroken."""
        self._refresh()
        depths = {self.own: 0}
        queue = deque([self.own])
        while queue:
            peer = queue.popleft()
            for neighbour in self._adjacent.get(peer, ()):
                if neighbour not in depths:
                    depths[neighbour] = depths[peer] + 1
                    queue.append(neighbour)
        if depths != self._depth:
            raise InvariantBroken("shortest paths differ from a fresh search")
        for peer in self._linked:
            if peer not in self._adjacent[self.own]:
                raise InvariantBroken(f"own link to {peer.hex()} is no edge")
