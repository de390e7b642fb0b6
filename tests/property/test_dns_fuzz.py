"""The DNS codec against dnspython and against rubbish."""

from __future__ import annotations

import contextlib
import random

import dns.exception
import dns.message
import dns.name
from hypothesis import given, settings
from hypothesis import strategies as st

import dns_oracle as oracle
from dns_fuzz import believe, mangled, seeds, survives
from weavenet.dns import wire
from weavenet.dns.local import LocalAnswers
from weavenet.dns.zone import reverse_address, reverse_name

labels = st.binary(min_size=1, max_size=63)
names = st.lists(labels, max_size=5).filter(lambda parts: sum(map(len, parts)) + len(parts) < 255)
kinds = st.integers(1, 65_535)
ANSWERS = LocalAnswers(oracle.sample_zone(), 1, random.Random(1))


def to_wire(parts: list[bytes]) -> bytes:
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


@given(
    parts=names,
    kind=kinds,
    number=st.integers(0, 65_535),
    recurse=st.booleans(),
    edns=st.none() | st.integers(0, 65_535),
    dnssec=st.booleans(),
)
def test_queries_of_dnspython_are_understood(
    *, parts: list[bytes], kind: int, number: int, recurse: bool, edns: int | None, dnssec: bool
) -> None:
    if kind in (wire.OPT, 250, 251, 252):
        return
    name = dns.name.Name((*parts, b""))
    query = dns.message.make_query(name, kind, use_edns=False, flags=wire.RD if recurse else 0, id=number)
    if edns is not None:
        query.use_edns(0, 0x8000 if dnssec else 0, edns)
    parsed = wire.parse_query(query.to_wire())
    assert (parsed.number, parsed.flags, parsed.kind, parsed.klass) == (number, wire.RD * recurse, kind, wire.IN)
    assert parsed.name == to_wire(parts)
    assert parsed.folded == dns.name.Name(name.labels).canonicalize().to_wire()
    assert (parsed.edns is not None) == (edns is not None)
    if edns is not None and parsed.edns is not None:
        assert parsed.edns == wire.Edns(edns, dnssec, False)
        assert 512 <= parsed.limit_bytes <= 4096
    built = wire.build_query(number, parsed.flags, parsed.question, parsed.edns)
    assert wire.parse_query(built)[:6] == parsed[:6]


@settings(max_examples=300)
@given(st.binary(max_size=600))
def test_rubbish_is_refused_or_ignored(data: bytes) -> None:
    survives(data, ANSWERS)


def test_mangled_queries() -> None:
    rng, good = random.Random(5), seeds()
    for _ in range(20_000):
        survives(mangled(rng, good), ANSWERS)


@settings(max_examples=300)
@given(st.binary(max_size=300), st.binary(max_size=40), st.integers(0, 65_535))
def test_rubbish_from_an_upstream(data: bytes, tail: bytes, number: int) -> None:
    question = wire.encode_name("example.com") + b"\0\1\0\1"
    head = wire.build_query(number, wire.QR, question, None)
    for message in (data, head + tail, head[:6] + b"\0\1\0\1\0\1" + head[12:] + tail):
        with contextlib.suppress(wire.Malformed):
            wire.parse_response(message, number, question)


def test_mangled_answers_of_upstreams() -> None:
    assert believe(20_000, 6) > 100


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16))
def test_reverse_names(address: bytes) -> None:
    import ipaddress

    import dns.reversename

    name = dns.reversename.from_address(str(ipaddress.ip_address(address)))
    assert reverse_address(name.to_wire()) == address
    assert reverse_name(address) == name.to_wire().lower()


@given(names)
def test_other_names_are_no_reverse_names(parts: list[bytes]) -> None:
    folded = to_wire([*parts, b"in-addr", b"arpa"]).lower()
    found = reverse_address(folded)
    assert found is None or len(found) == 4
