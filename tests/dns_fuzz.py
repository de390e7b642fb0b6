"""Datagrams that are nearly queries, and answers that are nearly good.

``PYTHONPATH=src:tests python -m dns_fuzz COUNT [SEED]``: COUNT of them against a worker and as many answers against the
codec: the long run of what ./test does in small. Says when a good query in between was not answered.
"""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import dns.exception
import dns.message

import dns_oracle as oracle
from dns_server import worker
from weavenet.dns import wire
from weavenet.dns.cache import Cache, Key, fit
from weavenet.dns.local import LocalAnswers

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


def survives(data: bytes, answers: LocalAnswers) -> None:
    """Whatever comes in, what goes out is a message that dnspython can read, or nothing."""
    try:
        query = wire.parse_query(data)
    except wire.Malformed as error:
        if error.answer:
            assert len(error.answer) <= max(len(data), 12) + 11, "no more than what was asked with, plus OPT"
            oracle.read(error.answer)
        return
    for message in answers.answer(query, query.limit_bytes) or ():
        assert len(message) <= query.limit_bytes
        with contextlib.suppress(dns.exception.FormError, NotImplementedError):  # classes dnspython has no opinion on
            assert dns.message.from_wire(message, question_only=True).id == query.number


def upstream_answer() -> tuple[wire.Query, bytes]:
    """A question, and a good answer to it under the number 7: two addresses, an SOA, OPT."""
    query = wire.parse_query(oracle.ask("example.com.", edns=1232).to_wire())
    answer = (
        wire.build_query(7, wire.QR, query.question, None)[:6]
        + b"\0\2\0\1\0\1"
        + query.question
        + wire.Record(wire.QUESTION_NAME, wire.A, 300, bytes(4)).encode() * 2
        + wire.Record(wire.QUESTION_NAME, wire.SOA, 300, b"\0\0" + bytes(20)).encode()
        + b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
    )
    return query, answer


def believe(count: int, seed: int) -> int:
    """Mangled answers of an upstream: how many of ``count`` are believed. Those can be kept and given to clients."""
    rng = random.Random(seed)
    query, answer = upstream_answer()
    believed = 0
    for _ in range(count):
        message = mangled(rng, [answer])
        with contextlib.suppress(wire.Malformed):
            response = wire.parse_response(message, 7, query.question)
            if response.rcode not in (wire.NOERROR, wire.NXDOMAIN) or response.flags & wire.TC:
                continue
            believed += 1
            cache = Cache()
            cache.put(0.0, Key.of(query), message, response)
            kept = cache.get(1.0, Key.of(query), stale=True) or message
            assert len(kept) == len(message)
            assert len(fit(kept, query, 512)) <= 512
    return believed


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2) or not all(argument.isdigit() for argument in arguments):
        print("expected: COUNT [SEED]", file=sys.stderr)
        return 1
    count = int(arguments[0])
    seed = int(arguments[1]) if len(arguments) == 2 else 1
    with tempfile.TemporaryDirectory() as folder, worker(Path(folder)) as server:
        server.set_names({"web.weave.local.": [bytes([10, 32, 0, 1])]})
        storm(server.host, server.port, min(count, 50_000), seed + 1)  # what may fill up is full
        before_kb = server.resident_kb()
        started = time.monotonic()
        lost = storm(server.host, server.port, count, seed)
        took_s = time.monotonic() - started
        status = server.status()
        print(f"{count} mangled queries in {took_s:.0f} s, seed {seed}: the worker is alive, {lost} good queries in")
        print(
            f"between were not answered; {status.malformed} FORMERR, {status.dropped} ignored, {status.local} answered;"
        )
        print(f"resident memory {before_kb} kB before, {server.resident_kb()} kB after")
    print(f"{count} mangled answers of an upstream: {believe(count, seed)} believed, all of them harmless")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
