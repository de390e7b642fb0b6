"""A WireGuard device as this product uses it, whoever implements it: the kernel (:mod:`weavenet.host.wireguardkernel`)
or the process ``wireguard-go`` (:mod:`weavenet.host.wireguardprocess`).

Both are told the same :class:`Change` and show the same :class:`DeviceState`. Calls block for some milliseconds at most
(a thousand peers), so they belong into a worker thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

KEY_BYTES = 32
KEEPALIVE_S = 25
"""Keeps the mapping of a NAT in between alive, so that either end can begin."""
OVERHEAD_BYTES = {4: 60, 6: 80}
"""IP 20 or 40, UDP 8, message header 16, authentication tag 16 (WireGuard whitepaper, 5.4.6)."""


@dataclass(frozen=True, slots=True)
class TunnelPeer:
    """A peer of the device. ``endpoint``: (numeric host, UDP port) where packets to it go now, None: nowhere known.
    ``handshake_at``: seconds since the epoch, 0: there was none. ``addresses``: CIDR text, from which and to which
    packets are exchanged with it."""

    public: bytes
    endpoint: tuple[str, int] | None
    addresses: tuple[str, ...]
    handshake_at: int = 0


@dataclass(frozen=True, slots=True)
class DeviceState:
    """``private``: all zeros when none is set; never shown in a text."""

    private: bytes = field(repr=False)
    port: int
    peers: tuple[TunnelPeer, ...]


@dataclass(frozen=True, slots=True)
class PeerChange:
    """Add a peer, or change the one of this key. ``endpoint`` None leaves it; ``address`` (without prefix) empty
    leaves it. ``is_removed``: take it away."""

    public: bytes
    endpoint: tuple[str, int] | None = None
    address: str = ""
    is_removed: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """None and empty leave what is there."""

    private: bytes | None = field(default=None, repr=False)
    port: int | None = None
    peers: tuple[PeerChange, ...] = ()


class Device(Protocol):
    """Raises OSError from every call when the device is gone or refuses."""

    def read(self) -> DeviceState: ...

    def write(self, change: Change) -> None: ...
