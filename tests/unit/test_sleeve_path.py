"""Heartbeats of sleeve: works, does not, sizes, relays, and when units may be risked."""

from __future__ import annotations

import random

from weavenet.sleeve.path import BUSY_S, HOLD_FIRST_S, IDLE_S, SIZE_FIRST, Path

DIRECT = b"direct address"


class World:
    """Answers probes that get through: ``size_max`` of the direct way, ``is_cut`` for all of it."""

    def __init__(self, *, size_max: int = 1472, room: int = 1472, relay: bool = False) -> None:
        self.now = 100.0
        self.size_max = size_max
        self.is_cut = False
        self.path = Path(self.now, random.Random(1), lambda name: room)
        self.path.candidates = (DIRECT,)
        self.path.has_relay = relay
        self.path.carries = True
        self.is_relay_working = relay
        self.probes = 0

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.1
            for nonce, name, size in self.path.due(self.now):
                self.probes += 1
                if name is None and self.is_relay_working:
                    self.path.answered(self.now + 0.01, nonce, direct=False)
                elif name is not None and not self.is_cut and size <= self.size_max:
                    self.path.learned = DIRECT
                    self.path.answered(self.now + 0.01, nonce, direct=True)


def test_an_answered_path_works_and_finds_its_size() -> None:
    world = World()
    world.run(1.0)
    assert world.path.works and world.path.is_direct and world.path.size == 1472
    assert world.path.rtt_s is not None and abs(world.path.rtt_s - 0.01) < 0.001


def test_three_misses_end_it_and_one_answer_brings_it_back() -> None:
    world = World()
    world.run(1.0)
    world.path.traffic(world.now)
    world.is_cut = True
    world.run(5 * BUSY_S)
    assert not world.path.works and not world.path.is_direct
    world.is_cut = False
    world.run(1.0)
    assert world.path.works and world.path.is_direct


def test_a_path_that_takes_less_is_noticed() -> None:
    for limit in (528, 1232, 1400):
        world = World(size_max=limit)
        world.run(30.0)
        assert world.path.works
        assert world.path.size == max(size for size in (528, 1232, 1352, 1392) if size <= limit)


def test_a_path_that_shrinks_is_followed() -> None:
    world = World()
    world.run(1.0)
    world.size_max = 1300
    for _ in range(40):
        world.path.traffic(world.now)
        world.run(1.0)
    assert world.path.works and world.path.size == SIZE_FIRST


def test_nothing_larger_than_the_interface_takes_is_tried() -> None:
    world = World(room=1452, size_max=9000)
    world.run(70.0)
    assert world.path.size == 1452


def test_the_relay_keeps_a_cut_path_working() -> None:
    world = World(relay=True)
    world.is_cut = True
    world.run(3.0)
    assert world.path.works and not world.path.is_direct
    world.is_cut = False
    world.run(70.0)
    assert world.path.is_direct


def test_probes_that_are_too_large_are_no_loss() -> None:
    world = World(size_max=1300)
    world.run(1.0)
    world.path.reported(world.now, 5)
    assert world.path.units_allowed(world.now), "five sizes were tried that do not get through"
    world.path.reported(world.now, 6)
    assert not world.path.units_allowed(world.now)
    easy = World()
    for _ in range(20):
        easy.run(0.1)
        easy.path.reported(easy.now, 0)
        assert easy.path.units_allowed(easy.now)


def test_an_idle_path_is_asked_seldom() -> None:
    world = World()
    world.path.carries = False
    world.run(5.0)
    before = world.probes
    world.run(240.0)
    assert world.path.works and world.probes - before <= 20


def test_being_asked_often_is_no_miss() -> None:
    """Addresses, keys and use of a far peer change one after the other, within one round trip."""
    path = Path(0.0, random.Random(1), lambda name: 1472)
    path.candidates, path.carries = (DIRECT,), True
    on_their_way: list[tuple[float, int]] = []
    for tick in range(1000):
        now = tick * 0.02
        for nonce in [nonce for at, nonce in on_their_way if at <= now]:
            path.learned = DIRECT
            path.answered(now, nonce, direct=True)
        on_their_way = [(at, nonce) for at, nonce in on_their_way if at > now]
        if 400 <= tick < 410:
            path.kick(now)
        on_their_way += [(now + 0.2, nonce) for nonce, _, size in path.due(now) if size <= 1472]
        if tick >= 100:
            assert path.works and path.is_direct and path.size == 1472


def test_where_nothing_leads_no_datagrams_are_sent() -> None:
    """A peer answers at its address, from another one that it cannot be reached at."""
    path = Path(0.0, random.Random(1), lambda name: 1472)
    path.candidates, path.carries = (b"another", DIRECT), True
    source, reachable = b"outward", {DIRECT}
    now, to, sizes = 0.0, [], []
    while now < 60.0:
        for nonce, name, _ in path.due(now):
            if name in reachable:
                path.learned = source
                path.answered(now + 0.01, nonce, direct=True)
        path.traffic(now)
        to.append(path.direct_name)
        sizes.append(path.size)
        now = round(now + 0.1, 3)
    assert set(to[30:]) == {DIRECT} and path.works and path.is_direct and set(sizes[50:]) == {1472}
    path.learned = source = b"new one"  # it moved: believed at once, and proven soon
    assert path.direct_name == source
    reachable = {source}
    while now < 70.0:
        for nonce, name, _ in path.due(now):
            if name in reachable:
                path.answered(now + 0.01, nonce, direct=True)
        path.traffic(now)
        assert path.direct_name == source
        now = round(now + 0.1, 3)
    assert path.works and path.is_direct


def test_a_peer_may_be_away_for_days() -> None:
    path = Path(0.0, random.Random(1), lambda name: 1472)
    path.candidates = (DIRECT,)
    rounds = 0
    while path.next_at < 72 * 3600.0:
        before = path.next_at
        assert path.due(before)
        assert path.next_at - before <= IDLE_S
        rounds += 1
    assert rounds > 4000 and not path.works


def test_a_loss_ends_units_for_longer_each_time() -> None:
    path = Path(0.0, random.Random(1), lambda name: 1472)
    assert path.units_allowed(0.0)
    now, lost, holds = 10.0, 0, []
    for _ in range(4):
        lost += 1
        path.reported(now, lost)
        assert not path.units_allowed(now)
        start = now
        while not path.units_allowed(now):
            now += 0.1
        holds.append(round(now - start))
        now += 0.5
    assert holds == [HOLD_FIRST_S, 30, 60, 120]
    path.reported(now + 1000.0, lost)
    assert path.units_allowed(now + 1000.0), "the same count again is no loss"
