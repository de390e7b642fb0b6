"""Datagrams that are nearly queries: for tests, and for a long run against a server that is up.

``python -m weavenet.dns.fuzz HOST PORT COUNT [SEED]`` sends COUNT of them, a good query after each thousand, and says
when one of those was not answered.
"""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Sequence

from weavenet.dns import wire

PATIENCE_S = 5.0
EVERY = 1000


def seeds() -> list[bytes]:
    """Good queries of every sort."""
    found = []
    long = "x" * 63
    for name in ("web.weave.local", "nobody.weave.local", "web", "1.0.32.10.in-addr.arpa", f"{long}.weave.local", ""):
        for kind in (wire.A, wire.AAAA, wire.MX, wire.PTR, wire.ANY, wire.SOA, 250):
            for edns in (None, wire.Edns(512, False, False), wire.Edns(4096, True, False)):
                question = wire.encode_name(name) + kind.to_bytes(2, "big") + b"\0\1"
                found.append(wire.build_query(1, wire.RD, question, edns))
    return found


def mangled(rng: random.Random, good: Sequence[bytes]) -> bytes:
    """One of ``good`` with a few bytes changed, cut, doubled or put in; sometimes nothing but noise."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(600))
    data = bytearray(rng.choice(good))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(8))
            case 3:
                data[at:at] = data[at : at + rng.randrange(1, 30)]
            case 4:
                data[at : at + 1] = rng.choice((b"\0", b"\xc0", b"\xff", b"\x3f", b"\x40", b"\x0c"))
            case _:
                del data[at : at + rng.randrange(1, 12)]
    return bytes(data)


def storm(host: str, port: int, count: int, seed: int) -> int:
    """How many of the good queries in between were not answered."""
    rng, good = random.Random(seed), seeds()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    lost = 0
    with socket.socket(family, socket.SOCK_DGRAM) as noise, socket.socket(family, socket.SOCK_DGRAM) as voice:
        voice.settimeout(PATIENCE_S)
        for sock in (noise, voice):
            sock.connect((host, port))
        noise.setblocking(False)
        for number in range(1, count + 1):
            try:
                noise.send(mangled(rng, good))
            except (BlockingIOError, ConnectionRefusedError):
                continue
            if number % EVERY == 0 or number == count:
                lost += not _is_answered(voice, number & 0xFFFF)
                _drain(noise)
    return lost


def _is_answered(sock: socket.socket, number: int) -> bool:
    question = wire.encode_name("weave.local") + wire.SOA.to_bytes(2, "big") + b"\0\1"
    try:
        sock.send(wire.build_query(number, wire.RD, question, None))
        while True:
            answer = sock.recv(wire.MESSAGE_BYTES_MAX)
            if answer[:2] == number.to_bytes(2, "big"):
                return answer[3] & wire.RCODE == wire.NOERROR
    except OSError:
        return False


def _drain(sock: socket.socket) -> None:
    try:
        while True:
            sock.recv(wire.MESSAGE_BYTES_MAX)
    except OSError:
        return


def main(arguments: list[str]) -> int:
    if len(arguments) not in (3, 4):
        print("expected: HOST PORT COUNT [SEED]", file=sys.stderr)
        return 1
    host, port, count = arguments[0], int(arguments[1]), int(arguments[2])
    seed = int(arguments[3]) if len(arguments) == 4 else 1
    lost = storm(host, port, count, seed)
    print(f"{count} mangled datagrams, seed {seed}: {lost} good queries between them were not answered")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
