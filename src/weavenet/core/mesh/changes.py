"""What the mesh tells the rest of the node after an event."""

from __future__ import annotations

import msgspec

from weavenet.core.messages import Body
from weavenet.core.types import PeerId


class MeshChanges(msgspec.Struct, frozen=True):
    """What happened since the last call. A peer that was started anew is in ``links_down`` and ``links_up``.
    ``greeted``: whose hello was accepted, so that they may count the link as up before we do; ``rejected``: who then
    refused ours. ``topology``: who is reachable or over which link may differ; ``touched``: under which address.
    ``records``: origins whose records changed. ``bodies``: unicast bodies for us with their source. ``targets``:
    :meth:`Mesh.target_count` may differ."""

    greeted: tuple[PeerId, ...] = ()
    rejected: tuple[PeerId, ...] = ()
    links_up: tuple[PeerId, ...] = ()
    links_down: tuple[PeerId, ...] = ()
    topology: bool = False
    touched: frozenset[PeerId] = frozenset()
    records: frozenset[PeerId] = frozenset()
    bodies: tuple[tuple[PeerId, Body], ...] = ()
    targets: bool = False

    def __bool__(self) -> bool:
        return bool(
            self.greeted
            or self.rejected
            or self.links_up
            or self.links_down
            or self.topology
            or self.records
            or self.bodies
            or self.targets
        )


NO_CHANGES = MeshChanges()
