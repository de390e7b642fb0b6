"""Keeps our nftables tables as wanted: blocked addresses, VXLAN from peers only, exposed subnets.

Invariants: only tables named ``weave`` are replaced; outside them there are tagged accept rules at most, where a chain
of a table ``filter`` drops what is forwarded: one while bridged frames pass such chains at all
(``bridge-nf-call-iptables``), and those for exposed subnets (:mod:`weavenet.host.exposure_rules`). After somebody
flushes the rules they are back within a second. A host without nftables works, without protection, and says so in
:meth:`Firewall.warnings`; the settings ``bridge-nf-call-*`` are never touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Sequence

from weavenet.core.limits import BRIDGE
from weavenet.host import exposure_rules, iptables, netns, rules, sysctl
from weavenet.host.exposure_rules import Exposed
from weavenet.host.nft import Command, Nft, NftError, TableWatch

DEBOUNCE_S = 0.1
RETRY_S = 2.0
FORWARDING_TABLES = frozenset(("filter", "firewalld"))
"""Of others; when they change, what drops traffic of containers is looked for anew."""
PROTECTIONS = {
    "bridge": "lost addresses are not blocked",
    "inet": "VXLAN is accepted from anybody, containers may reach services of this host",
    "ip": "IPv4 of exposed subnets is not masqueraded",
    "ip6": "IPv6 of exposed subnets is not masqueraded",
}
"""What is missing without our table of a family."""
BRIDGED = "bridge/bridge-nf-call-iptables"
LOOK_S = 10.0
"""How often what nobody tells us of is compared with what it was."""
LEGACY_RULE = ("-i", BRIDGE, "-o", BRIDGE, "-m", "comment", "--comment", rules.FORWARD_COMMENT, "-j", "ACCEPT")

_log = logging.getLogger("weave.firewall")


class Firewall:
    """The whole desired state comes through :meth:`set_hosts` and :meth:`set_blocked`; equal state costs nothing."""

    def __init__(self, namespace: int | None = None, nft: Nft | None = None) -> None:
        self._namespace = namespace
        self._nft = nft if nft is not None else Nft(namespace)
        self._watch = TableWatch(namespace, self._deleted, self._added)
        self._hosts: frozenset[str] | None = None
        self._tunnels: frozenset[str] = frozenset()
        self._blocked: tuple[tuple[str, str], ...] | None = None
        self._exposed: tuple[Exposed, ...] | None = None
        self._applied: object = None
        self._check_forward = True
        self._watched = FORWARDING_TABLES
        self._seen: tuple[str | None, ...] = ()
        self._has_conntrack = False
        self._tracked: int | None = 0
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._trouble = ""
        self._forward_trouble = ""

    async def open(self) -> None:
        """Never raises for want of nftables; see :meth:`warnings`."""
        try:
            self._watch.open()
        except OSError as error:
            self._trouble = f"rules that others flush are not put back: {error.strerror}"
        self._task = asyncio.create_task(self._repair())

    async def close(self) -> None:
        """Stop watching; rules stay, as the data path does."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._watch.close()

    async def set_hosts(self, hosts: frozenset[str], tunnels: frozenset[str] = frozenset()) -> None:
        """From which VXLAN is welcome. ``hosts``: underlay addresses of peers that send it over the underlay.
        ``tunnels``: addresses of those whose VXLAN comes out of the WireGuard device."""
        self._hosts, self._tunnels = hosts, tunnels
        await self._apply()

    async def set_blocked(self, blocked: tuple[tuple[str, str], ...]) -> None:
        """(ident, address): when this returns, those frames are dropped, or a warning says why not."""
        self._blocked = blocked
        await self._apply()

    async def set_exposed(self, exposed: tuple[Exposed, ...]) -> None:
        """When this returns, traffic between those subnets and elsewhere is let through and masqueraded as they say, or
        a warning says why not."""
        if exposed == self._exposed:
            return
        is_first, masqueraded = self._exposed is None, self._masquerades()
        self._exposed = exposed
        self._check_forward = True
        await self._apply()
        if masqueraded:
            self._tracked = None
        if is_first:
            await self.look_at_conntrack()

    async def look_at_conntrack(self) -> None:
        """Whether connections are tracked here changes with other people's rules; to be called now and then. While we
        masquerade they are tracked because of us, and what is left of that later says nothing: only more than before
        shows that somebody else has rules that need it."""
        if self._exposed is None or self._masquerades():
            return
        count = int(sysctl.read(self._namespace, "netfilter/nf_conntrack_count") or "0")
        before, self._tracked = self._tracked, count
        if before is not None and count > before and not self._has_conntrack:
            self._has_conntrack = True
            await self._surely(self._apply())

    def _masquerades(self) -> bool:
        return any(item.masquerade for item in self._exposed or ())

    def warnings(self) -> tuple[str, ...]:
        return tuple(text for text in (self._trouble, self._forward_trouble) if text)

    async def _apply(self) -> None:
        async with self._lock:
            wanted = (self._hosts, self._tunnels, self._blocked, self._exposed, self._has_conntrack)
            if wanted != self._applied:
                await self._replace(wanted)
            if self._check_forward and (self._hosts is not None or self._exposed is not None):
                self._check_forward = False
                await self._open_forward()

    async def _replace(self, wanted: object) -> None:
        refused: dict[str, NftError] = {}
        tables = self._tables()
        try:
            await self._nft.run(tables)
        except NftError as error:
            refused = await self._run_apart(tables) if self._nft.backend else dict.fromkeys(("bridge", "inet"), error)
        if refused:
            reasons = ", ".join(sorted({str(error.strerror) for error in refused.values()}))
            missing = " and ".join(PROTECTIONS[family] for family in sorted(refused))
            step = "see `weave setup`" if self._nft.backend else "install nftables and restart weave"
            self._trouble = f"firewall off: {reasons}; {missing}; {step}"
            if self._nft.backend:
                asyncio.get_running_loop().call_later(RETRY_S, self._wake.set)
        else:
            self._applied = wanted
            self._trouble = ""
        if self._nft.backend == "nft":
            self._watch.skip()

    def _tables(self) -> list[Command]:
        is_tracked = self._has_conntrack or self._masquerades()
        tables = rules.all_tables(self._hosts, self._blocked, tunnels=self._tunnels, has_conntrack=is_tracked)
        return tables if self._exposed is None else tables + exposure_rules.nat_tables(self._exposed)

    async def _run_apart(self, tables: Sequence[Command]) -> dict[str, NftError]:
        """Each family by itself, since a kernel may lack one of them; those that it refuses although there is something
        in them."""
        refused: dict[str, NftError] = {}
        for family, commands in rules.by_family(tables).items():
            try:
                await self._nft.run(commands)
            except NftError as error:
                if commands != rules.delete_table(family):
                    refused[family] = error
        return refused

    # --- chains of others ---

    async def _open_forward(self) -> None:
        self._forward_trouble = ""
        is_bridged = self._hosts is not None and sysctl.read(self._namespace, BRIDGED) == "1"
        if not is_bridged and self._exposed is None:
            return
        try:
            chains = await self._nft.run([{"list": {"chains": None}}])
            if any(self._is_forwarding(item) for item in chains):
                ruleset = await self._nft.run([{"list": {"ruleset": None}}])
                self._warn_of(rules.unopened_chains(ruleset) if is_bridged or self._exposed else [])
                changes = rules.missing_forward_rules(ruleset) if is_bridged else []
                changes += exposure_rules.forward_changes(ruleset, self._exposed or ())
                if changes:
                    await self._nft.run(changes)
        except NftError as error:
            self._forward_trouble = (
                f"bridged traffic may be dropped by a FORWARD chain, and it could not be opened: {error.strerror}; "
                f"accept -i {BRIDGE} -o {BRIDGE} there"
            )
        is_done = await asyncio.to_thread(netns.call, self._namespace, lambda: self._open_legacy(is_bridged=is_bridged))
        if not is_done:
            self._check_forward = True
            asyncio.get_running_loop().call_later(RETRY_S, self._wake.set)

    @staticmethod
    def _is_forwarding(item: Command) -> bool:
        chain = item.get("chain", {})
        return bool(chain.get("table") != rules.TABLE and chain.get("hook") == "forward")

    def _warn_of(self, chains: list[str]) -> None:
        self._watched = FORWARDING_TABLES | {chain.split()[1] for chain in chains}
        if chains:
            self._forward_trouble = (
                f"traffic of containers is dropped by {', '.join(chains)} in nftables; accept what comes in from and "
                f"goes out to {BRIDGE} there (firewall-cmd --permanent --zone=trusted --add-interface={BRIDGE}; "
                "firewall-cmd --reload)"
            )

    def _open_legacy(self, *, is_bridged: bool) -> bool:
        """False: it was busy, so try again."""
        is_done = True
        for family in iptables.families_in_use():
            listing = iptables.listing(family)
            done = [listing]
            for arguments in exposure_rules.legacy_changes(listing.stdout, self._exposed or (), family):
                done.append(iptables.run(family, *arguments))
            if is_bridged and exposure_rules.legacy_drops(listing.stdout):
                chain = exposure_rules.legacy_chain(listing.stdout)
                if iptables.run(family, "-C", chain, *LEGACY_RULE).returncode != 0:
                    done.append(iptables.run(family, "-I", chain, *LEGACY_RULE))
            for failed in (each for each in done if each.returncode != 0):
                is_done = is_done and failed.returncode != iptables.BUSY
                self._forward_trouble = (
                    f"FORWARD of {iptables.PROGRAMS[family]} may drop traffic, and could not be opened: "
                    f"{failed.stderr.strip()}"
                )
        return is_done

    def _unwatched(self) -> tuple[str | None, ...]:
        """What decides about traffic of containers and changes without anybody being told."""
        bridged = sysctl.read(self._namespace, BRIDGED)
        return bridged, *netns.call(
            self._namespace, lambda: [iptables.listing(family).stdout for family in iptables.families_in_use()]
        )

    # --- what others do ---

    def _deleted(self, table: str) -> None:
        if table == rules.TABLE:
            self._applied = None
            self._wake.set()
        else:
            self._added(table)

    def _added(self, table: str) -> None:
        if table in self._watched:
            self._check_forward = True
            self._wake.set()

    async def _repair(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LOOK_S)
            if self._wake.is_set():
                await asyncio.sleep(DEBOUNCE_S)
                self._wake.clear()
                await self._surely(self._apply())
            else:
                await self._surely(self._look())

    async def _look(self) -> None:
        """For what nobody tells us of."""
        before, self._seen = self._seen, await asyncio.to_thread(self._unwatched)
        if self._seen != before:
            self._check_forward = True
            await self._apply()

    async def _surely(self, work: Awaitable[None]) -> None:
        """Whatever goes wrong, rules are put back another time rather than never."""
        try:
            await work
        except Exception:
            _log.exception("the firewall could not be looked after, trying again")
            asyncio.get_running_loop().call_later(RETRY_S, self._wake.set)
