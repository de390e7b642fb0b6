"""Answers of our own, judged by dnspython."""

from __future__ import annotations

import random

import dns.flags
import dns.rdatatype
import dns.reversename
import pytest

import dns_oracle as oracle
from weavenet.dns import wire
from weavenet.dns.local import SHUFFLES, LocalAnswers
from weavenet.dns.zone import Zone

SOA_DOMAIN = "weave.local."


def answers_of(zone: Zone, query: dns.message.QueryMessage, *, tcp: bool = False, shuffles: int = 1) -> list[bytes]:
    parsed = wire.parse_query(query.to_wire())
    limit = wire.MESSAGE_BYTES_MAX if tcp else parsed.limit_bytes
    found = LocalAnswers(zone, 1, random.Random(1)).answer(parsed, limit, shuffles)
    assert found is not None, "it is ours to answer"
    return list(found)


def answer(
    name: str, kind: str = "A", *, klass: str = "IN", edns: int | None = None, tcp: bool = False
) -> dns.message.Message:
    query = oracle.ask(name, kind, klass=klass, edns=edns)
    return oracle.check(query, answers_of(oracle.sample_zone(), query, tcp=tcp)[0])


def soa_owner(found: dns.message.Message) -> str:
    assert len(found.authority) == 1
    assert found.authority[0].rdtype == dns.rdatatype.SOA
    assert found.authority[0].ttl == 1
    assert found.authority[0][0].minimum == 1
    return found.authority[0].name.to_text()


@pytest.mark.parametrize(
    ("name", "kind", "values"),
    [
        ("web.weave.local.", "A", ["10.32.0.1"]),
        ("wEB.Weave.LOCAL.", "A", ["10.32.0.1"]),
        ("web.", "A", ["10.32.0.1"]),
        ("DB.", "AAAA", ["fd00:10::2"]),
        ("db.weave.local.", "A", ["10.32.0.2", "10.32.0.3"]),
        ("db.weave.local.", "AAAA", ["fd00:10::2"]),
        ("a.deep.weave.local.", "A", ["10.32.0.9"]),
        ("localhost.", "A", ["127.0.0.1"]),
        ("localhost.", "AAAA", ["::1"]),
        ("1.0.32.10.in-addr.arpa.", "PTR", ["Web.weave.local.", "alias.weave.local."]),
        ("2.0.32.10.IN-ADDR.arpa.", "PTR", ["db.weave.local."]),
        (dns.reversename.from_address("fd00:10::2").to_text(), "PTR", ["db.weave.local."]),
    ],
)
@pytest.mark.parametrize("edns", [None, 512, 700, 1232, 4096, 65_535, 0])
def test_names_that_exist(name: str, kind: str, values: list[str], edns: int | None) -> None:
    found = answer(name, kind, edns=edns)
    assert oracle.rcode(found) == "NOERROR"
    assert found.flags & dns.flags.AA
    assert not found.flags & dns.flags.TC
    assert sorted(oracle.values(found, kind)) == sorted(values)
    assert all(rrset.ttl == 1 for rrset in found.answer)
    assert not found.authority


@pytest.mark.parametrize(
    ("name", "kind", "rcode", "owner"),
    [
        ("web.weave.local.", "AAAA", "NOERROR", SOA_DOMAIN),
        ("web.weave.local.", "MX", "NOERROR", SOA_DOMAIN),
        ("web.weave.local.", "TXT", "NOERROR", SOA_DOMAIN),
        ("web.weave.local.", "HTTPS", "NOERROR", SOA_DOMAIN),
        ("deep.weave.local.", "A", "NOERROR", SOA_DOMAIN),
        ("weave.local.", "A", "NOERROR", SOA_DOMAIN),
        ("weave.local.", "NS", "NOERROR", SOA_DOMAIN),
        ("web.", "MX", "NOERROR", SOA_DOMAIN),
        ("nobody.weave.local.", "A", "NXDOMAIN", SOA_DOMAIN),
        ("NoBody.weave.local.", "AAAA", "NXDOMAIN", "weave.local."),
        ("x.web.weave.local.", "A", "NXDOMAIN", SOA_DOMAIN),
        ("nobody.", "A", "NXDOMAIN", SOA_DOMAIN),
        ("1.0.32.10.in-addr.arpa.", "A", "NOERROR", "10.in-addr.arpa."),
        ("77.0.47.10.in-addr.arpa.", "PTR", "NXDOMAIN", "10.in-addr.arpa."),
    ],
)
def test_what_there_is_not_is_said_at_once_and_with_the_soa(name: str, kind: str, rcode: str, owner: str) -> None:
    found = answer(name, kind, edns=1232)
    assert oracle.rcode(found) == rcode
    assert found.flags & dns.flags.AA
    assert not found.answer
    assert soa_owner(found).lower() == owner


def test_the_soa_itself() -> None:
    found = answer("weave.local.", "SOA")
    assert [rrset.rdtype for rrset in found.answer] == [dns.rdatatype.SOA]
    assert not found.authority


def test_any_gives_what_there_is() -> None:
    found = answer("db.weave.local.", "ANY")
    assert sorted(oracle.values(found, "A")) == ["10.32.0.2", "10.32.0.3"]
    assert oracle.values(found, "AAAA") == ["fd00:10::2"]


@pytest.mark.parametrize(
    ("name", "kind", "klass"),
    [
        ("version.bind.", "TXT", "CH"),
        ("web.weave.local.", "A", "CH"),
        ("weave.local.", "AXFR", "IN"),
        ("weave.local.", "IXFR", "IN"),
        ("example.com.", "TKEY", "IN"),
        ("web.weave.local.", "A", "ANY"),
    ],
)
def test_refused(name: str, kind: str, klass: str) -> None:
    query = oracle.ask(name, kind, klass=klass, edns=1232)
    found = oracle.read(answers_of(oracle.sample_zone(), query)[0])
    assert oracle.rcode(found) == "REFUSED"
    assert not found.answer


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("example.com.", "A"),
        ("notweave.local.", "A"),
        ("xweave.local.", "A"),
        (".", "NS"),
        ("com.", "NS"),
        ("com.", "DS"),
        ("8.8.8.8.in-addr.arpa.", "PTR"),
        ("08.0.32.10.in-addr.arpa.", "PTR"),
        ("32.10.in-addr.arpa.", "PTR"),
    ],
)
def test_the_rest_is_for_upstreams(name: str, kind: str) -> None:
    parsed = wire.parse_query(oracle.ask(name, kind).to_wire())
    assert LocalAnswers(oracle.sample_zone(), 1, random.Random(1)).answer(parsed, 512) is None


@pytest.mark.parametrize(("edns", "count"), [(None, 29), (512, 29), (700, 40), (1232, 50), (4096, 50)])
def test_fifty_addresses_in_a_datagram(edns: int | None, count: int) -> None:
    query = oracle.ask("many.weave.local.", edns=edns)
    (data,) = answers_of(oracle.sample_zone(), query)
    found = oracle.check(query, data)
    assert len(data) <= max(edns or 512, 512)
    got = oracle.values(found, "A")
    assert len(set(got)) == len(got)
    assert len(got) >= count - 1
    assert bool(found.flags & dns.flags.TC) == (len(got) < 50)


def test_a_thousand_addresses_fit_into_tcp() -> None:
    zone = Zone("weave.local.")
    zone.set("all.weave.local.", [bytes([10, 0, i >> 8, i & 255]) for i in range(1024)])
    zone.set("all6.weave.local.", [bytes(12) + i.to_bytes(4, "big") for i in range(1024)])
    for name, kind in (("all", "A"), ("all6", "AAAA")):
        query = oracle.ask(f"{name}.weave.local.", kind)
        found = oracle.check(query, answers_of(zone, query, tcp=True)[0])
        assert len(oracle.values(found, kind)) == 1024


@pytest.mark.parametrize("edns", [None, 1232, 4096])
def test_of_a_thousand_addresses_a_datagram_has_as_many_as_fit(edns: int | None) -> None:
    """And no more of them are put in order: any container may ask for them."""
    drawn: list[int] = []

    class Counting(random.Random):
        def sample(self, population, k, *, counts=None):  # type: ignore[no-untyped-def]
            drawn.append(k)
            return super().sample(population, k, counts=counts)

    zone = Zone("weave.local.")
    zone.set("all.weave.local.", [bytes([10, 0, i >> 8, i & 255]) for i in range(1024)])
    query = oracle.ask("all.weave.local.", edns=edns)
    parsed = wire.parse_query(query.to_wire())
    messages = LocalAnswers(zone, 1, Counting(1)).answer(parsed, parsed.limit_bytes, SHUFFLES)
    assert messages is not None
    for data in messages:
        found = oracle.check(query, data)
        assert found.flags & dns.flags.TC
        assert (edns or 512) - 16 < len(data) <= (edns or 512)
    assert sum(drawn) <= SHUFFLES * ((edns or 512) // 16 + 1)


def test_addresses_come_in_different_orders() -> None:
    query = oracle.ask("many.weave.local.", edns=4096)
    orders = {
        tuple(oracle.values(oracle.check(query, data), "A"))
        for data in answers_of(oracle.sample_zone(), query, shuffles=SHUFFLES)
    }
    assert len(orders) == SHUFFLES
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_a_long_name_in_the_domain() -> None:
    label = "x" * 60
    name = f"{label}.{label}.{label}.weave.local."
    zone = Zone("weave.local.")
    zone.set(name, [bytes(4)])
    query = oracle.ask(name, "MX")
    assert soa_owner(oracle.check(query, answers_of(zone, query)[0])) == "weave.local."
    single = oracle.ask("y" * 63 + ".", "MX")
    assert oracle.rcode(oracle.check(single, answers_of(zone, single)[0])) == "NXDOMAIN"


def test_names_leave_without_traces() -> None:
    zone = oracle.sample_zone()
    for name in ("WEB", "db", "alias", "a.deep", "many"):
        zone.set(f"{name}.weave.local.", [])
    assert len(zone) == 0
    assert zone.find(wire.encode_name("deep.weave.local.")) is None
    assert zone.names(bytes([10, 32, 0, 1])) == []
    assert not zone._between
    assert not zone._reverse


def test_names_outside_the_domain_are_not_taken_in() -> None:
    zone = Zone("weave.local.")
    for name in ("example.com.", "weave.local.", "xweave.local.", "local."):
        zone.set(name, [bytes(4)])
    assert len(zone) == 0


@pytest.mark.parametrize("name", ["a..weave.local.", ".weave.local.", "x" * 64 + ".weave.local.", "x." * 130])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Zone("weave.local.").set(name, [bytes(4)])
    with pytest.raises(ValueError, match="addresses"):
        Zone("weave.local.").set("a.weave.local.", [bytes(5)])


@pytest.mark.parametrize("domain", [".", "", "x" * 63 + "." + "y" * 63 + "." + "z" * 63 + "." + "q" * 20])
def test_domains_that_cannot_be(domain: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Zone(domain)
