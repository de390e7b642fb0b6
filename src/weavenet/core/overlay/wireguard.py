"""The plane ``wireguard``: VXLAN whose underlay is a WireGuard device. What of it travels and is remembered.

There is one VXLAN device per host (the kernel refuses a second one of the same VNI and port), so the plane differs from
``fastdp`` only in where frames to a peer are sent: to the peer's *tunnel address* out of the WireGuard device, instead
of to its underlay address. A peer that needs no encryption is reached over the underlay, one that does over the tunnel;
never both, hence one heartbeat per peer measures whichever it is.

Keys. The WireGuard device has one X25519 pair at a time, made when the device is made; the private half lives in the
device and in the daemon's memory, nowhere else. Public halves are published over the authenticated links
(:class:`WireguardRecord`). WireGuard itself agrees on new session keys every two minutes. The pair is replaced after
each start of the daemon and once a day: the next public key is published beside the one in use, so that all peers
expect it; then the device changes over, and the record names the new one first. Because each key has a tunnel address
of its own, what peers still send to the old key's address arrives under the old sessions. Lost is only what this host
sends between the two calls that make the change (its source address, its key).

Tunnel addresses are IPv4, of 240.0.0.0/4: reserved, so no network of a user has them, routable by Linux, and 28 bits
wide, so that two of a thousand peers share one with a probability of 0.2 %. (IPv6 would be wide enough for certainty,
but with it a full packet of a container at the default MTU of 1376 would need 1506 bytes on the wire: 1376 + VXLAN over
IPv6 70 + WireGuard 60; over IPv4 it is 1486.) Of two peers whose addresses are the same, the one with the lower PeerId
has it, and the other is reached over sleeve.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from weavenet.core.overlay.sleeve import PublicKeyBytes

TUNNEL_KEYS_MAX = 2


class WireguardRecord(msgspec.Struct, frozen=True, array_like=True):
    """Published by each peer that has a WireGuard device: body of a record of kind ``KIND_WIREGUARD``. ``keys``: the
    public key in use, then the next one, if it is made already. ``port``: UDP."""

    keys: Annotated[tuple[PublicKeyBytes, ...], msgspec.Meta(min_length=1, max_length=TUNNEL_KEYS_MAX)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


def tunnel_address(public: bytes) -> str:
    """Where VXLAN reaches the device that has this key: 240.0.0.0 to 254.255.255.255."""
    digest = hashlib.sha256(b"weave tunnel address" + public).digest()
    return f"{240 + digest[0] % 15}.{digest[1]}.{digest[2]}.{digest[3]}"
