"""Life of links between whole meshes: hellos, refusals, duplicates, restarts, silence, pauses."""

from __future__ import annotations

import pytest
from mesh_network import REFUSED, Host, Network, peer_id

from weavenet.core.effects import CloseLink, Send
from weavenet.core.errors import RefusalCode
from weavenet.core.events import DialFailed, DialOutcome, InboundFailed, LinkOpened, Received
from weavenet.core.mesh.links import TRANSITIONS, LinkState, LinkStep
from weavenet.core.messages.gossip import Prune
from weavenet.core.messages.link import Heartbeat, Hello, Refusal


def pair(network: Network, **fields: object) -> tuple[Host, Host]:
    return network.add(1, [2], **fields), network.add(2, [], **fields)


def linked(network: Network) -> bool:
    return network.is_complete() and network.is_equal()


def states(host: Host) -> list[str]:
    return [report.state for report in host.mesh.connection_reports(host.network.now)]


def test_every_state_has_a_way_out_and_closing_is_final() -> None:
    for state in LinkState:
        steps = [step for (before, step) in TRANSITIONS if before is state]
        assert bool(steps) == (state is not LinkState.CLOSING)
        assert state is LinkState.CLOSING or LinkStep.CLOSE in steps


def test_two_peers_link_up_and_tell_it_once() -> None:
    network = Network()
    one, two = pair(network)
    assert network.run(5, lambda: linked(network))
    network.run(3)
    assert [change.links_up for change in one.changes if change.links_up] == [(two.peer,)]
    assert [change.links_up for change in two.changes if change.links_up] == [(one.peer,)]
    assert one.mesh.link_host(two.peer) == "10.0.0.2"
    assert one.mesh.link_rtt_ms(two.peer) == pytest.approx(8, abs=4)
    assert one.mesh.next_hop(two.peer) is not None
    assert one.notes == ["host2 at 10.0.0.2:6783 connected"]


def test_simultaneous_dials_end_in_one_link_without_any_interruption() -> None:
    for seed in range(20):
        network = Network(seed)
        one, two = network.add(1, [2]), network.add(2, [1])
        assert network.run(5, lambda: linked(network))  # noqa: B023
        network.run(20)
        for host in (one, two):
            assert host.mesh.terminations == 0
            assert not any(change.links_down for change in host.changes)
            assert len(host.dialled) <= 2
            assert states(host) == ["established"]
            assert [note.split()[-1] for note in host.notes] == ["connected"]


def test_a_refusal_is_shown_on_both_sides_with_its_sentence() -> None:
    network = Network()
    one, two = pair(network)
    two.shared.refusal = REFUSED
    network.run(3)
    for host, outbound in ((one, True), (two, False)):
        report = next(r for r in host.mesh.connection_reports(network.now) if r.state == "refused")
        assert REFUSED.sentence in report.info
        assert report.outbound is outbound
        assert not any(change.links_up for change in host.changes)
    two.shared.refusal = None
    assert network.run(120, lambda: linked(network))
    assert states(one) == states(two) == ["established"]


def test_refusals_back_off_to_a_minute_and_failures_to_eight_seconds() -> None:
    network = Network(is_checking=False)
    one = network.add(1, [2, 3])
    two = network.add(2, [])
    two.shared.refusal = REFUSED
    network.run(600)
    refused = [at for at, host in one.dialled if host == "10.0.0.2"]
    failed = [at for at, host in one.dialled if host == "10.0.0.3"]
    assert 40 < refused[-1] - refused[-2] < 80
    assert 5.5 < failed[-1] - failed[-2] < 10.5
    assert failed[1] - failed[0] < 0.7


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"protocol_min": 9, "protocol_max": 9}, RefusalCode.PROTOCOL),
        ({"name": "::77"}, RefusalCode.IDENTITY),
        ({"peer": peer_id(9)}, RefusalCode.IDENTITY),
        ({"ranges": ("10.32.0.0/12", "elsewhere")}, RefusalCode.MALFORMED),
    ],
)
def test_a_hello_that_cannot_be_right_is_refused(changed: dict[str, object], code: RefusalCode) -> None:
    network = Network()
    one = network.add(1, [])
    fields = {name: getattr(hello_of(2), name) for name in Hello.__struct_fields__} | changed
    refusals = answers_to(one, Hello(**fields))
    assert [message.code for message in refusals] == [code]
    assert "expected" in refusals[0].sentence and "found" in refusals[0].sentence and "next" in refusals[0].sentence


def test_anything_before_the_hello_is_refused() -> None:
    network = Network()
    assert [message.code for message in answers_to(network.add(1, []), Prune())] == [RefusalCode.MALFORMED]


def hello_of(number: int) -> Hello:
    peer = peer_id(number)
    return Hello(
        1, 1, (), "0", peer, f"::{number}", "", 1, b"", (), False, False, b"", True, 0, 6783, 5, (), (0, 0), ""
    )


def answers_to(host: Host, message: Hello | Prune) -> list[Refusal]:
    host.mesh.handle(1000.0, LinkOpened(1, None, peer_id(2), "::2", "10.0.0.2", 40_000))
    host.mesh.handle(1000.0, Received(1, message))
    effects = host.outbox.drain()
    assert isinstance(effects[-1], CloseLink)
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Refusal)]


def test_nothing_is_up_before_the_other_side_accepted_too() -> None:
    host = Network().add(1, [])
    host.mesh.handle(1000.0, LinkOpened(1, None, peer_id(2), "::2", "10.0.0.2", 40_000))
    host.mesh.handle(1000.0, Received(1, hello_of(2)))
    sends = [effect for effect in host.outbox.drain() if isinstance(effect, Send)]
    assert [type(send.message) for send in sends] == [Hello, Heartbeat]
    assert not any(send.stateless for send in sends), "a heartbeat must not overtake the hello"
    assert not host.mesh.take_changes().links_up
    host.mesh.handle(1000.1, Received(1, Heartbeat(1, 0)))
    assert host.mesh.take_changes().links_up == (peer_id(2),)


def test_our_own_address_is_left_alone() -> None:
    network = Network()
    one = network.add(1, [1])
    network.run(20)
    assert len(one.dialled) == 1
    assert [report.state for report in one.mesh.target_reports(network.now)] == ["self"]
    assert one.mesh.target_count() == (1, True)
    local = network.add(2, [2], local_hosts=("10.0.0.2",))
    network.run(70)
    assert local.dialled == []


def test_links_are_bounded_and_the_refused_one_says_so() -> None:
    network = Network()
    network.add(1, [], conn_limit=2)
    for number in (2, 3, 4):
        network.add(number, [1], discovery=False)
    network.run(5)
    assert len(network.hosts[1].mesh.established_peers()) == 2
    refused = [report for number in (2, 3, 4) for report in network.hosts[number].mesh.connection_reports(network.now)
               if report.state == "refused"]  # fmt: skip
    assert len(refused) == 1
    assert "--conn-limit" in refused[0].info


def is_known_to_all(network: Network) -> bool:
    everybody = {host.peer for host in network.living()}
    return all(host.mesh.reachable() == everybody for host in network.living())


@pytest.mark.parametrize("spread_s", [0.05, 2.0])
def test_whoever_has_no_other_way_in_gets_a_link_of_a_full_peer(spread_s: float) -> None:
    """Discovery links the first five to each other, which are all the links that they may have."""
    network = Network()
    for number in range(10):
        network.add(number, [0], conn_limit=4)
        network.run(spread_s)
    assert network.run(180, lambda: is_known_to_all(network))
    assert max(len(host.mesh.established_peers()) for host in network.living()) == 4
    network.run(30)
    before = sum(host.mesh.terminations for host in network.living())
    network.run(60)
    assert is_known_to_all(network)
    assert sum(host.mesh.terminations for host in network.living()) == before


def test_two_meshes_whose_peers_are_all_full_join_at_an_operators_word() -> None:
    network = Network()
    for number in range(10):
        network.add(number, [number // 5 * 5], conn_limit=4)
    network.run(30)
    one, other = network.hosts[0], network.hosts[5]
    assert len(one.mesh.established_peers()) == len(other.mesh.established_peers()) == 4
    assert len(one.mesh.reachable()) == len(other.mesh.reachable()) == 5
    one.mesh.connect(network.now, (network.address(5),), replace=False)
    one.flush()
    assert network.run(30, lambda: is_known_to_all(network))
    network.run(60)
    assert is_known_to_all(network)
    assert other.peer in one.mesh.established_peers()


def test_a_peer_started_anew_replaces_its_old_links_and_records() -> None:
    network = Network()
    one, two = pair(network)
    two.mesh.publish(network.now, 9, b"k", b"old")
    two.flush()
    assert network.run(5, lambda: linked(network))
    before = one.mesh.incarnation(two.peer)
    two.alive = False  # killed without a sign: its host still holds the connection
    again = network.add(2, [1])
    again.mesh.publish(network.now, 10, b"k", b"new")
    again.flush()
    assert network.run(8, lambda: linked(network))
    assert one.mesh.incarnation(two.peer) > before
    assert one.mesh.records_of(two.peer, 9) == []
    assert one.mesh.records_of(two.peer, 10) == [b"new"]
    network.run(15)
    assert linked(network)


def test_a_killed_peer_is_dialled_at_once_and_found_when_it_is_back() -> None:
    network = Network()
    one, two = pair(network)
    assert network.run(5, lambda: linked(network))
    network.run(10)
    network.kill(2)
    down_at = network.now
    network.run(1)
    assert any(0 <= at - down_at < 0.6 for at, _ in one.dialled)
    assert one.mesh.established_peers() == frozenset()
    assert one.mesh.unreachable_since(two.peer) == pytest.approx(down_at, abs=0.1)
    network.run(30)
    network.add(2, [])
    assert network.run(12, lambda: linked(network))


def test_a_peer_that_comes_and_goes_does_not_have_everybody_dial_those_that_are_no_more() -> None:
    network = Network()
    for number in range(5):
        network.add(number, [0] if number else [])
    network.run(10)
    gone = {network.address(number) for number in (2, 3)}  # their records name each other, and are kept for a day
    for number in (2, 3):
        network.kill(number)
    network.run(700)
    one = network.hosts[1]

    def dials() -> int:
        return sum(to in gone for _, to in one.dialled)

    before = dials()
    for _ in range(30):
        network.kill(4)
        network.run(2)
        network.add(4, [0])
        network.run(2)
    assert 2 <= dials() - before <= 2 * 4, "in two minutes"
    network.add(2, [0])
    assert network.run(10, lambda: network.hosts[2].peer in one.mesh.established_peers())


def test_silence_is_noticed_within_seconds() -> None:
    network = Network()
    one, two = pair(network)
    assert network.run(5, lambda: linked(network))
    network.cut = lambda _one, _other: True
    assert network.run(4.5, lambda: not one.mesh.established_peers() and not two.mesh.established_peers())
    assert one.mesh.terminations == 1
    assert one.notes[1].startswith("host2 at 10.0.0.2:6783 disconnected: nothing was heard for")


def test_a_pause_of_our_own_drops_no_link() -> None:
    """The clock jumps by ten minutes, and the beats of the others are still unread (history *suspend*)."""
    network = Network()
    one, two = pair(network)
    assert network.run(5, lambda: linked(network))
    network.now += 600.0
    network.run(10)
    assert linked(network)
    assert one.mesh.terminations == two.mesh.terminations == 0


def test_partition_heals_quickly_for_all_links() -> None:
    for seed in range(4):
        network = Network(seed)
        for number in range(6):
            network.add(number, [0, 1, 2])
        assert network.run(20, lambda: linked(network))  # noqa: B023
        network.cut = lambda one, other: (one < 3) != (other < 3)
        network.run(30 + 7 * seed)
        assert all(len(host.mesh.reachable()) == 3 for host in network.living())
        network.cut = lambda one, other: False
        assert network.run(15, lambda: linked(network) and network.is_connected())  # noqa: B023


def test_discovery_completes_the_mesh_and_forget_stops_it() -> None:
    network = Network()
    for number in range(4):
        network.add(number, [0])
    assert network.run(10, lambda: linked(network))
    three = network.hosts[3]
    network.kill(2)
    network.run(1)
    result = three.mesh.forget(network.now, ["10.0.0.2"])
    assert result is not None
    three.flush()
    network.run(2)
    dialled = len(three.dialled)
    network.run(20)
    assert all(host != "10.0.0.2" for _, host in three.dialled[dialled:])
    assert three.mesh.connect(network.now, ["10.0.0.2"], False) is None
    three.flush()
    network.run(1)
    assert three.dialled[-1][1] == "10.0.0.2"


def test_without_discovery_only_targets_are_dialled() -> None:
    network = Network()
    for number in range(4):
        network.add(number, [0], discovery=False)
    network.run(10)
    assert [len(host.mesh.established_peers()) for host in network.living()] == [3, 1, 1, 1]
    assert network.is_connected()


def test_names_are_resolved_anew_and_may_yield_many_addresses() -> None:
    network = Network()
    one = network.add(1, ["peers.test"], discovery=False)
    network.run(3)
    assert [report.state for report in one.mesh.target_reports(network.now)] == ["unresolved"]
    assert one.mesh.target_count() == (2, True)
    assert one.mesh.missing_targets() == ("peers.test",)
    network.names["peers.test"] = (("10.0.0.1", 6783), ("10.0.0.2", 6783), ("10.0.0.3", 6783))
    network.add(2, [], discovery=False)
    network.add(3, [], discovery=False)
    assert network.run(12, lambda: len(one.mesh.established_peers()) == 2)
    assert one.mesh.target_count() == (3, True)
    network.names["peers.test"] += (("10.0.0.4", 6783),)
    network.add(4, [], discovery=False)
    assert network.run(40, lambda: len(one.mesh.established_peers()) == 3)


def test_observers_are_no_electors() -> None:
    network = Network()
    one = network.add(1, [2, 3])
    for number in (2, 3):
        host = network.add(number, [])
        if number == 3:
            host.shared.fields = type(host.shared.fields)(ranges=("10.32.0.0/12",), elector=False)
    network.run(3)
    assert one.mesh.target_count() == (2, True)


def test_failed_connections_of_others_are_shown_for_a_while() -> None:
    network = Network()
    one = network.add(1, [])
    one.handle(InboundFailed("10.0.0.9", 4000, RefusalCode.PASSWORD, "expected our password"))
    one.handle(InboundFailed("10.0.0.9", 4001, RefusalCode.PASSWORD, "expected our password"))
    assert states(one) == ["refused"]
    network.run(301)
    assert states(one) == []


def test_a_wrong_password_seen_by_the_dialler_is_a_refusal() -> None:
    network = Network()
    one = network.add(1, [])
    one.mesh.connect(network.now, ["10.0.0.9"], False)
    one.mesh.deadline()
    one.flush()
    network.run(0.001)
    one.network.dial = lambda host, dial: host.handle(DialFailed(dial.dial, DialOutcome.PASSWORD, "not signed by us"))  # type: ignore[method-assign]
    network.run(2)
    report = one.mesh.connection_reports(network.now)[0]
    assert report.state == "refused" and "not signed by us" in report.info
