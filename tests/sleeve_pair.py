"""Two workers' data paths in one process: real sealing and opening, a network made of a list, TAP devices made of
sockets that keep the borders of frames. ``python -m sleeve_pair N`` throws N damaged datagrams at one of them: the long
run of what ./test does in small.
"""

from __future__ import annotations

import ctypes
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable

from weavenet.core.overlay.sleeve import SleeveDesired, SleeveEndpoint, SleevePeer
from weavenet.core.types import PeerId
from weavenet.sleeve.arrival import Arrival
from weavenet.sleeve.inbound import Inbound
from weavenet.sleeve.keys import OwnPairs
from weavenet.sleeve.memory import Pairs
from weavenet.sleeve.outbound import Outbound
from weavenet.sleeve.session import Session, Sessions
from weavenet.sleeve.tap import VNET_BYTES
from weavenet.sleeve.udp import sockaddr

A, B, C = PeerId(b"a" * 16), PeerId(b"b" * 16), PeerId(b"c" * 16)
HOSTS = {A: "192.0.2.1", B: "192.0.2.2", C: "192.0.2.3"}
PORT = 6783


def name_of(host: str) -> bytes:
    name = sockaddr(socket.AF_INET6, SleeveEndpoint(host, PORT))
    assert name is not None
    return name


class FakeUdp:
    """As :class:`weavenet.sleeve.udp.UdpSocket`. ``sent``: (raw address, datagrams); ``waiting``: what
    :meth:`receive` is to bring: (bytes, stride, raw source)."""

    def __init__(self) -> None:
        self.family = int(socket.AF_INET6)
        self.port = PORT
        self.arrival = Arrival()
        self.source = b""
        self.refused_size = False
        self.no_room = 0
        self.sent: list[tuple[bytes, list[bytes]]] = []
        self.waiting: list[tuple[bytes, int, bytes]] = []

    def receive(self) -> bool:
        if not self.waiting:
            return False
        data, stride, self.source = self.waiting.pop(0)
        self.arrival.place(data, stride)
        return True

    def send(self, address: int, length: int, stride: int, name: bytes) -> bool:
        data = ctypes.string_at(address, length)
        self.sent.append((name, [data[at : at + stride] for at in range(0, length, stride)]))
        return True

    def send_scattered(self, pairs: Pairs, first: int, count: int, last_bytes: int, name: bytes) -> bool:
        datagrams = []
        for number in range(first, first + count):
            head, body = pairs.places[2 * number], pairs.places[2 * number + 1]
            size = body.length if number < first + count - 1 else last_bytes
            datagrams.append(ctypes.string_at(head.base, head.length) + ctypes.string_at(body.base, size))
        self.sent.append((name, datagrams))
        return True

    def take(self) -> list[bytes]:
        """Datagrams sent since the last call, in order."""
        sent, self.sent = self.sent, []
        return [datagram for _, datagrams in sent for datagram in datagrams]


class End:
    """One worker's tables and both directions, without its loop."""

    def __init__(self, me: PeerId, now: float = 0.0, *, aes: bool = True) -> None:
        self.me = me
        self.tap, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.tap, self.far):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.udp = FakeUdp()
        self.pairs = OwnPairs(now, aes=aes)
        self.sessions = Sessions(self.pairs, self.udp.family, random.Random(1))
        self.now = now
        self.controls: list[tuple[PeerId, bytes, bool]] = []
        self.outbound = Outbound(self.tap.fileno(), self.udp, self.sessions, lambda: self.now)  # type: ignore[arg-type]
        self.inbound = Inbound(self.tap.fileno(), self.udp, self.sessions, self._on_control, lambda: self.now)  # type: ignore[arg-type]

    def _on_control(self, session: Session, plaintext: bytes, source: bytes, direct: bool) -> None:
        self.controls.append((session.peer, plaintext, direct))

    def mac(self) -> bytes:
        return b"\x02" + self.me[:5]

    def know(self, *others: End, **changes: object) -> None:
        peers = []
        for other in others:
            fields: dict[str, object] = {
                "peer": other.me,
                "keys": other.pairs.public(),
                "endpoints": (SleeveEndpoint(HOSTS[other.me], PORT),),
                "relay": None,
                "is_open": True,
                "carries": True,
                "takes_groups": True,
                "macs": (other.mac(),),
            }
            peers.append(SleevePeer(**{**fields, **changes}))  # type: ignore[arg-type]
        self.sessions.apply(self.now, SleeveDesired(self.me, 1376, tuple(peers)))

    def seal(self, *frames: bytes) -> list[bytes]:
        """Frames of a container, to the datagrams that leave for them."""
        for frame in frames:
            self.far.send(frame)
        self.outbound.drain()
        return self.udp.take()

    def open(self, datagrams: list[bytes], source: bytes, *, stride: int = 0) -> list[bytes]:
        """The frames that containers get for these datagrams, which arrive as one batch per run of equal size."""
        at = 0
        while at < len(datagrams):
            size = len(datagrams[at])
            end = at + 1
            while end < len(datagrams) and len(datagrams[end - 1]) == size >= len(datagrams[end]) and end - at < 40:
                end += 1
            self.udp.waiting.append((b"".join(datagrams[at:end]), size, source))
            at = end
        while self.inbound.drain():
            pass
        return self.frames()

    def frames(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.far.recv(1 << 17))
            except BlockingIOError:
                return found

    def counters(self) -> Counter[str]:
        names = ("malformed", "unknown", "replayed", "forged", "refused", "not_open", "incomplete", "unwritten")
        return Counter({name: getattr(self.inbound.counts, name) for name in names})

    def close(self) -> None:
        self.tap.close()
        self.far.close()


def plain_frame(to: End, payload: bytes, source: bytes = b"\x02source") -> bytes:
    """A frame without offloads."""
    return bytes(VNET_BYTES) + to.mac() + (source + bytes(6))[:6] + b"\x88\xb6" + payload


def damage(rng: random.Random, datagram: bytes, earlier: list[bytes]) -> bytes:
    """Replayed, truncated, flipped, spliced, extended, or made up."""
    kind = rng.randrange(6)
    data = bytearray(datagram)
    if kind == 0 and earlier:
        return rng.choice(earlier)
    if kind == 1:
        return bytes(data[: rng.randrange(len(data))])
    if kind == 2 and earlier:
        cut = rng.randrange(1, len(data))
        return bytes(data[:cut]) + rng.choice(earlier)[cut:]
    if kind == 3:
        return bytes(data) + rng.randbytes(rng.randint(1, 40))
    if kind == 4:
        return rng.randbytes(rng.randrange(100))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(23) if rng.random() < 0.6 else rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def fuzz(count: int, seed: int, unit: Callable[[random.Random], bytes]) -> Counter[str]:
    """Throw ``count`` damaged datagrams at B from an address of nobody. Raises AssertionError when one is delivered,
    moves an endpoint, or is not counted."""
    rng = random.Random(seed)
    a, b = End(A), End(B)
    a.know(b)
    b.know(a)
    home = name_of(HOSTS[A])
    session = b.sessions.by_peer[A]
    earlier: list[bytes] = []
    for _ in range(30):  # genuine ones, delivered: what is replayed later
        a.now += 10.0 * rng.random()
        if rng.random() < 0.5:
            a.sessions.by_peer[B].path.reported(a.now, session.lost + 1 + len(earlier))
        frames = [unit(rng), plain_frame(b, rng.randbytes(rng.randrange(40, 1200)))]
        for frame in frames:
            datagrams = a.seal(b"".join((frame[:VNET_BYTES], b.mac(), frame[VNET_BYTES + 6 :])))
            assert b.open(datagrams, home)
            earlier += datagrams
    assert session.path.learned == home
    received = session.received
    stranger = name_of("203.0.113.9")
    done = 0
    while done < count:
        # Genuine datagrams that never arrive, so that their counters are fresh: damaged, nothing of them may pass.
        fresh = a.seal(unit(rng)[:VNET_BYTES] + b.mac() + unit(rng)[VNET_BYTES + 6 :])
        for datagram in fresh:
            data = damage(rng, datagram, earlier)
            if data[:23] + data[24:] == datagram[:23] + datagram[24:]:
                continue  # only hops differ, which are not authenticated
            before = sum(b.counters().values())
            partials = len(session.partials)
            delivered = b.open([data], stranger)
            assert not delivered, data.hex()
            assert session.path.learned == home
            is_kept = len(session.partials) > partials or (data and data[0] & 15 == 1 and len(data) > 24)
            assert is_kept or not data or sum(b.counters().values()) > before, data.hex()
            done += 1
    assert session.received == received and len(session.partials) <= 4
    assert b.inbound.failure is None
    a.close()
    b.close()
    return b.counters()


def main() -> int:
    from unit.test_sleeve_units import unit as tcp_unit

    def unit(rng: random.Random) -> bytes:
        payload = rng.randbytes(rng.randrange(200, 4000))
        return tcp_unit(
            rng, version=rng.choice((4, 6)), segment=rng.randint(100, 199), payload=payload, options=12, flags=16
        )

    count = int(sys.argv[1])
    total: Counter[str] = Counter()
    before = resident_mb()
    started = time.monotonic()
    for seed in range(max(1, count // 50_000)):
        total += fuzz(min(count, 50_000), seed + int.from_bytes(os.urandom(4), "big"), unit)
        print(f"{seed + 1}: {resident_mb():.1f} MB resident", flush=True)
    print(
        f"{count} damaged datagrams in {time.monotonic() - started:.0f} s: none delivered, none moved an endpoint, no "
        f"exception; {before:.1f} MB resident before, {resident_mb():.1f} MB after; counted: {dict(total)}"
    )
    return 0


def resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    sys.exit(main())
