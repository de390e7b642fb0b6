"""A plane in memory: planes of one :class:`FakeWire` reach each other. For tests of what drives planes.

Like a kernel plane it forwards a probe only to peers in the applied state, and drops what the other side does not know.
"""

from __future__ import annotations

from collections.abc import Callable

from weavenet.core.effects import PlanePeer


class FakeWire:
    """Connects fake planes by their underlay address. ``cut`` holds pairs that do not reach each other."""

    def __init__(self) -> None:
        self.planes: dict[str, FakePlane] = {}
        self.cut: set[frozenset[str]] = set()

    def deliver(self, source: FakePlane, host: str, mac: bytes, nonce: int, is_answer: bool) -> None:
        plane = self.planes.get(host)
        if plane is None or not plane.is_open or plane.mac != mac or frozenset((source.host, host)) in self.cut:
            return
        plane.on_probe(source.mac, nonce, is_answer)


class FakePlane:
    """Implements :class:`weavenet.plane.plane.Plane`."""

    def __init__(self, wire: FakeWire, host: str, mac: bytes) -> None:
        self.on_probe: Callable[[bytes, int, bool], None] = lambda mac, nonce, is_answer: None
        self.on_traffic: Callable[[], None] = lambda: None
        self.host = host
        self.mac = mac
        self.is_open = False
        self.peers: tuple[PlanePeer, ...] = ()
        self.applied = 0
        self._wire = wire
        wire.planes[host] = self

    async def open(self) -> None:
        self.is_open = True

    async def apply(self, peers: tuple[PlanePeer, ...]) -> None:
        self.peers = peers
        self.applied += 1

    def probe(self, mac: bytes, nonce: int, is_answer: bool) -> None:
        for peer in self.peers:
            if peer.mac == mac:
                self._wire.deliver(self, peer.host, mac, nonce, is_answer)

    def warnings(self) -> tuple[str, ...]:
        return ()

    async def close(self) -> None:
        self.is_open = False
