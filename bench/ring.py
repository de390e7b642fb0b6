"""Size of the shared state and time of a merge at 1,000 peers and 5,000 segments."""

from __future__ import annotations

import hashlib
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import msgspec

from bench.gate import Gate
from bench.options import Options
from bench.table import Result
from weavenet.core.ring import Ring
from weavenet.core.types import GENESIS_POSITION, PeerId, Segment, Stamp

PEERS, SEGMENTS, ADDRESSES = 1000, 5000, 1 << 20


def ring_of(seed: int) -> Ring:
    """Random bounds, each segment stamped by a random peer."""
    rng = random.Random(seed)
    peers = [PeerId(hashlib.sha256(number.to_bytes(4, "big")).digest()[:16]) for number in range(PEERS)]
    bounds = [0, *sorted(rng.sample(range(1, ADDRESSES // 4), SEGMENTS - 1)), ADDRESSES // 4]
    return Ring(
        (ADDRESSES,),
        [
            Segment(low * 4, high * 4, Stamp(GENESIS_POSITION, rng.randint(1, 50), rng.choice(peers)))
            for low, high in pairwise(bounds)
        ],
    )


def timed(action: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1e3


def measure(options: Options, gate: Gate) -> Result:
    count = options.repetitions(50, quick=5)
    ring, other = ring_of(1), ring_of(2)
    encoded = msgspec.msgpack.encode(ring.segments)
    decoder = msgspec.msgpack.Decoder(tuple[Segment, ...])
    change = (
        msgspec.structs.replace(ring.segments[SEGMENTS // 2], stamp=Stamp(GENESIS_POSITION, 99, PeerId(bytes(16)))),
    )

    def hashed() -> bytes:
        return Ring((ADDRESSES,), ring.segments).hash

    actions: dict[str, Callable[[], object]] = {
        "merge one changed segment": lambda: ring.merge(change),
        "the same, with the new hash": lambda: ring.merge(change)[0].hash,
        "merge a whole ring that teaches nothing": lambda: ring.merge(ring.segments),
        "merge a whole ring with other bounds and stamps": lambda: ring.merge(other.segments),
        "decode a whole ring": lambda: decoder.decode(encoded),
        "hash a whole ring": hashed,
    }
    rows = [
        ("state of the ring, kB", f"{len(encoded) / 1000:.0f}", ""),
        ("per segment, bytes", f"{len(encoded) / SEGMENTS:.0f}", ""),
    ]
    for name, action in actions.items():
        runs = [gate.measure(partial(timed, action)) for _ in range(count)]
        rows.append((f"{name}, ms", f"{statistics.median(runs):.2f}", f"{max(runs):.2f}"))
    merged, _ = ring.merge(other.segments)
    return Result(
        ("1,000 peers, 5,000 segments", "median", "max"),
        rows,
        [
            f"medians of {count}; sizes as sent, before TLS; the two rings merge to {len(merged.segments)} segments",
            "only changes travel between peers that agree otherwise: one changed segment is "
            f"{len(msgspec.msgpack.encode(change))} bytes",
        ],
    )
