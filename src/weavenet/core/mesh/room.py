"""Who gets a link when all that ``--conn-limit`` allows are in use: whoever cannot be reached without one.

Discovery links everybody to everybody, so without this the first peers of a mesh would use up each other's limits, and
whoever came later would be refused by each of them for good. A link is spared for a newcomer when it is to no target of
ours and its peer stays reachable: best over several neighbours in common, also when one of those goes too, else on any
way around. If it is not reachable after all, it is a newcomer itself and comes back in the same way.

Does not close links.
"""

from __future__ import annotations

from collections import deque

from weavenet.core.config import NodeConfig
from weavenet.core.mesh.dialing import Dialer
from weavenet.core.mesh.links import Link, Links
from weavenet.core.mesh.routes import Routes
from weavenet.core.types import PeerId

_WAYS_MIN = 2
"""Neighbours that we have in common with a peer whose link is spared without a further look."""


class Room:
    def __init__(self, config: NodeConfig, links: Links, routes: Routes, dialer: Dialer) -> None:
        self._config = config
        self._links = links
        self._routes = routes
        self._dialer = dialer

    @property
    def is_left(self) -> bool:
        """Whether a further link is within the limit."""
        return len(self._links.by_peer) < self._config.conn_limit

    def is_for(self, peer: PeerId) -> bool:
        """Whether ``peer``, to whom there is no link, may get one."""
        return self.is_left or self.spare(peer) is not None

    def spare(self, peer: PeerId) -> Link | None:
        """The link that may end in favour of one to ``peer``."""
        if peer in self._routes.reachable():
            return None
        candidates = sorted(self._links.by_peer.keys() - self._dialer.target_peers())
        chosen = self._of_many_ways(candidates) or self._of_a_long_way(candidates)
        return None if chosen is None else self._links.by_peer[chosen]

    def _of_many_ways(self, candidates: list[PeerId]) -> PeerId | None:
        """With whom we have the most neighbours in common, at least _WAYS_MIN."""
        linked = self._links.by_peer
        ways = {peer: sum(other in linked for other in self._routes.neighbours(peer)) for peer in candidates}
        most = max(candidates, key=ways.__getitem__, default=None)
        return most if most is not None and ways[most] >= _WAYS_MIN else None

    def _of_a_long_way(self, candidates: list[PeerId]) -> PeerId | None:
        """Who is reached over another link of ours, however far around. Looks at every link of the mesh."""
        for peer in candidates:
            if self._leads_back(peer):
                return peer
        return None

    def _leads_back(self, peer: PeerId) -> bool:
        seen = {peer, self._config.peer}
        queue = deque([peer])
        while queue:
            for other in self._routes.neighbours(queue.popleft()):
                if other not in seen:
                    if other in self._links.by_peer:
                        return True
                    seen.add(other)
                    queue.append(other)
        return False
