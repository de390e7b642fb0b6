"""Encrypted userspace data paths side by side: sleeve, wireguard-go, nebula, tinc; kernel VXLAN for scale.

All of them between the same two hosts, each measured alone, in turns. VXLAN and sleeve connect containers over a
bridge; sleeve is the worker as the daemon runs it, fed by hand, so that nothing but the data path is measured.
Underlays: *intact*, veth as it is, where units of up to 64 kB cross unsplit; *wire*, where neither end of a host's
cable has segmentation, and GRO is on, so that each packet crosses by itself and is gathered by the receiving card's
driver, as on a real link. Loss: nftables drops packets at random where they enter the underlay, each way.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path as File
from typing import NamedTuple

from bench import rivals
from bench.fastdp import CONTAINER, MTU, hand_made_path, round_trips, server, set_underlay
from bench.fastdp import Path as Way
from bench.gate import Gate
from bench.hosts import LAB, PYTHON, WEAVE, Host, lab, run, wait_for
from bench.options import Options
from bench.table import Result, verdict
from weavenet.core.limits import SLEEVE_UNIT_BYTES
from weavenet.core.overlay.sleeve import SleeveDesired, SleeveEndpoint, SleevePeer, SleeveStatus
from weavenet.core.types import PeerId
from weavenet.lab import processes
from weavenet.sleeve.feed import Splitter, decode_status, frame

VXLAN, SLEEVE, MODERN = "kernel VXLAN, hand-made", "sleeve", "wireguard-go, bookworm-backports"
NEBULA = "nebula 1.6"
SMALL, TRIP, COST = "small k/s", "RTT ms", "CPU s/GB"
DIGITS = {SMALL: 0, COST: 1, TRIP: 3}
PORT = 6783
TICKS = os.sysconf("SC_CLK_TCK")


class Setting(NamedTuple):
    """A column: what is measured under what."""

    name: str
    underlay: str
    streams: int
    loss: str


SETTINGS = (
    Setting("intact, 1", "intact", 1, "0%"),
    Setting("intact, 5", "intact", 5, "0%"),
    Setting("wire, 1", "wire", 1, "0%"),
    Setting("wire, 5", "wire", 5, "0%"),
    Setting("wire 0.1 %", "wire", 1, "0.1%"),
    Setting("wire 1 %", "wire", 1, "1%"),
)
BARS: dict[str, tuple[float | None, float]] = {
    # column: at least this share of VXLAN, at least this multiple of the modern wireguard-go
    "intact, 1": (0.40, 1.3),
    "wire, 1": (0.60, 1.3),
    "wire 0.1 %": (None, 1.1),
    "wire 1 %": (None, 1.1),
    SMALL: (None, 1.3),
}
TRIP_BAR = 1.1
MEMORY_BAR_MB = 30.0


# --- sleeve, fed by hand ---


class Feed:
    """The daemon's end of a worker's socket."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._splitter = Splitter()

    def status(self) -> SleeveStatus:
        while True:
            bodies = self._splitter.feed(self._socket.recv(1 << 16))
            if bodies:
                return decode_status(bodies[-1])

    def want(self, desired: SleeveDesired) -> None:
        self._socket.sendall(frame(desired))


def sleeve_path(near: Host, far: Host) -> Way:
    """Two workers with a bridge and a container each."""
    ids = {near: PeerId(b"near peer in use"), far: PeerId(b"far peer in use.")}
    macs = {near: bytes((2, 0, 0, 0, 0, 1)), far: bytes((2, 0, 0, 0, 0, 2))}
    feeds = {}
    box = f"{CONTAINER}-sleeve"
    for number, host in enumerate((near, far), start=1):
        rivals.start(host, PYTHON, "-m", "weavenet.sleeve", *_worker_flags(host))
        path = File(f"/proc/{host.pid}/root/run/bench-sleeve.sock")
        wait_for(path.exists, "the worker listens")
        feeds[host] = Feed(str(path))
        other = far if host is near else near
        for command in (
            f"link add bridged mtu {MTU} type bridge",
            "link set bridged up",
            f"link set tap mtu {MTU} master bridged",
            "link set tap up",
            "link set tap type bridge_slave isolated on learning off",
            f"netns add {box}",
            f"link add sport mtu {MTU} type veth peer name eth0 mtu {MTU} netns {box}",
            "link set sport master bridged up",
            f"-n {box} link set lo up",
            f"-n {box} link set eth0 address {macs[host].hex(':')} gso_max_size {SLEEVE_UNIT_BYTES} up",
            f"-n {box} address add 10.98.0.{number}/24 dev eth0",
        ):
            host.run("ip", *command.split())
        host.run("bridge", "fdb", "replace", macs[other].hex(":"), "dev", "tap", "master", "static")
    first = {host: feed.status() for host, feed in feeds.items()}
    for host, feed in feeds.items():
        other = far if host is near else near
        peer = SleevePeer(
            peer=ids[other],
            keys=first[other].keys,
            endpoints=(SleeveEndpoint(other.address, PORT),),
            relay=None,
            is_open=True,
            carries=True,
            takes_groups=True,
            macs=(macs[other],),
        )
        feed.want(SleeveDesired(ids[host], MTU, (peer,)))
    for feed in feeds.values():
        wait_for(lambda feed=feed: any(p.works for p in feed.status().paths), "the workers reach each other")  # type: ignore[misc]
    inside = {host: (lambda *argv, host=host: host.in_container(box, *argv)) for host in feeds}
    return Way(inside[near], inside[far], "10.98.0.2")


def _worker_flags(host: Host) -> list[str]:
    return ["--tap", "tap", "--port", str(PORT), "--socket", "/run/bench-sleeve.sock"]


# --- measuring ---


def set_loss(hosts: Sequence[Host], share: str) -> None:
    run([WEAVE, "lab", "loss", hosts[0].name, hosts[1].name, share, "--lab", LAB])


def busy_s() -> float:
    """Processor time of the whole machine."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = list(map(int, file.readline().split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / TICKS


def throughput(way: Way, streams: int, seconds: int) -> tuple[float, float]:
    """Gbit/s received after one second that does not count, and processor seconds per gigabyte over all of it."""
    argv = way.near("iperf3", "-c", way.address, "-t", str(seconds), "-O", "1", "-P", str(streams), "-J")
    before = busy_s()
    end = json.loads(run(argv))["end"]
    used = busy_s() - before
    rate = float(end["sum_received"]["bits_per_second"])
    return rate / 1e9, used / (rate / 8e9 * (seconds + 1))


def small_packets(way: Way, seconds: int) -> float:
    """Thousand packets of 64 bytes received per second, while one process sends as many as it can."""
    argv = way.near("iperf3", "-u", "-b", "0", "-l", "64", "-c", way.address, "-t", str(seconds), "-J")
    total = json.loads(run(argv))["end"]["sum"]
    return (float(total["packets"]) - float(total["lost_packets"])) / float(total["seconds"]) / 1000


def host_way(hosts: Sequence[Host], address: str) -> Way:
    rivals.wait_until_reached(hosts[0], address)
    return Way(hosts[0].command, hosts[1].command, address)


def ways(hosts: Sequence[Host], options: Options) -> dict[str, Way]:
    near, far = hosts
    made: dict[str, Callable[[], Way]] = {
        VXLAN: lambda: hand_made_path(near, far),
        SLEEVE: lambda: sleeve_path(near, far),
        MODERN: lambda: host_way(hosts, rivals.wireguard(hosts, "backports", 1)),
        NEBULA: lambda: host_way(hosts, rivals.nebula(hosts)),
        "wireguard-go, bookworm": lambda: host_way(hosts, rivals.wireguard(hosts, "stable", 2)),
        "tinc 1.0": lambda: host_way(hosts, rivals.tinc(hosts)),
    }
    wanted = options._replace(rows=(VXLAN, SLEEVE, MODERN)) if options.quick and not options.rows else options
    return {name: make() for name, make in made.items() if wanted.has_row(name)}


Figures = dict[str, list[float]]


def turns(names: Sequence[str], count: int, compared: Sequence[str]) -> Iterator[str]:
    """Those that are compared in every round, in changing order; the others in the first only."""
    every = [name for name in names if name in compared]
    for number in range(count):
        shift = number % len(every) if every else 0
        yield from every[shift:] + every[:shift]
        if number == 0:
            yield from (name for name in names if name not in compared)


def measured(
    paths: dict[str, Way],
    count: int,
    once: Callable[[str, Way], float],
    compared: Sequence[str] = (VXLAN, SLEEVE, MODERN),
) -> Figures:
    found: Figures = {name: [] for name in paths}
    for name in turns(list(paths), count, compared):
        found[name].append(once(name, paths[name]))
    return found


def measure(options: Options, gate: Gate) -> Result:
    rivals.fetch()
    count = options.repetitions(5, quick=1)
    seconds = 1 if options.quick else 2
    figures: dict[str, Figures] = {}
    with lab(2, gate) as hosts, contextlib.ExitStack() as stack:
        paths = ways(hosts, options)
        for way in paths.values():
            stack.enter_context(server(way))
        cost: Figures = {name: [] for name in paths}
        for setting in SETTINGS:
            if not options.has_column(setting.name):
                continue
            options.progress(f"planes: {setting.name}")
            set_underlay(hosts, setting.underlay)
            set_loss(hosts, setting.loss)

            def once(name: str, way: Way, setting: Setting = setting) -> float:
                rate, used = gate.measure(lambda: throughput(way, setting.streams, seconds))
                if setting.name == "wire, 1":
                    cost[name].append(used)
                return rate

            figures[setting.name] = measured(paths, count, once)
        if cost[next(iter(cost))]:
            figures[COST] = cost
        set_loss(hosts, "0%")
        set_underlay(hosts, "intact")
        if options.has_column(SMALL):
            options.progress("planes: small packets")
            figures[SMALL] = measured(paths, count, lambda _, way: gate.measure(lambda: small_packets(way, seconds)))
        if options.has_column(TRIP):
            options.progress("planes: round trip")
            time.sleep(1)
            figures[TRIP] = measured(
                paths, count, lambda _, way: gate.measure(lambda: round_trips(way, way)[0]), (VXLAN, SLEEVE, NEBULA)
            )
        memory = worker_memory(hosts) if SLEEVE in paths else None
    return _result(list(paths), figures, memory, [_method(count, seconds), gate.summary()])


def worker_memory(hosts: Sequence[Host]) -> float:
    """Resident megabytes (10^6 bytes) of the larger worker."""
    found = []
    for host in hosts:
        for pid in processes.inside(host.pid):
            if "weavenet.sleeve" in processes.arguments(pid):
                pages = int(File(f"/proc/{pid}/statm").read_text().split()[1])
                found.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
    return max(found)


def _method(count: int, seconds: int) -> str:
    return (
        f"medians of {count} runs of {seconds} s, round trip: of 100 pings 10 ms apart (rivals that no bar names: one "
        "run each), in turns; ratios are medians of the ratios of runs that followed each other"
    )


def _bars(figures: dict[str, Figures], memory: float | None) -> list[str]:
    """A note for each bar of which both sides were measured."""
    notes = []

    def compare(column: str, other: str, label: str, bar: float, *, at_least: bool = True) -> None:
        found = figures.get(column, {})
        if SLEEVE in found and other in found:
            value = statistics.median(a / b for a, b in zip(found[SLEEVE], found[other], strict=True))
            notes.append(
                f"sleeve / {label}, {column}: {value:.2f} ({verdict(round(value, 2), bar, at_least=at_least)})"
            )

    for column, (share, multiple) in BARS.items():
        if share is not None:
            compare(column, VXLAN, "VXLAN", share)
        compare(column, MODERN, "wireguard-go of bookworm-backports", multiple)
    compare(TRIP, NEBULA, "nebula", TRIP_BAR, at_least=False)
    if memory is not None:
        bar = verdict(round(memory, 1), MEMORY_BAR_MB, at_least=False)
        notes.append(f"memory of sleeve's worker after all of it: {memory:.1f} MB ({bar})")
    return notes


def _result(paths: Sequence[str], figures: dict[str, Figures], memory: float | None, method: list[str]) -> Result:
    rows = []
    for name in paths:
        medians = (f"{statistics.median(found[name]):.{DIGITS.get(column, 2)}f}" for column, found in figures.items())
        rows.append((name, *medians))
    notes = [
        "columns: Gbit/s of TCP, underlay and streams (or loss); processor seconds of the whole machine per gigabyte, "
        "wire, one stream; k/s of UDP packets of 64 bytes received; round trip in ms",
        *_bars(figures, memory),
        "VXLAN and sleeve carry containers over a bridge; the others end at the host itself",
        *method,
    ]
    return Result(("", *figures), rows, notes)
