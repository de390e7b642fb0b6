"""A server that keeps prepared answers says what one that forgets everything says, whatever changes in between."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

import dns_oracle as oracle
from weavenet.dns import wire
from weavenet.dns.batch import prepare
from weavenet.dns.local import LocalAnswers
from weavenet.dns.udp import PreparedAnswers
from weavenet.dns.zone import Zone

NAMES = ["a.weave.local.", "b.weave.local.", "x.a.weave.local.", "A.weave.local.", "y.x.a.weave.local."]
ADDRESSES = [bytes([10, 32, 0, 1]), bytes([10, 32, 0, 2]), bytes(15) + b"\7"]
QUESTIONS = [
    *((name, kind) for name in (*NAMES, "a.", "b.", "x.", "weave.local.") for kind in ("A", "AAAA", "MX")),
    ("1.0.32.10.in-addr.arpa.", "PTR"),
    ("2.0.32.10.in-addr.arpa.", "PTR"),
    ("7." + "0." * 31 + "ip6.arpa.", "PTR"),
]
QUERIES = [oracle.ask(name, kind).to_wire() for name, kind in QUESTIONS]
changes = st.tuples(st.sampled_from(NAMES), st.lists(st.sampled_from(ADDRESSES), max_size=3, unique=True))


def said(message: bytes) -> tuple[object, ...]:
    """All but the order of addresses and the SOA's serial."""
    answer = oracle.read(message)
    return answer.rcode(), answer.question, sorted(map(str, answer.answer[0])) if answer.answer else []


@settings(max_examples=150, deadline=None)
@given(st.lists(changes, max_size=25), st.randoms(use_true_random=False))
def test_what_is_kept_is_what_would_be_said(steps: list[tuple[str, list[bytes]]], rng: random.Random) -> None:
    zone = Zone("weave.local.", ["10.32.0.0/12"])
    fresh = LocalAnswers(zone, 1, random.Random(1))
    prepared = PreparedAnswers()
    for name, addresses in steps:
        prepared.drop(zone.set(name, addresses))
        for query in rng.sample(QUERIES, len(QUERIES)):
            parsed = wire.parse_query(query)
            answers = fresh.answer(parsed, parsed.limit_bytes)
            if answers is None:
                assert query[2:] not in prepared.known
                continue
            kept = prepared.known.get(query[2:])
            if kept is None:
                prepared.keep(query[2:], parsed.folded, tuple(prepare(answer) for answer in answers))
            else:
                assert said(query[:2] + kept[0].body) == said(answers[0])
    prepared.drop(list(prepared._of_name))
    assert (prepared.size_bytes, prepared.known) == (0, {})
