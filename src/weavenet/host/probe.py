"""What ``weave setup`` and ``weave launch`` need to know about this host, as data; printing is the CLI's.

Features are tried in a namespace of their own that is gone afterwards, never assumed from versions or module lists.
Nothing here changes the host.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from weavenet.core.errors import WeaveError
from weavenet.core.limits import BRIDGE, MTU_DEFAULT, PORT_DEFAULT, VXLAN_PORT
from weavenet.host import netns, portfilter, sysctl, wireguardkernel, wireguardprocess
from weavenet.host.bridge import Bridge
from weavenet.host.kernel import Kernel
from weavenet.host.netlink import Route
from weavenet.host.nft import Nft
from weavenet.host.rules import bridge_table, inet_table
from weavenet.plane.heartbeat import Listener
from weavenet.plane.vxlan import DEVICES, VxlanPlane

CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_NET_RAW = 12, 21, 13
SLEEVE_WORKER = "weavenet.sleeve"
"""How the worker of the data path in user space is named in its command line."""
MAC_A, MAC_B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


class Check(msgspec.Struct, frozen=True):
    """One finding. ``required``: launch cannot work without it. ``next_step``: empty when ok."""

    name: str
    ok: bool
    required: bool
    found: str
    next_step: str = ""


def privileges() -> Check:
    """Root, or the capabilities that the data path takes."""
    status = Path("/proc/self/status").read_text()
    effective = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
    names = {CAP_NET_ADMIN: "CAP_NET_ADMIN", CAP_SYS_ADMIN: "CAP_SYS_ADMIN", CAP_NET_RAW: "CAP_NET_RAW"}
    missing = [name for bit, name in names.items() if not effective >> bit & 1]
    if not missing:
        return Check("privileges", True, True, f"uid {os.geteuid()}, all capabilities needed")
    return Check("privileges", False, True, f"uid {os.geteuid()} without {', '.join(missing)}", "run as root (sudo)")


async def features() -> tuple[Check, ...]:
    """Bridge, VXLAN, veth, packet sockets and nftables, each tried. Needs privileges."""
    try:
        with netns.scratch() as space:
            return await _features_in(space)
    except OSError as error:
        step = "run as root (sudo), outside a container or in a privileged one"
        return (Check("namespaces", False, True, f"none can be made: {error.strerror}", step),)


async def _features_in(space: int) -> tuple[Check, ...]:
    async with await Kernel.open(space) as kernel:
        bridge = Bridge(kernel.netlink, kernel.links, mac=MAC_A, mtu=MTU_DEFAULT, namespace=space)
        plane = VxlanPlane(kernel, bridge, mac=MAC_B, mtu=MTU_DEFAULT)

        async def open_bridge() -> None:
            await bridge.ensure()

        async def open_plane() -> None:
            await plane.open()
            await plane.close()

        async def open_veth() -> None:
            with netns.scratch() as other:
                await kernel.netlink.add_veth(
                    "vethprobe", mtu=1500, peer_name="ethprobe", peer_mac=MAC_A, peer_namespace=other
                )  # fmt: skip

        async def open_packet() -> None:
            listener = Listener(MAC_A, lambda mac, nonce, is_answer: None)
            listener.open(space, "lo")
            listener.close()

        async def put_filter() -> None:
            loopback = kernel.links.get("lo")
            portfilter.put(space, loopback.index if loopback is not None else 1)

        checks = [
            await _try("network namespaces and veth", open_veth, "modprobe veth"),
            await _try("bridge", open_bridge, "modprobe bridge"),
            await _try("packet sockets", open_packet, "modprobe af_packet"),
            await _try("VXLAN", open_plane, "modprobe vxlan"),
        ]
        checks.append(await _try("traffic control", put_filter, "modprobe -a sch_ingress cls_bpf", required=False))
        checks += await _firewall(space)
        return tuple(checks)


async def _try(name: str, attempt: Callable[[], Awaitable[None]], next_step: str, *, required: bool = True) -> Check:
    try:
        await attempt()
    except (OSError, WeaveError) as error:
        return Check(name, False, required, str(error), next_step)
    return Check(name, True, required, "works")


async def _firewall(space: int) -> list[Check]:
    nft = Nft(space)
    step = "apt-get install nftables"
    if not nft.backend:
        return [Check("nftables", False, False, "neither libnftables.so.1 nor the nft command", step)]
    tables = {
        "nftables inet": inet_table(["192.0.2.1"]),
        "nftables bridge": bridge_table([("probe", "192.0.2.1"), ("probe", "2001:db8::1")]),
    }
    checks = []
    for name, commands in tables.items():

        async def attempt(commands: Sequence[dict[str, object]] = commands) -> None:
            await nft.run(commands)

        checks.append(await _try(name, attempt, "a kernel with nf_tables for this family", required=False))
    return checks


def wireguard() -> Check:
    """Through which WireGuard hosts that share a password may send VXLAN. Asking loads the kernel's module."""
    if wireguardkernel.is_available():
        return Check("WireGuard", True, False, "in the kernel")
    if path := wireguardprocess.program():
        return Check("WireGuard", True, False, f"{path}, used with --wireguard any; the kernel has none")
    return Check("WireGuard", True, False, "none; with a password the data path is sleeve")


def tools() -> tuple[Check, ...]:
    """Commands that are useful but not needed."""
    wanted = {"ip": "iproute2", "nft": "nftables", "tcpdump": "tcpdump"}
    return tuple(
        Check(f"command {tool}", bool(path := shutil.which(tool)), False, path or "not found",
              "" if path else f"apt-get install {package}")
        for tool, package in wanted.items()
    )  # fmt: skip


def ports(port: int = PORT_DEFAULT) -> tuple[Check, ...]:
    """TCP and UDP ``port`` and the VXLAN port. What we have ourselves, also while no daemon runs, is fine."""
    checks = [_port(socket.SOCK_STREAM, port, "links")]
    worker = _sleeve_worker(port)
    if worker is not None:
        checks.append(Check(f"udp {port}", True, False, f"in use by our sleeve worker (pid {worker})"))
    else:
        checks.append(_port(socket.SOCK_DGRAM, port, "data path in user space"))
    ours = netns.call(None, lambda: Path(f"/sys/class/net/{DEVICES[4]}").exists())
    if ours:
        checks.append(Check(f"udp {VXLAN_PORT}", True, False, f"in use by our device {DEVICES[4]}"))
    else:
        checks.append(_port(socket.SOCK_DGRAM, VXLAN_PORT, "VXLAN"))
    return tuple(checks)


def _sleeve_worker(port: int) -> int | None:
    """The process that `weave stop` leaves, so that encrypted traffic goes on, and that the next launch takes over."""
    arguments = (SLEEVE_WORKER, "--port", str(port))
    own = Path("/proc/self/ns/net").stat()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            is_ours = all(word in words for word in arguments) and os.path.samestat((process / "ns/net").stat(), own)
        except OSError:  # it has ended, or is somebody else's
            continue
        if is_ours:
            return int(process.name)
    return None


def _port(kind: int, port: int, purpose: str) -> Check:
    protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
    name = f"{protocol} {port}"
    with socket.socket(socket.AF_INET, kind) as sock:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("0.0.0.0", port))
        except OSError as error:
            step = f"see `ss -lpn '( sport = :{port} )'`; stop it or launch with --port"
            return Check(name, False, kind == socket.SOCK_STREAM, f"{error.strerror} ({purpose})", step)
    return Check(name, True, kind == socket.SOCK_STREAM, f"free ({purpose})")


def conflicts(ranges: Iterable[str], routes: Iterable[Route], ignored: frozenset[int] = frozenset()) -> list[Route]:
    """Routes of the host that overlap a range, those of the links in ``ignored`` left out. Pure."""
    networks = [ipaddress.ip_network(text) for text in ranges]
    found = []
    for route in routes:
        destination = ipaddress.ip_network(route.destination, strict=False)
        if destination.prefixlen == 0 or destination.is_multicast or destination.is_link_local:
            continue
        if route.index not in ignored and any(
            destination.version == network.version and destination.overlaps(network) for network in networks
        ):
            found.append(route)
    return found


async def range_conflicts(ranges: Sequence[str], namespace: int | None = None) -> tuple[Check, ...]:
    """One failed check per route that a range overlaps; our own bridge's are fine."""
    async with await Kernel.open(namespace) as kernel:
        bridge = kernel.links.get(BRIDGE)
        ours = frozenset((bridge.index,)) if bridge is not None else frozenset()
        clashes = conflicts(ranges, await kernel.netlink.routes(), ours)
        checks = []
        for route in clashes:
            link = kernel.links.by_index(route.index)
            where = f"dev {link.name}" if link is not None else "an unknown device"
            step = "launch with --ipalloc-range of an unused network"
            checks.append(Check("range", False, True, f"this host routes {route.destination} to {where}", step))
        return tuple(checks) or (Check("range", True, True, f"{' '.join(ranges) or 'none'}: no route overlaps"),)


def ipv6(ranges: Sequence[str], proc: Path = Path("/proc/net")) -> tuple[Check, ...]:
    """Whether there is IPv6 for an IPv6 range; nothing where none was asked for."""
    wanted = [text for text in ranges if ":" in text]
    if not wanted:
        return ()
    if (proc / "if_inet6").exists():
        return (Check("IPv6", True, True, f"there, for {wanted[0]}"),)
    found = f"this kernel was started without it, and {wanted[0]} is to be divided"
    return (Check("IPv6", False, True, found, "boot without ipv6.disable=1, or leave the IPv6 range out everywhere"),)


def kernel_settings(namespace: int | None = None) -> tuple[Check, ...]:
    """Settings worth knowing when frames vanish."""
    bridged = sysctl.read(namespace, "bridge/bridge-nf-call-iptables")
    note = "bridged frames pass iptables: an accept rule is added where FORWARD drops" if bridged == "1" else "off"
    return (Check("bridge-nf-call-iptables", True, False, note if bridged is not None else "not present"),)


async def everything(ranges: Sequence[str], port: int = PORT_DEFAULT) -> tuple[Check, ...]:
    """All checks in the order in which a person fixes them."""
    first = privileges()
    if not first.ok:
        return (first, *tools())
    return (
        first,
        *await features(),
        *ipv6(ranges),
        *ports(port),
        *await range_conflicts(ranges),
        *kernel_settings(),
        wireguard(),
        *tools(),
    )
