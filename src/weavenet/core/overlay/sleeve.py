"""What the core and the sleeve worker (``weavenet.sleeve``, the encrypted userspace data path) tell each other.

Downwards: one :class:`SleeveDesired`, the whole wanted state, again whenever something in it changed. The worker
diffs it with what it has; applying the same state twice changes nothing, and the last state stays in force while no
daemon is connected. Upwards: :class:`SleeveStatus`, at once when something in it that a decision may depend on
changed, and once a second.

Keys. A worker makes X25519 key pairs in its own memory: one when it starts, a new one whenever the newest has served
for long or sealed much (``weavenet.sleeve.keys``). Private halves never leave the process, so there is no secret in
the state here, on the control socket, on disk or in a log. Public halves come up in ``SleeveStatus.keys`` (at most
two, oldest first); the core publishes them to the other peers over its authenticated links, and hands down what
others published in :attr:`SleevePeer.keys`. Each pair of workers derives one key per direction from them. The
``number`` of a key stands in every datagram, so both of a peer's keys work during a change and no handshake is
needed.

What the core decides, per peer:

- ``is_open``: the handover to the peer is complete. While False only heartbeats and relayed datagrams pass:
  nothing of the peer is delivered to containers here, and no frame of theirs is sent there.
- ``carries``: sleeve is the plane to this peer now, so frames to ``macs`` leave over it. Frames *from* an open peer,
  group frames too, are delivered whatever ``carries`` says, because the two sides change planes at different moments;
  nothing arrives twice, since an origin sends each group frame (broadcast, multicast) once to each peer: over sleeve to
  those that take groups, over VXLAN to the others.
- ``takes_groups``: group frames of local containers are sent to this peer.
- ``endpoints``: where its worker may be reached over UDP, most promising first. The worker sends heartbeats to all of
  them until one answers, then uses the address from which the newest authenticated datagram came.
- ``relay``: the peer to whose worker datagrams for this one are handed when they cannot be sent directly; it forwards
  them unopened. None: directly only.

Heartbeats, round trip, loss and the size of datagrams that the path takes are measured by the worker and reported;
``SleevePath.works`` is the answer to "would sleeve work to this peer?" also while another plane is in use.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from weavenet.core.types import Bytes6, Label, Uint, WirePeerId

KEYS_PER_PEER_MAX = 2
CANDIDATES_MAX = 16
SLEEVE_PEERS_MAX = 4096
MACS_PER_PEER_MAX = 16_384

PublicKeyBytes = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
KeyNumber = Annotated[int, msgspec.Meta(ge=0, le=255)]


class SleeveKey(msgspec.Struct, frozen=True, array_like=True):
    """Public half of an X25519 key pair of one worker process. ``number`` tells a worker's keys apart, modulo 256.
    ``aes``: its owner's processor has AES instructions; a pair of workers seals with AES-256-GCM when both have, else
    with ChaCha20-Poly1305."""

    number: KeyNumber
    public: PublicKeyBytes
    aes: bool = True


class SleeveEndpoint(msgspec.Struct, frozen=True, array_like=True):
    """A numeric address (IPv4 or IPv6 text) and UDP port."""

    host: Label
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class SleeveRecord(msgspec.Struct, frozen=True, array_like=True):
    """Published by each peer whose worker runs: body of a record of kind ``KIND_SLEEVE``. ``endpoints``: addresses of
    its own that it knows of (its port everywhere is ``port``), for peers that have no link to it."""

    keys: Annotated[tuple[SleeveKey, ...], msgspec.Meta(max_length=KEYS_PER_PEER_MAX)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    endpoints: Annotated[tuple[SleeveEndpoint, ...], msgspec.Meta(max_length=CANDIDATES_MAX)] = ()


class SleevePathRecord(msgspec.Struct, frozen=True, array_like=True):
    """Published for a link of the origin on which something is not as others assume: body of a record of kind
    ``KIND_SLEEVE_PATH``. ``passes``: datagrams pass directly between the two. ``seen``: where those of ``peer`` come
    from, when that is not where it says it is (a NAT in between)."""

    peer: WirePeerId
    passes: bool
    seen: SleeveEndpoint | None


class SleevePeer(msgspec.Struct, frozen=True, array_like=True):
    """One peer; see the module docstring for what each field decides."""

    peer: WirePeerId
    keys: Annotated[tuple[SleeveKey, ...], msgspec.Meta(max_length=KEYS_PER_PEER_MAX)]
    endpoints: Annotated[tuple[SleeveEndpoint, ...], msgspec.Meta(max_length=CANDIDATES_MAX)]
    relay: WirePeerId | None
    is_open: bool
    carries: bool
    takes_groups: bool
    macs: Annotated[tuple[Bytes6, ...], msgspec.Meta(max_length=MACS_PER_PEER_MAX)]


class SleeveDesired(msgspec.Struct, frozen=True, array_like=True, tag="desired"):
    """The whole wanted state. ``me`` is fixed for the life of a worker; ``mtu`` is that of containers, bytes;
    ``busy``: containers here may be talking, so paths that carry are watched closely."""

    me: WirePeerId
    mtu: Uint
    peers: Annotated[tuple[SleevePeer, ...], msgspec.Meta(max_length=SLEEVE_PEERS_MAX)]
    busy: bool = True


class SleevePath(msgspec.Struct, frozen=True, array_like=True):
    """What the worker measured. ``endpoint``: where datagrams to the peer go now, None when over ``relay`` or
    nowhere. ``works``: heartbeats are answered (bad after 3 unanswered). ``datagram_bytes``: the largest UDP payload
    that got through. ``loss``: share of datagrams from the peer lost lately, 0 to 1. Counters count since the worker
    started."""

    peer: WirePeerId
    works: bool
    endpoint: SleeveEndpoint | None
    rtt_s: float | None
    loss: float
    datagram_bytes: Uint
    sent_bytes: Uint
    received_bytes: Uint
    lost: Uint
    refused: Uint


class SleeveStatus(msgspec.Struct, frozen=True, array_like=True, tag="status"):
    """``process``: random per worker process, so a restart is seen. ``port``: the UDP port in use. ``warnings``:
    sentences with a next step. ``counters``: name to count, of everything dropped and why."""

    process: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
    port: Uint
    keys: Annotated[tuple[SleeveKey, ...], msgspec.Meta(max_length=KEYS_PER_PEER_MAX)]
    paths: Annotated[tuple[SleevePath, ...], msgspec.Meta(max_length=SLEEVE_PEERS_MAX)]
    warnings: Annotated[tuple[Label, ...], msgspec.Meta(max_length=16)]
    counters: dict[str, int]
