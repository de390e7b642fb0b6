"""The core's side of the WireGuard device: our keys, told to others, and those that others told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from weavenet.core.config import NodeConfig
from weavenet.core.messages.gossip import KIND_WIREGUARD, record_body
from weavenet.core.overlay.openplanes import OpenPlanes
from weavenet.core.overlay.planes import WIREGUARD
from weavenet.core.overlay.wireguard import WireguardRecord, tunnel_address
from weavenet.core.types import PeerId

_decoder = msgspec.msgpack.Decoder(WireguardRecord)
_encoder = msgspec.msgpack.Encoder()


class Around(Protocol):
    """What is asked of the mesh."""

    def records_of(self, origin: PeerId, kind: int) -> list[bytes]: ...
    def publish(self, now: float, kind: int, key: bytes, body: bytes) -> None: ...
    def withdraw(self, now: float, kind: int, key: bytes) -> None: ...


class WireguardPlane:
    def __init__(self, *, config: NodeConfig, mesh: Around, planes: OpenPlanes) -> None:
        self._config = config
        self._mesh = mesh
        self._planes = planes
        self._own: WireguardRecord | None = None
        self._was_heard = False
        self._decoded: dict[PeerId, tuple[list[bytes], WireguardRecord | None]] = {}
        self._addresses: dict[PeerId, frozenset[str]] = {}
        self._holders: dict[str, set[PeerId]] = {}
        """Tunnel address → the peers whose keys lead to it, nearly always one."""

    @property
    def is_on(self) -> bool:
        return WIREGUARD in self._config.planes

    @property
    def is_running(self) -> bool:
        """Whether there is a device here; before it was heard of, the one that an earlier start left counts."""
        return self.is_on and (self._own is not None or not self._was_heard)

    def reported(self, now: float, keys: tuple[bytes, ...], port: int) -> bool:
        """The device's public keys, the one in use first; none: there is no device. True when that is news."""
        own = WireguardRecord(keys, port) if keys and port else None
        is_news = own != self._own or not self._was_heard
        self._was_heard = True
        if own != self._own:
            self._own = own
            if own is None:
                self._mesh.withdraw(now, KIND_WIREGUARD, b"")
            else:
                self._mesh.publish(now, KIND_WIREGUARD, b"", _encoder.encode(own))
        return is_news

    def record(self, peer: PeerId) -> WireguardRecord | None:
        """Keys and port of the device of ``peer``, as last published; as remembered while its records are replaced
        after a restart of either end."""
        bodies = self._mesh.records_of(peer, KIND_WIREGUARD)
        row = self._planes.get(peer)
        if not bodies:
            return None if row is None else row.tunnel
        cached = self._decoded.get(peer)
        if cached is None or cached[0] != bodies:
            cached = self._decoded[peer] = bodies, record_body(_decoder, bodies[0])
        return cached[1]

    def learnt(self, origins: Iterable[PeerId]) -> set[PeerId]:
        """Records of these changed. Returns the peers that share a tunnel address with one of them, or did."""
        sharing: set[PeerId] = set()
        for origin in origins:
            record = self.record(origin)
            wanted = frozenset() if record is None else frozenset(tunnel_address(key) for key in record.keys)
            before = self._addresses.pop(origin, frozenset())
            if wanted:
                self._addresses[origin] = wanted
            for address in before ^ wanted:
                holders = self._holders.setdefault(address, set())
                holders ^= {origin}
                sharing |= holders
                if not holders:
                    del self._holders[address]
        return sharing

    def tunnel(self, peer: PeerId) -> WireguardRecord | None:
        """How ``peer`` is reached; None: not over WireGuard."""
        record = self.record(peer) if self.is_running else None
        if record is None:
            return None
        own = {tunnel_address(key) for key in self._own.keys} if self._own is not None else set()
        for address in map(tunnel_address, record.keys):
            rivals = self._holders.get(address, ())
            if address in own or any(rival < peer and rival in self._planes for rival in rivals):
                return None
        return record
