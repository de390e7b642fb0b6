"""Heartbeats on the data path: states, intervals, loss."""

from __future__ import annotations

import random

import pytest

from weavenet.core.effects import Outbox, Probe
from weavenet.core.overlay.paths import Paths, PathState
from weavenet.core.types import PeerId, plane_mac

PEER = PeerId(b"p" * 16)


class Bench:
    def __init__(self, in_use: bool = True) -> None:
        self.outbox = Outbox()
        self.paths = Paths(outbox=self.outbox, rng=random.Random(1))
        self.now = 0.0
        self.paths.set_peers(self.now, {PEER: in_use})

    def probes(self) -> list[Probe]:
        return [effect for effect in self.outbox.drain() if isinstance(effect, Probe)]

    def run(self, until: float, answer: bool, rtt_s: float = 0.01) -> list[float]:
        """Times at which a probe left."""
        times = []
        while (due := self.paths.deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            self.paths.tick(self.now)
            for probe in self.probes():
                times.append(self.now)
                if answer:
                    self.now += rtt_s
                    self.paths.received(self.now, plane_mac(PEER), probe.nonce, is_answer=True)
        self.now = until
        return times


def test_an_answer_proves_the_path() -> None:
    bench = Bench()
    assert bench.paths.state(PEER) is PathState.UNPROVEN
    bench.run(0.6, answer=True)
    assert bench.paths.state(PEER) is PathState.WORKING
    rtt = bench.paths.rtt_ms(PEER)
    assert rtt is not None
    assert 9 < rtt < 11


def test_three_misses_break_a_busy_path_within_two_seconds() -> None:
    bench = Bench()
    bench.run(0.6, answer=True)
    bench.paths.traffic(bench.now)
    broken_after = bench.now
    while bench.paths.state(PEER) is not PathState.BROKEN:
        bench.paths.traffic(bench.now)
        bench.run(bench.now + 0.1, answer=False)
    assert bench.now - broken_after <= 2.1
    bench.run(bench.now + 1, answer=True)
    assert bench.paths.state(PEER) is PathState.WORKING


def test_an_idle_path_is_probed_rarely_and_a_dead_one_ever_less() -> None:
    bench = Bench(in_use=False)
    idle = bench.run(600, answer=True)
    assert len(idle) <= 12
    dead = bench.run(3600, answer=False)
    assert max(b - a for a, b in zip(dead[-3:], dead[-2:], strict=False)) <= 60.0 + 1e-6
    assert len(dead) < 120


def test_traffic_makes_a_quiet_path_busy() -> None:
    bench = Bench()
    bench.run(100, answer=True)
    bench.paths.traffic(bench.now)
    due = bench.paths.deadline()
    assert due is not None
    assert due - bench.now <= 0.5


def test_only_open_peers_are_answered_and_old_nonces_count_for_nothing() -> None:
    bench = Bench()
    bench.paths.received(0.0, b"\x02stran", 5, is_answer=False)
    assert bench.probes() == []
    bench.paths.received(0.0, plane_mac(PEER), 5, is_answer=False)
    assert [probe.is_answer for probe in bench.probes()] == [True]
    bench.paths.tick(0.0)
    bench.paths.received(0.0, plane_mac(PEER), 12345, is_answer=True)
    assert bench.paths.state(PEER) is PathState.UNPROVEN


def test_a_new_link_cuts_a_backoff_short() -> None:
    bench = Bench()
    bench.run(300, answer=False)
    bench.paths.kick(bench.now, PEER)
    assert bench.paths.deadline() == bench.now


@pytest.mark.parametrize("rtt_s", [0.4, 0.6, 0.9])
def test_a_far_peer_is_reached(rtt_s: float) -> None:
    """By satellite, answers take longer than the interval between probes of a path that is not known to work."""
    bench = Bench()
    answers: list[tuple[float, int]] = []
    while bench.now < 60.0:
        bench.paths.traffic(bench.now)
        for at, nonce in answers:
            if at <= bench.now:
                bench.paths.received(bench.now, plane_mac(PEER), nonce, is_answer=True)
        answers = [(at, nonce) for at, nonce in answers if at > bench.now]
        bench.paths.tick(bench.now)
        answers += [(bench.now + rtt_s, probe.nonce) for probe in bench.probes()]
        if bench.now > 2.0:
            assert bench.paths.state(PEER) is PathState.WORKING
        bench.now += 0.01
    rtt_ms = bench.paths.rtt_ms(PEER)
    assert rtt_ms is not None and abs(rtt_ms - 1000 * rtt_s) < 20
    assert bench.paths.loss_percent(PEER) == 0.0
