"""Next hops for peers that datagrams do not reach directly: shortest paths over links that carry them.

An edge of the graph is a link that both ends report, unless an end says that datagrams do not pass between the two; our
own edges are what our worker found to work. Hop by hop each relay decides anew, by its own graph. As long as two graphs
differ a datagram may wander; ``hops`` in its header bounds that, and the receiver takes it once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from weavenet.core.types import PeerId


def next_hops(
    own: PeerId, direct: Iterable[PeerId], neighbours: Callable[[PeerId], Iterable[PeerId]]
) -> dict[PeerId, PeerId]:
    """Peer → the direct peer that is first on a shortest path to it. Direct peers stand for themselves.

    ``neighbours(peer)``: whom datagrams pass to from there. Equal paths: the lowest first hop, so that the result does
    not depend on the order of what was learnt.
    """
    first = {peer: peer for peer in sorted(direct) if peer != own}
    queue = deque(first)
    while queue:
        peer = queue.popleft()
        for neighbour in sorted(neighbours(peer)):
            if neighbour != own and neighbour not in first:
                first[neighbour] = first[peer]
                queue.append(neighbour)
    return first
