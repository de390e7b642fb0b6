"""What a node is told at start. Built by the runtime from flags, environment, file and store; the simulator makes its
own."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from weavenet.core.limits import CONN_LIMIT_DEFAULT, DNS_DOMAIN_DEFAULT, MTU_DEFAULT, PORT_DEFAULT
from weavenet.core.types import PeerId


class GenesisMode(StrEnum):
    """How this peer takes part in the first division of addresses."""

    CONSENSUS = "consensus"
    SEED = "seed"
    LOCK = "lock"
    OBSERVER = "observer"


VOTING_MODES = frozenset({GenesisMode.CONSENSUS, GenesisMode.LOCK})
"""Of peers that may become electors; with ``seed=`` most vote as the virtual owners of their shares."""


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``ranges``: CIDRs, at most one per address family; empty switches IPAM off. ``default_subnets``: of containers
    that ask for none, at most one per family; where none is given, the whole range. ``count``: N of ``consensus=N``,
    0 when not given. ``seeds``: sorted peer names of ``seed=``. ``seed_salt``: public fingerprint of the password's CA;
    shares of seeds and the record of a lock depend on it. ``lock``: the URL of ``lock=``. ``conf_targets`` come from
    the configuration file, ``launch_targets`` from the command line (None: none were given, resume the persisted ones).
    ``local_hosts``: addresses of this host, to recognise ourselves among targets.
    ``trusted_subnets``: CIDRs of the underlay; with a password, frames go unencrypted only between two peers that
    trust each other's address. ``dns_domain``: absolute, lower case, with trailing dot; only names below it are entered
    and answered."""

    peer: PeerId
    name: str
    nickname: str
    software: str = "0"
    port: int = PORT_DEFAULT
    ranges: tuple[str, ...] = ("10.32.0.0/12",)
    range_explicit: bool = False
    default_subnets: tuple[str, ...] = ()
    mode: GenesisMode = GenesisMode.CONSENSUS
    count: int = 0
    seeds: tuple[str, ...] = ()
    seed_salt: bytes = b""
    lock: str = ""
    first_start: bool = False
    ephemeral_ttl_s: int = 0
    conf_targets: tuple[str, ...] = ()
    launch_targets: tuple[str, ...] | None = None
    discovery: bool = True
    conn_limit: int = CONN_LIMIT_DEFAULT
    planes: tuple[str, ...] = ("fastdp",)
    trusted_subnets: tuple[str, ...] = ()
    mtu: int = MTU_DEFAULT
    mtu_explicit: bool = False
    local_hosts: tuple[str, ...] = ()
    authenticated: bool = False
    dns_domain: str = DNS_DOMAIN_DEFAULT
