"""The genesis election over a fake wire: cores only, messages delivered by hand."""

from __future__ import annotations

import random

import pytest

from weavenet.core.effects import Outbox, Persist, Unicast
from weavenet.core.election import Acceptor, Electorate, GenesisElection
from weavenet.core.election.electorate import quorum
from weavenet.core.messages.unicast import Accept, Accepted
from weavenet.core.types import Ballot, Genesis, PeerId


class Elector:
    """One elector with its disk; `crash()` restarts it from what was persisted."""

    def __init__(self, number: int, given: int) -> None:
        self.id = PeerId(bytes([number]) * 16)
        self.given = given
        self.disk: dict[tuple[str, bytes], bytes] = {}
        self.starts = 0
        self.crash()

    def crash(self) -> None:
        self.starts += 1
        self.rng = random.Random(f"{self.id.hex()}-{self.starts}")
        self.outbox = Outbox()
        self.electorate = Electorate(me=self.id, given=self.given, disk=self.disk, outbox=self.outbox)
        self.acceptor = Acceptor(self.disk.get(Acceptor.disk_key()), self.outbox)
        self.election = GenesisElection(
            me=self.id,
            electorate=self.electorate,
            acceptor=self.acceptor,
            outbox=self.outbox,
            rng=self.rng,
            draft=lambda electors: Genesis(self.rng.randbytes(16), ("10.32.0.0/12",), electors, electors),
        )

    def drain(self) -> list[Unicast]:
        sent = []
        for effect in self.outbox.drain():
            if isinstance(effect, Persist):
                for change in effect.changes:
                    key = (change.table, change.key)
                    if change.value is None:
                        self.disk.pop(key, None)
                    else:
                        self.disk[key] = change.value
            elif isinstance(effect, Unicast):
                sent.append(effect)
        return sent


class Wire:
    def __init__(self, electors: list[Elector], seed: int = 0, loss: float = 0.0) -> None:
        self.electors = {elector.id: elector for elector in electors}
        self.rng = random.Random(seed)
        self.loss = loss
        self.now = 0.0
        self.pending: list[tuple[PeerId, Unicast]] = []
        self.cut: set[PeerId] = set()

    def step(self, wanted: bool = True) -> None:
        self.now += 0.05
        ids = tuple(sorted(set(self.electors) - self.cut))
        for elector in self.electors.values():
            if elector.id not in self.cut:
                elector.election.advance(self.now, wanted=wanted, electors=ids)
                self.collect(elector)
        batch, self.pending = self.pending, []
        self.rng.shuffle(batch)
        for source, unicast in batch:
            if self.rng.random() < self.loss or {source, unicast.destination} & self.cut:
                continue
            elector = self.electors[unicast.destination]
            elector.election.handle(self.now, source, unicast.body)  # type: ignore[arg-type]
            self.collect(elector)

    def collect(self, elector: Elector) -> None:
        self.pending += [(elector.id, unicast) for unicast in elector.drain()]

    def decided(self) -> set[Genesis]:
        return {e.election.decided for e in self.electors.values() if e.election.decided is not None}

    def run_until_decided(self, steps: int = 2000) -> Genesis:
        for _ in range(steps):
            self.step()
            if self.decided():
                break
        (genesis,) = self.decided()
        return genesis


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (7, 4)])
def test_quorum_is_a_majority(n: int, expected: int) -> None:
    assert quorum(n) == expected


def test_a_lone_elector_decides_at_once() -> None:
    wire = Wire([Elector(1, given=1)])
    wire.step()
    (genesis,) = wire.decided()
    assert genesis.electors == (PeerId(b"\x01" * 16),)


def test_all_n_heard_decides_without_the_grace_period() -> None:
    electors = [Elector(number, given=3) for number in (1, 2, 3)]
    wire = Wire(electors)
    genesis = wire.run_until_decided()
    assert wire.now < 1.0
    assert genesis.electors == tuple(sorted(elector.id for elector in electors))


def test_a_quorum_decides_among_those_heard_from_after_the_grace_period() -> None:
    electors = [Elector(number, given=3) for number in (1, 2, 3)]
    wire = Wire(electors)
    wire.cut = {electors[2].id}
    genesis = wire.run_until_decided()
    assert wire.now >= 2.0
    assert genesis.electors == (electors[0].id, electors[1].id)


def test_a_larger_count_heard_within_the_grace_period_ends_it() -> None:
    """Else its deadline stays overdue, and the driver spins until the ballot is given up."""
    electors = [Elector(number, given=4) for number in (1, 2, 3, 4)]
    wire = Wire(electors)
    wire.cut = {electors[3].id}
    proposer = electors[0]
    for _ in range(20):
        wire.step()
        if len(proposer.election.heard_from) == proposer.electorate.quorum:
            break
    proposer.electorate.heard(9, electors[3].id)
    reachable = tuple(elector.id for elector in electors[:3])
    for _ in range(60):
        wire.now += 0.05
        proposer.election.advance(wire.now, wanted=True, electors=reachable)
        deadline = proposer.election.deadline()
        assert deadline is not None and deadline > wire.now


def test_a_minority_never_decides() -> None:
    electors = [Elector(number, given=5) for number in (1, 2)]
    wire = Wire(electors)
    for _ in range(400):
        wire.step()
    assert not wire.decided()


def test_nobody_votes_before_its_targets_were_tried() -> None:
    electors = [Elector(number, given=0) for number in (1, 2)]
    wire = Wire(electors)
    for elector in electors:
        elector.electorate.count_targets(2, settled=False)
    for _ in range(50):
        wire.step()
    assert not wire.decided()
    for elector in electors:
        elector.electorate.count_targets(2, settled=True)
    wire.run_until_decided()


def test_the_larger_count_of_electors_wins() -> None:
    small, large = Elector(1, given=1), Elector(2, given=3)
    small.electorate.met(large.id)
    assert small.electorate.n == 2
    small.electorate.heard(3, large.id)
    assert small.electorate.quorum == 2
    small.electorate.heard(2, large.id)
    assert small.electorate.n == 3


def peer(number: int) -> PeerId:
    return PeerId(bytes([number]) * 16)


def restarted(disk: dict[tuple[str, bytes], bytes], given: int) -> tuple[Electorate, dict[tuple[str, bytes], bytes]]:
    """An electorate of a later start, and the disk after it."""
    outbox = Outbox()
    electorate = Electorate(me=peer(1), given=given, disk=disk, outbox=outbox)
    return electorate, after(disk, outbox)


def after(disk: dict[tuple[str, bytes], bytes], outbox: Outbox) -> dict[tuple[str, bytes], bytes]:
    left: dict[tuple[str, bytes], bytes | None] = dict(disk)
    for effect in outbox.drain():
        if isinstance(effect, Persist):
            left |= {(change.table, change.key): change.value for change in effect.changes}
    return {key: value for key, value in left.items() if value is not None}


def test_an_operators_new_count_overrides_what_was_heard_and_met_before() -> None:
    outbox = Outbox()
    first = Electorate(me=peer(1), given=0, disk={}, outbox=outbox)
    first.met(peer(2))
    first.heard(5, peer(3))
    disk = after({}, outbox)
    assert first.why(lambda found: f"h{found[0]}") == "as h3 counts"
    again, disk = restarted(disk, 0)
    assert again.n == 5
    alone, disk = restarted(disk, 1)
    assert (alone.n, alone.contradicted, alone.why(repr)) == (1, 0, "--ipalloc-init consensus")


def test_the_same_count_given_again_does_not_forget_who_was_met_meanwhile() -> None:
    electorate, disk = restarted({}, 1)
    outbox = Outbox()
    electorate = Electorate(me=peer(1), given=1, disk=disk, outbox=outbox)
    electorate.met(peer(2))
    disk = after(disk, outbox)
    again, _ = restarted(disk, 1)
    assert (again.n, again.contradicted) == (2, 1)
    assert again.why(lambda found: f"h{found[0]}") == "this host and h2"


def test_an_accepted_value_survives_its_proposer() -> None:
    """*proposer dies between accept and decide*: whoever leads next finds the value at a quorum and keeps it."""
    electors = [Elector(number, given=3) for number in (1, 2, 3)]
    wire = Wire(electors)
    leader = electors[0]
    while electors[1].acceptor.state.accepted is None:
        wire.step()
    wire.pending.clear()  # the leader never hears that its value was accepted
    value = electors[1].acceptor.state.accepted
    wire.cut = {leader.id}
    assert wire.run_until_decided() == value


def test_a_restarted_acceptor_keeps_its_promise() -> None:
    electors = [Elector(number, given=3) for number in (1, 2, 3)]
    wire = Wire(electors)
    while electors[1].acceptor.state.promised.round == 0:
        wire.step()
    promised = electors[1].acceptor.state.promised
    electors[1].crash()
    assert electors[1].acceptor.state.promised == promised


def test_ballots_of_two_starts_differ_even_with_a_blank_store() -> None:
    """*lost-disk-elector*: the nonce of the start keeps a reborn proposer from reusing its old ballot."""
    elector = Elector(1, given=1)
    wire = Wire([elector])
    wire.step()
    first = elector.acceptor.state.promised
    elector.disk.clear()
    elector.crash()
    wire.now = 0.0
    wire.step()
    assert elector.acceptor.state.promised.round == first.round
    assert elector.acceptor.state.promised != first


@pytest.mark.parametrize("seed", range(60))
def test_at_most_one_genesis_under_loss_and_crashes(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.choice([3, 4, 5])
    electors = [Elector(number + 1, given=count) for number in range(count)]
    wire = Wire(electors, seed=seed, loss=rng.choice([0.0, 0.2, 0.4]))
    everything: set[Genesis] = set()
    for _ in range(500):
        wire.step()
        everything |= wire.decided()
        if rng.random() < 0.02:
            victim = rng.choice(electors)
            victim.crash()
        assert len(everything) <= 1
    wire.loss = 0.0
    everything |= {wire.run_until_decided()}
    assert len(everything) == 1


@pytest.mark.parametrize("ranges", [(), ("elsewhere",)])
def test_a_record_that_no_log_takes_is_never_accepted(ranges: tuple[str, ...]) -> None:
    """Accepted durably, it would be proposed again by every later ballot, and nothing could ever be decided."""
    elector = Elector(1, given=3)
    other = PeerId(b"\x02" * 16)
    ballot = Ballot(7, other, b"nonce..8")
    bad = Genesis(b"c" * 16, ranges, (other,), (other,))
    elector.election.handle(0.0, other, Accept(ballot, 3, bad))
    assert elector.acceptor.state.accepted is None
    assert elector.drain() == []
    elector.election.handle(0.0, other, Accept(ballot, 3, Genesis(b"c" * 16, ("10.32.0.0/12",), (other,), (other,))))
    assert elector.acceptor.state.accepted is not None
    assert [effect.body for effect in elector.drain()] == [Accepted(ballot, 3)]


def test_who_waits_for_a_quorum_begins_the_moment_it_is_there() -> None:
    electors = [Elector(number, given=3) for number in (1, 2, 3)]
    wire = Wire(electors)
    wire.cut = {electors[1].id, electors[2].id}
    for _ in range(30):
        wire.step()
    wire.cut = set()
    appeared = wire.now
    wire.run_until_decided()
    assert wire.now - appeared < 0.5


def test_an_elector_is_asked_again_the_moment_it_has_counted_its_targets() -> None:
    electors = [Elector(1, given=3), Elector(2, given=3), Elector(3, given=0)]
    leader, _, late = electors
    late.electorate.count_targets(3, settled=False)
    ids = tuple(elector.id for elector in electors)
    leader.election.advance(0.0, wanted=True, electors=ids, settled=frozenset(ids[:2]))
    asked = [unicast.destination for unicast in leader.drain()]
    assert asked == [electors[1].id, late.id]
    leader.election.advance(0.01, wanted=True, electors=ids, settled=frozenset(ids[:2]))
    assert leader.drain() == []
    leader.election.advance(0.02, wanted=True, electors=ids, settled=frozenset(ids))
    assert late.id in [unicast.destination for unicast in leader.drain()]
