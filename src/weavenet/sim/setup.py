"""What kind of cluster a history is about: how many peers, how they found each other, how the genesis comes about.

:func:`draw_setup` picks one at random from a seed. ``is_genesis_unique`` says whether the specification promises one
genesis for it (electors agree on N, or the seeds are the same); otherwise several clusters may come to be, which refuse
each other.
"""

from __future__ import annotations

import random
from enum import Enum

import msgspec

from weavenet.core.config import GenesisMode, NodeConfig
from weavenet.sim.host import Host

CLUSTER_NAME = "cluster.test"
"""A DNS name that stands for every host."""


IPV6_SHARE = 0.25
"""Of random histories, with an IPv6 range."""


class Bootstrap(Enum):
    FULL_LIST = "full-list"
    COUNT = "count"
    OBSERVERS = "observers"
    SEED = "seed"
    LOCK = "lock"
    NAME = "name"
    CHAIN = "chain"
    ALONE = "alone"


_WEIGHTS = {
    Bootstrap.FULL_LIST: 6.0,
    Bootstrap.COUNT: 3.0,
    Bootstrap.OBSERVERS: 2.0,
    Bootstrap.SEED: 2.0,
    Bootstrap.LOCK: 2.0,
    Bootstrap.NAME: 1.0,
    Bootstrap.CHAIN: 1.0,
    Bootstrap.ALONE: 1.0,
}


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """``electors``: hosts 0 … electors-1 vote; the others are observers. ``range_cidr``: as ``--ipalloc-range``, so
    two ranges with a comma."""

    peers: int = 3
    bootstrap: Bootstrap = Bootstrap.FULL_LIST
    electors: int = 3
    range_cidr: str = "10.32.0.0/24"
    subnets: tuple[str, ...] = ("",)
    observers: bool = False
    """Hosts beyond the electors are observers, however the others find each other; electors without seeds or lock are
    told their number then, since a target that is an observer counts until it is met."""
    launch_spread_s: float = 0.5
    discovery: bool = True
    sleeve: bool = False
    """Workers of sleeve run too, UDP of either plane may be cut, and containers broadcast."""
    wireguard: bool = False
    """With ``sleeve``: there is a password, and every host has a WireGuard device too."""
    ephemerals: int = 0
    """So many of the last hosts are ephemeral, with ``ttl_s``."""
    ttl_s: int = 20
    seed_twin: bool = False
    """The last host claims the seed name of host 0: an operator's error."""

    @property
    def ranges(self) -> tuple[str, ...]:
        return tuple(self.range_cidr.split(","))

    @property
    def is_genesis_unique(self) -> bool:
        return self.bootstrap in (
            Bootstrap.FULL_LIST,
            Bootstrap.COUNT,
            Bootstrap.OBSERVERS,
            Bootstrap.SEED,
            Bootstrap.LOCK,
        )


def draw_setup(rng: random.Random, peers_min: int, peers_max: int) -> Setup:
    peers = rng.randint(peers_min, peers_max)
    bootstrap = rng.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()))[0]
    electors = rng.randint(1, peers) if bootstrap is Bootstrap.OBSERVERS else peers
    cidr = rng.choice(("10.32.0.0/12", "10.32.0.0/24", "10.32.0.0/24", "10.32.0.0/25", "10.32.0.0/26", "10.32.0.0/28"))
    subnets = rng.choice((("",), ("", "10.32.0.0/29"), ("10.32.0.0/28", "10.32.0.8/29", ""), ("10.32.0.0/30", "")))
    return Setup(
        peers=peers,
        bootstrap=bootstrap,
        electors=electors,
        range_cidr=cidr,
        subnets=subnets,
        launch_spread_s=rng.choice((0.0, 0.5, 5.0)),
        ephemerals=rng.randint(0, peers - electors) if bootstrap is Bootstrap.OBSERVERS else 0,
        ttl_s=rng.choice((5, 15, 40)),
        discovery=rng.random() < 0.8,
    )


def with_ipv6(setup: Setup, rng: random.Random) -> Setup:
    """``setup``, with an IPv6 range beside its own in some histories, or in its place in a few."""
    kind = rng.random()
    if kind >= IPV6_SHARE:
        return setup
    cidr = rng.choice(("fd00:77::/64", "fd00:77::/120", "fd00:77::/122", "fd00:77::/124"))
    more = rng.choice((("",), ("fd00:77::/125",), ("fd00:77::/124", "fd00:77::8/125")))
    if kind < IPV6_SHARE / 10:
        return msgspec.structs.replace(setup, range_cidr=cidr, subnets=("", *more))
    return msgspec.structs.replace(setup, range_cidr=f"{setup.range_cidr},{cidr}", subnets=(*setup.subnets, *more))


def configure(setup: Setup, host: Host) -> NodeConfig:
    """What the daemon on ``host`` is told at a start. Targets are given by the operator until they are durable, then
    resumed, as a restart by the service manager does."""
    everybody = [f"192.168.{index >> 8}.{index & 255}" for index in range(setup.peers)]
    seeds = tuple(sorted(f"00:00:00:00:{index >> 8:02x}:{index & 255:02x}" for index in range(setup.electors)))
    mode, count = GenesisMode.CONSENSUS, 0
    targets = everybody
    match setup.bootstrap:
        case Bootstrap.FULL_LIST:
            pass
        case Bootstrap.COUNT:
            count = setup.electors
            targets = everybody[max(0, host.index - 1) : host.index + 2]
        case Bootstrap.OBSERVERS:
            count = setup.electors
            mode = GenesisMode.CONSENSUS if host.index < setup.electors else GenesisMode.OBSERVER
        case Bootstrap.SEED:
            mode = GenesisMode.SEED
        case Bootstrap.LOCK:
            mode = GenesisMode.LOCK
            targets = [CLUSTER_NAME]
        case Bootstrap.NAME:
            targets = [CLUSTER_NAME]
        case Bootstrap.CHAIN:
            targets = everybody[max(0, host.index - 1) : host.index]
        case Bootstrap.ALONE:
            targets = []
    is_ephemeral = host.index >= setup.peers - setup.ephemerals
    if is_ephemeral or (setup.observers and host.index >= setup.electors):
        mode = GenesisMode.OBSERVER
    if setup.observers:
        count = setup.electors
    is_resumed = any(table == "targets" for table, _ in host.disk.durable)
    return NodeConfig(
        peer=host.peer,
        name=seeds[0] if setup.seed_twin and host.index == setup.peers - 1 else host.name,
        nickname=host.label,
        ranges=setup.ranges,
        mode=mode,
        count=count if mode is GenesisMode.CONSENSUS else 0,
        seeds=seeds if mode is GenesisMode.SEED else (),
        seed_salt=b"simulated" if mode in {GenesisMode.SEED, GenesisMode.LOCK} else b"",
        lock="file:/shared/lock" if mode is GenesisMode.LOCK else "",
        first_start=host.generation == 0,
        ephemeral_ttl_s=setup.ttl_s if is_ephemeral else 0,
        launch_targets=None if is_resumed else tuple(targets),
        discovery=setup.discovery,
        planes=_planes(setup),
        authenticated=setup.wireguard,
        local_hosts=(host.host,),
    )


def _planes(setup: Setup) -> tuple[str, ...]:
    if not setup.sleeve:
        return ("fastdp",)
    return ("fastdp", "wireguard", "sleeve") if setup.wireguard else ("fastdp", "sleeve")
