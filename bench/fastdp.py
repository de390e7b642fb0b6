"""``fastdp`` against a hand-made bridge and VXLAN: one TCP stream, five streams, idle round trip, on two underlays.

Four hosts on one underlay: two run Weave, two have a bridge and a VXLAN device made by hand, with nothing else of ours
in them (no nftables rules, no daemon). Containers hang on a veth in the same way, MTU 1376 everywhere. Underlays:
*intact*, veth as it is, where units of up to 64 kB cross unsplit; *wire*, where both hosts' card has segmentation off
and GRO on, so that each packet crosses by itself, as on a real link.
"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from bench.gate import Gate
from bench.hosts import DEADLINE_S, LAB, Failed, Host, lab, launch, open_paths, run, wait_for
from bench.options import Options
from bench.table import Result, verdict
from weavenet.lab import state as lab_state

MTU = 1376
CONTAINER = "box"
THROUGHPUT_BAR = 0.97
ROUND_TRIP_BAR = 1.1
STREAM_S = 1
PINGS = 100
PING_INTERVAL_S = 0.01
UNDERLAYS = {
    "intact": ("tso", "on", "gso", "on", "tx-udp-segmentation", "on", "gro", "off"),
    "wire": ("tso", "off", "gso", "off", "tx-udp-segmentation", "off", "gro", "on"),
}


class Path(NamedTuple):
    """From a container on one host to one on another: commands to run there, and the far address."""

    near: Callable[..., list[str]]
    far: Callable[..., list[str]]
    address: str


Measure = Callable[[Path, Path], tuple[float, float]]
"""A figure of each of two paths."""


def weave_path(near: Host, far: Host) -> Path:
    launch([near, far])
    for host in (near, far):
        host.run("weave", "consense")
    near.add_container(CONTAINER)
    address = far.add_container(CONTAINER)
    wait_for(lambda: all(open_paths(host.report()) == 1 for host in (near, far)), "the data path is in use")
    return Path(_in(near), _in(far), address)


def hand_made_path(near: Host, far: Host) -> Path:
    for number, (host, other) in enumerate(((near, far), (far, near)), start=1):
        commands = (
            "link add hand type bridge",
            f"link set hand mtu {MTU} up",
            f"link add overlay mtu {MTU} type vxlan id 42 dstport 4789 remote {other.address} dev eth0",
            "link set overlay master hand up",
            f"netns add {CONTAINER}",
            f"link add port mtu {MTU} type veth peer name eth0 mtu {MTU} netns {CONTAINER}",
            "link set port master hand up",
            f"-n {CONTAINER} link set lo up",
            f"-n {CONTAINER} link set eth0 up",
            f"-n {CONTAINER} address add 10.99.0.{number}/24 dev eth0",
        )
        for command in commands:
            host.run("ip", *command.split())
    return Path(_in(near), _in(far), "10.99.0.2")


def _in(host: Host) -> Callable[..., list[str]]:
    return lambda *argv: host.in_container(CONTAINER, *argv)


def set_underlay(hosts: Sequence[Host], name: str) -> None:
    """At both ends of each host's cable: a veth whose other end could send larger units gathers nothing on receipt
    (``veth_skb_is_eligible_for_gro``), which no network card does."""
    state = lab_state.load(LAB)
    assert state is not None
    for host in hosts:
        host.run("ethtool", "-K", "eth0", *UNDERLAYS[name])
        port = state.hosts[host.name].port
        far_end = ["ethtool", "-K", port, *UNDERLAYS[name][:-2]]
        run(["nsenter", "-t", str(state.underlay_pid), "-n", *far_end])


@contextlib.contextmanager
def server(path: Path) -> Iterator[None]:
    process = subprocess.Popen(path.far("iperf3", "-s"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: ":5201" in run(path.far("ss", "-Hltn")), "iperf3 listens")
        yield
    finally:
        process.terminate()
        process.wait()


def throughput(path: Path, streams: int) -> float:
    """Gbit/s received in STREAM_S; at these round trips a stream is at its full speed within milliseconds."""
    argv = path.near("iperf3", "-c", path.address, "-t", str(STREAM_S), "-P", str(streams), "-J")
    answer = json.loads(run(argv))
    return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9


def round_trips(first: Path, second: Path) -> tuple[float, float]:
    """Medians in milliseconds, of both paths at the same time, half an interval apart: how long a sleeping processor
    takes to wake drifts by more within a second than the paths differ."""
    started = []
    for path in (first, second):
        argv = path.near("ping", "-n", "-i", str(PING_INTERVAL_S), "-c", str(PINGS), path.address)
        started.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
        time.sleep(PING_INTERVAL_S / 2)
    medians = []
    for process in started:
        text, _ = process.communicate(timeout=DEADLINE_S)
        times = [float(value) for value in re.findall(r"time=([0-9.]+)", text)][1:]
        if len(times) < PINGS // 2:
            raise Failed(f"ping: {len(times)} of {PINGS} answered")
        medians.append(statistics.median(times))
    return medians[0], medians[1]


class Pairs(NamedTuple):
    """Values of Weave and by hand, pair by pair."""

    weave: list[float]
    hand: list[float]

    def row(self, what: str, digits: int, bar: float, *, at_least: bool) -> tuple[str, ...]:
        ratios = [a / b for a, b in zip(self.weave, self.hand, strict=True)]
        median = statistics.median(ratios)
        return (
            what,
            f"{statistics.median(self.weave):.{digits}f}",
            f"{statistics.median(self.hand):.{digits}f}",
            f"{median:.3f}",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            verdict(round(median, 3), bar, at_least=at_least),
        )


def one_after_the_other(streams: int) -> Measure:
    return lambda first, second: (throughput(first, streams), throughput(second, streams))


def paired(gate: Gate, measure: Measure, weave: Path, hand: Path, count: int) -> Pairs:
    """``count`` pairs after one that does not count; who goes first alternates."""
    measure(weave, hand)
    pairs = Pairs([], [])
    for number in range(count):
        first, second = (weave, hand) if number % 2 == 0 else (hand, weave)
        values = gate.measure(partial(measure, first, second))
        pairs.weave.append(values[number % 2])
        pairs.hand.append(values[1 - number % 2])
    return pairs


def measure(options: Options, gate: Gate) -> Result:
    # Many short pairs: where the scheduler puts the processes of a run moves its figures by a tenth, long or short.
    count = options.repetitions(33, quick=2)
    rows = []
    with lab(4, gate) as hosts, contextlib.ExitStack() as stack:
        weave = weave_path(*hosts[:2])
        hand = hand_made_path(*hosts[2:])
        for path in (weave, hand):
            stack.enter_context(server(path))
        for underlay in UNDERLAYS:
            set_underlay(hosts, underlay)
            for streams in (1, 5):
                options.progress(f"fastdp: {underlay}, {streams} stream(s)")
                found = paired(gate, one_after_the_other(streams), weave, hand, count)
                what = f"{underlay}: {'one TCP stream' if streams == 1 else 'five streams'}, Gbit/s"
                rows.append(found.row(what, 2, THROUGHPUT_BAR, at_least=True))
            options.progress(f"fastdp: {underlay}, round trip")
            found = paired(gate, round_trips, weave, hand, count)
            rows.append(found.row(f"{underlay}: idle round trip, ms", 3, ROUND_TRIP_BAR, at_least=False))
        options.progress("fastdp: the same hand-made path against itself")
        set_underlay(hosts, "wire")
        itself = paired(gate, one_after_the_other(1), hand, hand, count)
    ratios = sorted(a / b for a, b in zip(itself.weave, itself.hand, strict=True))
    return Result(
        ("", "Weave", "by hand", "ratio", "range", "bar"),
        rows,
        [
            f"medians of {count} pairs of {STREAM_S} s (round trip: of {PINGS} pings, 10 ms apart, both paths at "
            "once); the ratio is the median of the pairs' ratios",
            "what the method itself scatters: the hand-made path against itself, wire, one stream: median ratio "
            f"{statistics.median(ratios):.3f}, range {ratios[0]:.2f}-{ratios[-1]:.2f}",
            gate.summary(),
        ],
    )
