"""Wire format of sleeve, version 1: UDP datagrams between workers.

Header, 24 bytes, big-endian, in front of every datagram::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-------+-------+---------------+---------------+---------------+
    |version| kind  | key of source | key of dest.  |               |
    +-------+-------+---------------+---------------+               +
    |     source: first six bytes of its PeerId                     |
    +               +-----------------------------------------------+
    |               |    destination: first six bytes               |
    +---------------+-----------------------------------------------+
    |     of its PeerId             |                               |
    +-------------------------------+                               +
    |             counter, 48 bits                  |     index     |
    +-----------------------------------------------+---------------+
    |     last      |     hops      |
    +---------------+---------------+

(Offsets: 0 version and kind, 1 and 2 key numbers, 3 source, 9 destination, 15 counter, 21 index, 22 last, 23 hops.)

``version`` is 1. ``hops`` starts at HOPS_START and is decremented by each relay, which forwards the rest untouched
and drops at 0; it is the only byte that is not authenticated. The sealed part follows: ciphertext and a 16 byte tag.
``counter`` is that of the first datagram of a unit; datagram ``index`` of it has ``counter + index``.

Kinds
-----
``WHOLE`` (1)
    One frame sealed as a whole, cut into ``last`` + 1 fragments of equal size (the final one may be shorter). Nonce:
    that of index 0. Plaintext: *vnet header*, frame. A frame that fits is one fragment.
``SEGMENT`` (2)
    Segment ``index`` of ``last`` + 1 of one TCP unit, sealed by itself. Plaintext: *vnet header*, the unit's headers
    (Ethernet, IP, TCP; exactly the vnet header's ``header_bytes``), then its share of the payload: ``segment_bytes``
    from ``index * segment_bytes`` on. The headers are those of the unit, the same in each segment; a receiver that
    lacks some segments adjusts sequence number, lengths and checksums for what it delivers.
``BATCH`` (3)
    Several small frames; ``index`` and ``last`` are 0 here and in what follows. Plaintext: repeated (length, 2
    bytes; *vnet header*; frame), where length counts the frame.
``CONTROL`` (4)
    Heartbeats and their answers, see ``weavenet.sleeve.control``. Never delivered to containers.

*vnet header*, 10 bytes: ``struct virtio_net_hdr`` (virtio 1.2, section 5.1.6) with little-endian fields: flags, gso
type, header_bytes, segment_bytes, checksum start, checksum offset. A receiver accepts only: no offload; a partial
checksum; TCP over IPv4 or IPv6 with a partial checksum.

Keys and nonces
---------------
Every worker process makes X25519 key pairs from the kernel's random generator and keeps the private halves in memory;
a pair is never used by another process, not even the next one of the same peer. For each ordered pair of pairs (one
of the sender, one of the receiver) there is one key:
HKDF-SHA-256(X25519(ours, theirs), salt = ``weave sleeve 1``, info = cipher, PeerId of sender, PeerId of receiver,
public key of sender, public key of receiver), 32 bytes. The cipher, one byte, is 1 for AES-256-GCM, when both
processors have instructions for it, else 2 for ChaCha20-Poly1305. So the two directions have different keys, a
restart of either side changes both, and both sides contribute.

A nonce is three zero bytes, the header's first byte, and its bytes 15 to 22: counter, index, last. There is no
associated data, because nothing else needs any: the two PeerIds are part of the key, key numbers choose the key, hops
are nobody's word.

*No nonce repeats under one key*: only the process that holds the sender's private half seals with that key, in one
thread. It takes counters from a table indexed by the key, whose entries begin at 0, only grow, and live as long as
the sender's own pair: forgetting a peer and learning it again goes on counting. When the pair is dropped, its private
half is gone, and nobody can derive the key any more to seal with it. A new process has new pairs. A unit takes
``last`` + 1 counters, so no two seals have the same counter + index, hence none the same (counter, index). A pair is
retired long before 2^48 counters.

A receiver keeps a window of the last WINDOW values of counter + index per key; each is accepted once, after its
datagram was authenticated. A WHOLE enters the window with its counter when it is put together. Until then nothing of
it is authenticated: forged fragments can spoil the frame that they claim to be part of, and evict incomplete frames
of the same peer, of which only few are kept (as losing datagrams of these would); nothing else.

What a relay or listener learns: who talks to whom, when, how much, and the sizes of frames. Nothing of the content.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from weavenet.core.types import PeerId

VERSION = 1
HEADER_BYTES = 24
TAG_BYTES = 16
OVERHEAD_BYTES = HEADER_BYTES + TAG_BYTES
PREFIX_BYTES = 15
"""Version, kind, keys and peers: tells receivers which key and which kind without looking further."""
HOPS_START = 8
SHORT_ID_BYTES = 6
COUNTER_MAX = (1 << 48) - 1
WINDOW = 4096
FRAGMENTS_MAX = 256
FRAME_BYTES_MAX = 65_535 + 10
"""With its vnet header."""
COUNTER_AT, INDEX_AT, LAST_AT, HOPS_AT = 15, 21, 22, 23
NONCE_START = {kind: bytes((0, 0, 0, VERSION << 4 | kind)) for kind in (1, 2, 3, 4)}
"""By kind; the header's bytes from COUNTER_AT up to HOPS_AT follow."""

_HEADER = struct.Struct("!BBB6s6sHIBBB")


class Kind(IntEnum):
    """See the module docstring."""

    WHOLE = 1
    SEGMENT = 2
    BATCH = 3
    CONTROL = 4


class Header(NamedTuple):
    """Decoded form of the 24 bytes; ``place`` is the field index."""

    kind: Kind
    source_key: int
    destination_key: int
    source: bytes
    destination: bytes
    counter: int
    place: int
    last: int
    hops: int


def short_id(peer: PeerId) -> bytes:
    """What stands for a peer in datagrams. Two peers of one cluster share it with probability n² / 2^49."""
    return peer[:SHORT_ID_BYTES]


def prefix(kind: Kind, source_key: int, destination_key: int, source: PeerId, destination: PeerId) -> bytes:
    """The first PREFIX_BYTES of a datagram."""
    return bytes((VERSION << 4 | kind, source_key, destination_key)) + short_id(source) + short_id(destination)


def encode(header: Header) -> bytes:
    """The 24 bytes. Raises struct.error when a field is out of its range."""
    return _HEADER.pack(
        VERSION << 4 | header.kind,
        header.source_key,
        header.destination_key,
        header.source,
        header.destination,
        header.counter >> 32,
        header.counter & 0xFFFF_FFFF,
        header.place,
        header.last,
        header.hops,
    )


def decode(datagram: bytes | bytearray | memoryview) -> Header | None:
    """The header, or None when this is no datagram of version 1: too short, other version, unknown kind, index
    beyond last."""
    if len(datagram) < OVERHEAD_BYTES:
        return None
    first, source_key, destination_key, source, destination, *numbers = _HEADER.unpack_from(datagram)
    high, low, index, last, hops = numbers
    counter: int = high << 32 | low
    if first >> 4 != VERSION or not Kind.WHOLE <= first & 15 <= Kind.CONTROL or index > last:
        return None
    return Header(Kind(first & 15), source_key, destination_key, source, destination, counter, index, last, hops)
