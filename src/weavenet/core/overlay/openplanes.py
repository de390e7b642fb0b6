"""Which data paths are open, durably (spec 04b, "Planes survive").

Loss of a link, of heartbeats, a stop or a restart never closes a path: only a learnt removal, a refusal or a reset
does, or that a peer without any obligation has been gone so long that its records expired. At start the persisted
paths are given to the plane before anything else, so that a restart loses no packet.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from weavenet.core.effects import Change, Endpoint, Outbox, PlanePeer
from weavenet.core.types import PeerId, plane_mac

TABLE = "planes"


class OpenPlane(msgspec.Struct, frozen=True, array_like=True):
    """As stored: where the peer was last reached, and the endpoints behind it."""

    host: str
    endpoints: tuple[tuple[bytes, tuple[str, ...]], ...]


class OpenPlanes:
    def __init__(self, rows: Iterable[tuple[bytes, bytes]], outbox: Outbox) -> None:
        self._outbox = outbox
        self._open: dict[PeerId, OpenPlane] = {
            PeerId(key): msgspec.msgpack.decode(value, type=OpenPlane) for key, value in rows
        }
        self.changed = bool(self._open)

    @property
    def peers(self) -> frozenset[PeerId]:
        return frozenset(self._open)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._open

    def has_endpoints(self, peer: PeerId) -> bool:
        return bool(self._open[peer].endpoints)

    def set(self, peer: PeerId, host: str, endpoints: tuple[Endpoint, ...]) -> None:
        """Open the path, or follow the peer to a new address or new endpoints."""
        row = OpenPlane(host, tuple((endpoint.mac, endpoint.addresses) for endpoint in endpoints))
        if self._open.get(peer) == row:
            return
        self._open[peer] = row
        self.changed = True
        self._outbox.persist(Change(TABLE, peer, msgspec.msgpack.encode(row)))

    def host(self, peer: PeerId) -> str:
        return self._open[peer].host

    def close(self, peer: PeerId) -> None:
        if self._open.pop(peer, None) is not None:
            self.changed = True
            self._outbox.persist(Change(TABLE, peer, None))

    def desired(self) -> tuple[PlanePeer, ...]:
        """The plane's whole desired state, in a stable order."""
        return tuple(
            PlanePeer(
                peer, row.host, plane_mac(peer), tuple(Endpoint(mac, addresses) for mac, addresses in row.endpoints)
            )
            for peer, row in sorted(self._open.items())
        )
