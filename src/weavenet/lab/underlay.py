"""The network between the hosts: one bridge in a namespace of its own, one port per host, faults as nftables rules.

The rules are a pure function of the lab's state and replaced in one transaction. Partitions and cuts drop in the
bridge's forward hook, which covers broadcasts. Loss drops in the netdev ingress hook of the sender's port, addressed
to the receiver's MAC: an input hook on the host would see merged units instead of packets.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.lab import nat, requirements
from weavenet.lab.state import HostState, LabState, Loss

BRIDGE = "underlay"
TABLE = "weavelab"
COMMAND_TIMEOUT_S = 30
ETHERNET_BYTES = 14
SEGMENTS_MAX = 65_535
"""What a device takes as one unit, unless told otherwise."""


def rules(state: LabState) -> str:
    """The whole rule set, as input of ``nft -f -``; replaces what was there."""
    lines = [f"table {family} {TABLE}\ndelete table {family} {TABLE}" for family in ("bridge", "netdev")]
    blocked = sorted(state.blocked_pairs())
    if blocked:
        ports = [(state.hosts[a].port, state.hosts[b].port) for a, b in blocked]
        elements = ", ".join(f'"{a}" . "{b}", "{b}" . "{a}"' for a, b in ports)
        lines.append(
            f"table bridge {TABLE} {{\n chain cut {{\n  type filter hook forward priority 0\n"
            f"  iifname . oifname {{ {elements} }} drop\n }}\n}}"
        )
    chains = [chain for name in sorted(state.hosts) if (chain := _loss_chain(state, name))]
    if chains:
        lines.append(f"table netdev {TABLE} {{\n" + "\n".join(chains) + "\n}")
    return "\n".join(lines) + "\n"


def _loss_chain(state: LabState, sender: str) -> str:
    """Empty when nothing this host sends is lost, or the host is down and has no port to hook."""
    host = state.hosts[sender]
    losses: dict[str, Loss] = {}
    for loss in (*state.link_loss, *state.loss):  # a fault replaces the loss the topology gives
        if sender in (loss.a, loss.b):
            losses[loss.b if loss.a == sender else loss.a] = loss
    narrows = {
        (narrow.b if narrow.a == sender else narrow.a): narrow.mtu
        for narrow in state.narrow
        if sender in (narrow.a, narrow.b)
    }
    drops = [
        f"  ether daddr {state.hosts[receiver].mac} meta length > {mtu + ETHERNET_BYTES} drop"
        for receiver, mtu in sorted(narrows.items())
    ]
    drops += [
        f"  ether daddr {state.hosts[receiver].mac} {_share(loss.per_100k)}drop"
        for receiver, loss in sorted(losses.items())
        if loss.per_100k > 0
    ]
    if not drops or not host.is_running:
        return ""
    head = f' chain loss-{sender} {{\n  type filter hook ingress device "{host.port}" priority 0'
    return "\n".join([head, *drops, " }"])


def _share(per_100k: int) -> str:
    """nft refuses a comparison that is always true."""
    return "" if per_100k >= 100_000 else f"numgen random mod 100000 < {per_100k} "


def in_network(pid: int, argv: Sequence[str], text: str = "") -> None:
    """Runs a tool of the machine in the network namespace of a process; raises ``WeaveError`` with its words."""
    tool, *rest = argv
    done = subprocess.run(
        [requirements.tool("nsenter"), "-t", str(pid), "-n", requirements.tool(tool), *rest],
        input=text,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise WeaveError(
            Failure(
                Code.HOST,
                f"{' '.join(argv)} should work in a namespace of the lab",
                done.stderr.strip() or f"exit {done.returncode}",
                "weave setup says what this kernel lacks",
            )
        )


def build(state: LabState) -> None:
    """The bridge, without ports."""
    in_network(
        state.underlay_pid,
        ["ip", "-batch", "-"],
        "link set lo up\n"
        f"link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0\n"
        f"address add {state.underlay_address}/{state.prefix_length} dev {BRIDGE}\n"
        f"link set {BRIDGE} up\n",
    )


def connect(state: LabState, hosts: Sequence[HostState]) -> None:
    """A cable from the bridge to ``eth0`` of each host, made in the namespaces it belongs to, and its address."""
    cables = "".join(
        f"link add name {host.port} type veth peer name eth0 address {host.mac} netns {host.pid}\n"
        f"link set dev {host.port} master {BRIDGE} up\n"  # without "dev", a host "a" is short for "address"
        for host in hosts
    )
    in_network(state.underlay_pid, ["ip", "-batch", "-"], cables)
    for host in hosts:
        in_network(
            host.pid,
            ["ip", "-batch", "-"],
            f"link set lo up\naddress add {host.address}/{state.prefix_length} dev eth0\nlink set eth0 up\n",
        )


def disconnect(state: LabState, host: HostState) -> None:
    """Takes the port away now; the kernel would do it some time after the host's end."""
    subprocess.run(
        [
            requirements.tool("nsenter"),
            "-t",
            str(state.underlay_pid),
            "-n",
            requirements.tool("ip"),
            "link",
            "del",
            "dev",
            host.port,
        ],
        capture_output=True,  # "Cannot find device": the kernel was faster
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


def apply_faults(state: LabState) -> None:
    """Where a size is looked at, hosts hand over single packets: units of many would all count as too large."""
    in_network(state.underlay_pid, ["nft", "-f", "-"], rules(state))
    for name in state.narrowed_hosts():
        _hand_over(state.hosts[name], 1)
    for name, kind in state.nats.items():
        translate(state.hosts[name], kind)


def translate(host: HostState, kind: nat.Nat | None) -> None:
    """Put a masquerading router in front of ``host``, or take it away."""
    if host.is_running:
        in_network(host.pid, ["nft", "-f", "-"], nat.rules(kind))


def hand_over_units(state: LabState, names: Iterable[str]) -> None:
    """Undo the above for hosts of which no size is looked at any more."""
    for name in names:
        _hand_over(state.hosts[name], SEGMENTS_MAX)


def _hand_over(host: HostState, segments: int) -> None:
    if host.is_running:
        in_network(host.pid, ["ip", "link", "set", "eth0", "gso_max_segs", str(segments)])
