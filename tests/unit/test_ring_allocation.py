"""Commands about addresses on one host, and what they answer."""

from __future__ import annotations

from typing import Any

import pytest

from ring_world import RANGE, Host, World, genesis_of, peer_id
from weavenet.core.commands import (
    Addresses,
    Allocate,
    Claim,
    Connect,
    Destroyed,
    Died,
    Done,
    Holdings,
    Lookup,
    Release,
    Revived,
)
from weavenet.core.config import NodeConfig
from weavenet.core.effects import Persist, Reply
from weavenet.core.errors import Code, Failure
from weavenet.core.limits import ADDRESSES_PER_IDENT_MAX, PENDING_REQUESTS_MAX


def got(result: object) -> tuple[str, ...]:
    assert isinstance(result, Addresses), result
    return result.addresses


def refused(result: object) -> Failure:
    assert isinstance(result, Failure), result
    return result


def test_the_lowest_free_address_and_never_the_first_or_last_of_the_subnet() -> None:
    world = World.of("a")
    assert got(world.do("a", Allocate("web"))) == ("10.32.0.1/26",)
    assert got(world.do("a", Allocate("db"))) == ("10.32.0.2/26",)
    small = [world.do("a", Allocate(f"s{number}", "10.32.0.8/29")) for number in range(6)]
    assert [got(result)[0] for result in small] == [f"10.32.0.{number}/29" for number in range(9, 15)]
    waiting = world.ask("a", Allocate("s6", "10.32.0.8/29"))
    world.settle()
    assert waiting not in world["a"].replies


def test_the_same_container_and_subnet_get_the_same_address() -> None:
    world = World.of("a")
    first = got(world.do("a", Allocate("web")))
    other = got(world.do("a", Allocate("web", "10.32.0.16/28")))
    assert got(world.do("a", Allocate("web"))) == first
    assert got(world.do("a", Allocate("web", RANGE))) == first
    assert got(world.do("a", Allocate("web", "10.32.0.16/28"))) == other != first


def test_a_claimed_address_counts_for_its_subnet() -> None:
    world = World.of("a")
    assert got(world.do("a", Claim("web", "10.32.0.9/26"))) == ("10.32.0.9/26",)
    assert got(world.do("a", Allocate("web"))) == ("10.32.0.9/26",)


@pytest.mark.parametrize(
    ("subnet", "code", "words"),
    [
        ("10.32.0.5/28", Code.INVALID, "use 10.32.0.0/28"),
        ("10.32.0.0/31", Code.INVALID, "at least 4"),
        ("10.33.0.0/24", Code.OUT_OF_RANGE, "overlaps the allocation range 10.32.0.0/26"),
        ("fd00::/64", Code.OUT_OF_RANGE, "10.32.0.0/26"),
        ("nonsense", Code.INVALID, "nonsense"),
    ],
)
def test_subnets_that_are_refused(subnet: str, code: Code, words: str) -> None:
    world = World.of("a")
    failure = refused(world.do("a", Allocate("web", subnet)))
    assert failure.code is code
    assert words in failure.sentence()
    assert refused(world.do("a", Lookup("web", subnet))).code is code


def test_a_subnet_larger_than_the_range_is_clipped_to_it() -> None:
    world = World.of("a")
    assert got(world.do("a", Allocate("web", "10.32.0.0/24"))) == ("10.32.0.1/24",)
    assert got(world.do("a", Allocate("db", "10.0.0.0/8"))) == ("10.32.0.0/8",)


@pytest.mark.parametrize("ident", ["", "x" * 129, "with\0zero", "\N{EURO SIGN}" * 43])
def test_container_names_have_bounds(ident: str) -> None:
    world = World.of("a")
    assert refused(world.do("a", Allocate(ident))).code is Code.INVALID
    assert refused(world.do("a", Claim(ident, "192.0.2.1/24"))).code is Code.INVALID


def test_freed_addresses_rest_and_are_reused_last() -> None:
    world = World.of("a")
    for number in range(4):
        world.do("a", Allocate(f"c{number}", "10.32.0.0/29"))
    assert got(world.do("a", Release("c0"))) == ("10.32.0.1/29",)
    world.wait(1.0)
    assert got(world.do("a", Release("c2"))) == ("10.32.0.3/29",)
    fresh = [got(world.do("a", Allocate(f"d{number}", "10.32.0.0/29")))[0] for number in range(2)]
    assert fresh == ["10.32.0.5/29", "10.32.0.6/29"]
    assert got(world.do("a", Allocate("e", "10.32.0.0/29"))) == ("10.32.0.1/29",)  # exhausted: the longest rest first
    world.wait(5.0)
    assert got(world.do("a", Allocate("f", RANGE))) == ("10.32.0.3/26",)  # rested: the lowest again


def test_release_answers_what_was_freed() -> None:
    world = World.of("a")
    world.do("a", Allocate("web"))
    world.do("a", Claim("web", "192.0.2.7/24"))
    assert got(world.do("a", Release("web", ("192.0.2.7", "10.32.0.55")))) == ("192.0.2.7/24",)
    assert got(world.do("a", Release("web"))) == ("10.32.0.1/26",)
    assert got(world.do("a", Release("web"))) == ()


def test_look_up() -> None:
    world = World.of("a")
    world.do("a", Allocate("web"))
    world.do("a", Allocate("web", "10.32.0.16/28"))
    world.do("a", Claim("db", "192.0.2.7/24"))
    assert got(world.do("a", Lookup("web"))) == ("10.32.0.1/26", "10.32.0.17/28")
    assert got(world.do("a", Lookup("web", "10.32.0.16/28"))) == ("10.32.0.17/28",)
    assert got(world.do("a", Lookup("nobody"))) == ()
    assert world.do("a", Lookup()) == Holdings((("db", ("192.0.2.7/24",)), ("web", ("10.32.0.1/26", "10.32.0.17/28"))))


def test_a_dead_container_keeps_its_addresses_for_30_seconds() -> None:
    world = World.of("a")
    for ident in ("web", "db", "job"):
        world.do("a", Allocate(ident))
    assert world.do("a", Died("web")) == Done()
    assert world.do("a", Died("db")) == Done()
    world.wait(10.0)
    world.do("a", Died("web"))  # said again: 30 s from now
    world.do("a", Died("job"))
    world.wait(19.5)
    assert world.do("a", Revived("job")) == Done()
    assert {ident for ident, _ in world["a"].held()} == {"web", "db", "job"}
    world.wait(1.0)
    assert {ident for ident, _ in world["a"].held()} == {"web", "job"}
    world.wait(10.0)
    assert {ident for ident, _ in world["a"].held()} == {"job"}


def test_asking_for_an_address_is_a_sign_of_life() -> None:
    world = World.of("a")
    world.do("a", Allocate("web"))
    world.do("a", Died("web"))
    world.wait(20.0)
    world.do("a", Allocate("web"))
    world.wait(20.0)
    assert world["a"].held() == {("web", "10.32.0.1")}


def test_a_destroyed_container_is_freed_at_once_and_stops_waiting() -> None:
    world = World.of("a")
    world.do("a", Claim("web", "10.32.0.9/26"))
    host = Host("b")
    host.command(1.0, 1, Allocate("web"))
    host.command(1.0, 2, Destroyed("web"))
    host.execute()
    assert refused(host.replies[1]).code is Code.CANCELLED
    assert host.replies[2] == Done()
    assert world.do("a", Destroyed("web")) == Done()
    assert world["a"].held() == set()


@pytest.mark.parametrize(
    ("address", "code"),
    [("10.32.0.0/26", Code.INVALID), ("10.32.0.63/26", Code.INVALID), ("nonsense", Code.INVALID)],
)
def test_claims_that_are_refused(address: str, code: Code) -> None:
    world = World.of("a")
    assert refused(world.do("a", Claim("web", address))).code is code


def test_claim_of_an_address_in_use_here_names_who_uses_it() -> None:
    world = World.of("a")
    world.do("a", Claim("web", "10.32.0.9/26"))
    failure = refused(world.do("a", Claim("db", "10.32.0.9/26")))
    assert failure.code is Code.ALREADY_TAKEN
    assert "web" in failure.found


@pytest.mark.parametrize(("first", "second"), [("10.32.0.7/26", "10.32.0.7/28"), ("192.0.2.9/24", "192.0.2.9/25")])
def test_no_container_has_an_address_with_two_prefixes(first: str, second: str) -> None:
    world = World.of("a")
    assert got(world.do("a", Claim("web", first))) == (first,)
    failure = refused(world.do("a", Claim("web", second)))
    assert failure.code is Code.CONFLICT and f"web has {first}" in failure.sentence()
    assert got(world.do("a", Claim("web", first))) == (first,)
    assert got(world.do("a", Lookup("web"))) == (first,)
    world.do("a", Release("web"))
    assert got(world.do("a", Claim("web", second))) == (second,)


def test_a_resting_address_can_be_claimed() -> None:
    world = World.of("a")
    world.do("a", Allocate("web"))
    world.do("a", Release("web"))
    assert got(world.do("a", Claim("db", "10.32.0.1/26"))) == ("10.32.0.1/26",)


def test_outside_the_range_claims_are_only_recorded() -> None:
    world = World.of("a")
    assert got(world.do("a", Claim("web", "192.0.2.7/24"))) == ("192.0.2.7/24",)
    assert got(world.do("a", Claim("db", "192.0.2.7/24"))) == ("192.0.2.7/24",)
    assert got(world.do("a", Claim("web", "2001:db8::7/64"))) == ("2001:db8::7/64",)
    world.crash("a")
    assert world["a"].held() == {("web", "192.0.2.7"), ("db", "192.0.2.7"), ("web", "2001:db8::7")}


def test_before_genesis_requests_wait_and_ask_for_it() -> None:
    host = Host("a")
    assert not host.ipam.needs_genesis
    host.command(1.0, 1, Claim("out", "192.0.2.7/24"))
    assert not host.ipam.needs_genesis
    host.command(1.0, 2, Claim("web", "10.32.0.9/26"))
    host.command(1.0, 3, Allocate("db"))
    host.command(1.0, 4, Claim("other", "10.32.0.9/26"))
    host.command(1.0, 5, Allocate("gone"))
    host.execute()
    assert set(host.replies) == {1}
    assert host.ipam.needs_genesis
    host.ipam.cancel(5)
    host.begin(2.0, genesis_of("a"))
    host.execute()
    assert not host.ipam.needs_genesis
    assert host.addresses(2) == ("10.32.0.9/26",)
    assert host.addresses(3) == ("10.32.0.1/26",)
    assert refused(host.replies[4]).code is Code.ALREADY_TAKEN
    assert 5 not in host.replies
    assert {ident for ident, _ in host.held()} == {"out", "web", "db"}


def test_without_a_range_there_is_no_ipam_but_claims_are_recorded() -> None:
    host = Host("a", NodeConfig(peer=peer_id("a"), name="a", nickname="a", ranges=()))
    host.command(1.0, 1, Allocate("web"))
    host.command(1.0, 2, Claim("web", "10.32.0.9/26"))
    host.begin(1.0, genesis_of("b"))
    host.execute()
    assert refused(host.replies[1]).code is Code.IPAM_OFF
    assert host.addresses(2) == ("10.32.0.9/26",)
    assert host.ipam.has_ring  # relays the cluster's ring all the same
    host.ipam.check()


def test_waiting_requests_are_bounded() -> None:
    host = Host("a")
    for request in range(PENDING_REQUESTS_MAX + 1):
        host.command(1.0, request, Allocate(f"c{request}"))
    host.execute()
    assert {request: refused(result).code for request, result in host.replies.items()} == {
        PENDING_REQUESTS_MAX: Code.BUSY
    }
    host.ipam.cancel(0)
    host.command(1.0, 5000, Allocate("late"))
    host.execute()
    assert 5000 not in host.replies


def test_addresses_per_container_are_bounded() -> None:
    world = World.of("a")
    for number in range(ADDRESSES_PER_IDENT_MAX):
        world.do("a", Claim("web", f"192.0.{number // 200}.{number % 200 + 1}/16"))
    assert refused(world.do("a", Claim("web", "192.1.0.1/16"))).code is Code.INVALID
    assert refused(world.do("a", Allocate("web"))).code is Code.INVALID


def test_the_default_subnet_is_used_when_none_is_named() -> None:
    config = NodeConfig(peer=peer_id("a"), name="a", nickname="a", ranges=(RANGE,), default_subnets=("10.32.0.32/28",))
    host = Host("a", config)
    host.begin(1.0, genesis_of("a"))
    host.command(1.0, 1, Allocate("web"))
    host.execute()
    assert host.addresses(1) == ("10.32.0.33/28",)


def test_a_local_allocation_is_one_persist_and_one_reply() -> None:
    world = World.of("a")
    world.do("a", Allocate("first"))
    world.ask("a", Allocate("web"))
    persist, reply = world["a"].queue
    assert isinstance(persist, Persist)
    assert isinstance(reply, Reply)
    assert [change.table for change in persist.changes] == ["alloc"]


@pytest.mark.parametrize("command", [Connect(()), None])
def test_commands_about_something_else_are_not_handled(command: Any) -> None:
    assert not Host("a").ipam.command(1.0, 1, command)


def test_the_clusters_range_is_adopted_and_what_was_outside_is_blocked() -> None:
    host = Host("a")
    host.command(1.0, 1, Claim("web", "10.40.0.5/24"))
    host.begin(1.0, genesis_of("b", cidr="10.40.0.0/24"))
    host.command(1.0, 2, Allocate("db", "10.32.0.0/26"))
    host.execute()
    assert host.ipam.blocked() == (("web", "10.40.0.5"),)
    assert refused(host.replies[2]).code is Code.OUT_OF_RANGE
    host.ipam.check()
    host.boot(2.0)
    assert host.ipam.blocked() == (("web", "10.40.0.5"),)
    host.command(2.0, 3, Release("web"))
    host.execute()
    assert host.ipam.blocked() == ()
    host.ipam.check()
