"""Which data paths are open, durably (spec 04b, "Planes survive"), and which plane each is on.

Loss of a link, of heartbeats, a stop or a restart never closes a path: only a learnt removal, a refusal or a reset
does, or that a peer without any obligation has been gone so long that its records expired. At start the persisted
paths are given to the planes before anything else, so that a restart loses no packet.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from weavenet.core.effects import Change, Endpoint, Outbox, PlanePeer, VxlanUse
from weavenet.core.overlay.planes import FASTDP, WIREGUARD
from weavenet.core.overlay.sleeve import SleeveRecord
from weavenet.core.overlay.wireguard import WireguardRecord
from weavenet.core.types import PeerId, plane_mac

TABLE = "planes"


class OpenPlane(msgspec.Struct, frozen=True, array_like=True):
    """As stored: where the peer was last reached, and the endpoints behind it. ``plane``: in use. ``is_vxlan_allowed``:
    frames to it need not be encrypted, and both ends have the plane. ``sleeve``: keys and port of its worker.
    ``relay``: through whom its worker is reached, empty: directly. ``tunnel``: VXLAN goes through WireGuard; only where
    it is not allowed in clear."""

    host: str
    endpoints: tuple[tuple[bytes, tuple[str, ...]], ...]
    plane: str = FASTDP
    is_vxlan_allowed: bool = True
    sleeve: SleeveRecord | None = None
    relay: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    tunnel: WireguardRecord | None = None

    @property
    def has_vxlan(self) -> bool:
        """Whether VXLAN is used at all, over the underlay or through the tunnel."""
        return self.is_vxlan_allowed or self.tunnel is not None


class OpenPlanes:
    def __init__(self, rows: Iterable[tuple[bytes, bytes]], outbox: Outbox) -> None:
        self._outbox = outbox
        self._open: dict[PeerId, OpenPlane] = {
            PeerId(key): msgspec.msgpack.decode(value, type=OpenPlane) for key, value in rows
        }
        self._peers: frozenset[PeerId] | None = None
        self._at: dict[str, set[PeerId]] = {}
        for peer, row in self._open.items():
            self._at.setdefault(row.host, set()).add(peer)
        self.changed = bool(self._open)
        self.is_shut = False

    @property
    def peers(self) -> frozenset[PeerId]:
        if self._peers is None:
            self._peers = frozenset(self._open)
        return self._peers

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._open

    def get(self, peer: PeerId) -> OpenPlane | None:
        return self._open.get(peer)

    def at(self, host: str) -> frozenset[PeerId]:
        """Everybody with an open path to this underlay address."""
        return frozenset(self._at.get(host, ()))

    def set(self, peer: PeerId, host: str, endpoints: tuple[Endpoint, ...]) -> None:
        """Open the path, or follow the peer to a new address or new endpoints."""
        before = self._open.get(peer) or OpenPlane("", (), is_vxlan_allowed=False)  # until somebody says otherwise
        stored = tuple((endpoint.mac, endpoint.addresses) for endpoint in endpoints)
        self._put(peer, msgspec.structs.replace(before, host=host, endpoints=stored))

    def use(
        self,
        peer: PeerId,
        plane: str,
        *,
        is_vxlan_allowed: bool,
        sleeve: SleeveRecord | None,
        relay: bytes,
        tunnel: WireguardRecord | None = None,
    ) -> bool:
        """Put the open path to ``peer`` on ``plane``. True when VXLAN takes another way to it than before: none, over
        the underlay, or through a tunnel."""
        before = self._open[peer]
        after = msgspec.structs.replace(
            before, plane=plane, is_vxlan_allowed=is_vxlan_allowed, sleeve=sleeve, relay=relay, tunnel=tunnel
        )
        self._put(peer, after)
        return (before.is_vxlan_allowed, before.has_vxlan) != (after.is_vxlan_allowed, after.has_vxlan)

    def put_on(self, peer: PeerId, plane: str) -> None:
        """``peer`` is on ``plane`` from here on, however that works."""
        self._put(peer, msgspec.structs.replace(self._open[peer], plane=plane))

    def seal(self, peer: PeerId, plane: str) -> None:
        """Nothing more over VXLAN to ``peer``, which is on ``plane`` from here on."""
        self._put(peer, msgspec.structs.replace(self._open[peer], plane=plane, is_vxlan_allowed=False, tunnel=None))

    def _put(self, peer: PeerId, row: OpenPlane) -> None:
        before = self._open.get(peer)
        if before == row:
            return
        if before is None:
            self._peers = None
        if before is None or before.host != row.host:
            self._leave(peer, before)
            self._at.setdefault(row.host, set()).add(peer)
        self._open[peer] = row
        self.changed = True
        self._outbox.persist(Change(TABLE, peer, msgspec.msgpack.encode(row)))

    def _leave(self, peer: PeerId, row: OpenPlane | None) -> None:
        if row is not None:
            self._at[row.host].discard(peer)
            if not self._at[row.host]:
                del self._at[row.host]

    def host(self, peer: PeerId) -> str:
        return self._open[peer].host

    def close(self, peer: PeerId) -> None:
        row = self._open.pop(peer, None)
        if row is not None:
            self._peers = None
            self._leave(peer, row)
            self.changed = True
            self._outbox.persist(Change(TABLE, peer, None))

    def shut(self, is_shut: bool) -> None:
        """Let nothing through, without closing a path: an ephemeral peer without a lease."""
        if self.is_shut != is_shut:
            self.is_shut = is_shut
            self.changed = True

    def desired(self) -> tuple[PlanePeer, ...]:
        """The kernel plane's whole desired state, in a stable order."""
        if self.is_shut:
            return ()
        return tuple(
            PlanePeer(
                peer,
                row.host,
                plane_mac(peer),
                tuple(Endpoint(mac, addresses) for mac, addresses in row.endpoints),
                _vxlan_use(row),
                row.tunnel,
            )
            for peer, row in sorted(self._open.items())
        )

    def macs(self) -> dict[bytes, PeerId]:
        """Behind whom each MAC lives. When two claim one, the lower PeerId has it, as in the kernel's tables."""
        found: dict[bytes, PeerId] = {}
        for peer, row in sorted(self._open.items()):
            for mac, _ in row.endpoints:
                found.setdefault(mac, peer)
        return found


def _vxlan_use(row: OpenPlane) -> VxlanUse:
    if not row.has_vxlan:
        return VxlanUse.CLOSED
    way = FASTDP if row.tunnel is None else WIREGUARD
    return VxlanUse.CARRIES if row.plane == way else VxlanUse.PROBED
