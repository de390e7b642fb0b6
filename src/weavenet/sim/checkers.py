"""The invariants of the specification, checked after each event.

Sources are kept apart from what is checked: allocations are read from the rows that nodes persist, data paths and
filters from what drivers executed, acknowledgements from what clients were told.

- I1 rings are canonical, full after genesis, and stamps only grow; I3 never ahead of the log.
- I2 what is held in the range is own or blocked.
- I4 no address is usable by two peers in their own eyes: owned, and not on hold.
- I5 nobody's data path shows one address from two peers. A removed peer that does not know it yet sees only whoever
  still sends to it.
- I6 equal log positions hold equal decrees; where electors agree on N, there is one genesis.
- ``acknowledged``: an address that a client was told stays its own through any crash until it gives it back.

The incremental check looks at what an event touched. The full one recomputes everything from scratch, and both must
agree (rule ``checker``).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from weavenet.core.effects import Change
from weavenet.core.node import Node
from weavenet.core.ranges import RANGE_BITS, Ranges, base
from weavenet.core.ring.segments import Ring
from weavenet.core.types import PeerId, Position, Segment, Stamp, entry_hash
from weavenet.sim.host import Host
from weavenet.sim.violation import Violation

_ALLOC_TABLE = "alloc"


class Ledger:
    """What the checker remembers of one host."""

    __slots__ = (
        "alloc",
        "blocked",
        "cluster",
        "has_ports",
        "held",
        "log_hash",
        "log_ticket",
        "own",
        "ring",
        "shown",
        "told",
    )

    def __init__(self) -> None:
        self.ring: Ring | None = None
        self.log_hash: bytes | None = None
        self.log_ticket: int | None = None
        """Persists of this host that have to be durable before its log counts; None: it does."""
        self.cluster = b""
        self.held: tuple[tuple[int, int], ...] = ()
        self.own: list[tuple[int, int]] = []
        self.blocked: tuple[tuple[str, str], ...] = ()
        self.alloc: dict[str, set[str]] = {}
        """Address → idents, as persisted (whether durable yet or not)."""
        self.told: set[tuple[str, str]] = set()
        """(ident, address) that a client was told, or that a machine which came up anew finds on its disk. Nobody
        uses an address whose row is written and whose answer is still on its way."""
        self.has_ports = True
        """False from a reboot until the daemon has set filter and data path, after which it attaches containers."""
        self.shown: dict[str, PeerId] = {}
        """Addresses that live, unfiltered containers here may use, and the peer they are shown as."""


class Checker:
    """``is_genesis_unique``: all electors of this history agree on N, so two geneses are a violation. ``is_forced``: an
    operator's error gave addresses to two peers; what remains promised is that nobody sees both (I5)."""

    def __init__(self, hosts: list[Host], area: Ranges, *, is_genesis_unique: bool, is_forced: bool = False) -> None:
        self._hosts = hosts
        self._area = area
        self._offsets: dict[str, int | None] = {}
        self._is_genesis_unique = is_genesis_unique
        self._is_forced = is_forced
        self._may_show_twice = False
        self._witnessed: dict[PeerId, set[PeerId]] = {}
        """Heir → who had confirmed when it ended a hold."""
        self.removed: set[PeerId] = set()
        """Removed by any log ever seen, or gone by themselves."""
        self._ledgers = [Ledger() for _ in hosts]
        self._decrees: dict[tuple[bytes, Position], bytes] = {}
        self._geneses: dict[bytes, tuple[str, bytes]] = {}
        """Digest → at whom it was first seen, cluster."""
        self._withdrawn: set[bytes] = set()
        self._shown: dict[str, dict[int, None]] = {}
        self._contested: dict[str, None] = {}
        self.acknowledged: list[dict[tuple[str, str], None]] = [{} for _ in hosts]
        """Per host: (ident, address) that a client was told and has not begun to give back."""

    def forget_clusters(self) -> None:
        """Everybody has left for good: whoever comes next begins a new one."""
        self._geneses.clear()

    def withdrawn(self, cluster: bytes) -> None:
        """The last that a founder knew of has left, and its record with it. Others may have read that just before; what
        they begin when they find nobody who owns anything is no second cluster."""
        self._withdrawn.add(cluster)
        self._geneses = {digest: seen for digest, seen in self._geneses.items() if seen[1] != cluster}

    @property
    def is_forced(self) -> bool:
        return self._is_forced

    def force(self) -> None:
        """From here on an operator answers for addresses that are used twice: a hold may be ended by force."""
        self._is_forced = self._may_show_twice = True

    # --- what happens to a host ---

    def appended(self, host: Host, changes: Iterable[Change]) -> None:
        """Rows were given to the disk of ``host``."""
        ledger = self._ledgers[host.index]
        for change in changes:
            if change.table != _ALLOC_TABLE:
                continue
            ident, _, address = change.key.decode().partition("\0")
            if change.value is not None:
                ledger.alloc.setdefault(address, set()).add(ident)
            else:
                holders = ledger.alloc.get(address, set())
                holders.discard(ident)
                ledger.told.discard((ident, address))
                if not holders:
                    ledger.alloc.pop(address, None)
                if (ident, address) in self.acknowledged[host.index]:
                    raise Violation("acknowledged", f"{host.label} freed {address} of {ident}, who still uses it")
            self._show(host, address)
            self._check_held(host, address)

    def told(self, host: Host, ident: str, address: str) -> None:
        """A client on ``host`` was told that its container has ``address``."""
        self.acknowledged[host.index][ident, address] = None
        self._ledgers[host.index].told.add((ident, address))
        self._show(host, address)
        self._check_contested()

    def started(self, host: Host) -> None:
        """A new life begins with what is durable."""
        ledger = self._ledgers[host.index]
        ledger.ring, ledger.log_hash, ledger.log_ticket, ledger.own, ledger.blocked = None, None, None, [], ()
        ledger.cluster, ledger.held = b"", ()
        self._reload(host, host.disk.durable)
        for ident, address in self.acknowledged[host.index]:
            if ident not in ledger.alloc.get(address, ()):
                raise Violation("acknowledged", f"{host.label} restarted without {address} of {ident}")

    def stopped(self, host: Host, *, kernel_lost: bool) -> None:
        ledger = self._ledgers[host.index]
        ledger.ring, ledger.own, ledger.blocked = None, [], ()
        ledger.has_ports &= not kernel_lost
        self._reload(host, {} if kernel_lost else host.disk.durable)

    def forget_host(self, host: Host) -> None:
        """Its disk and its containers are gone; nobody relies on what it said."""
        self.acknowledged[host.index].clear()

    def kernel_changed(self, host: Host) -> None:
        ledger = self._ledgers[host.index]
        ledger.has_ports = True
        for address in set(ledger.shown) | set(ledger.alloc):
            self._show(host, address)
        self._check_contested()

    def stepped(self, host: Host) -> None:
        """The node of ``host`` handled an event."""
        node = host.node
        if node is None:
            return
        ledger = self._ledgers[host.index]
        self.removed.update(node.log.departed)
        if node.log.hash != ledger.log_hash:
            ledger.log_ticket = host.disk.appended
            self._check_log(host)
            if ledger.cluster != node.cluster.id:
                ledger.ring = None  # a singleton that yielded starts another ring
            ledger.log_hash, ledger.cluster = node.log.hash, node.cluster.id
            if node.membership.fenced:
                ledger.own = []  # it has just met its own removal and says nothing any more
            self._check_sole_owner(host, ledger.own)
        if ledger.log_ticket is not None and host.disk.acknowledged >= ledger.log_ticket:
            ledger.log_ticket = None
            self._check_log(host)
        blocked = node.ipam.blocked()
        if blocked is not ledger.blocked and blocked != ledger.blocked:
            before, ledger.blocked = ledger.blocked, blocked
            for _, address in sorted(set(before) ^ set(blocked)):
                self._check_held(host, address)
        ring = node.ring
        held = node.ipam.held
        if ring is not ledger.ring or held != ledger.held:
            if ledger.held:
                self._witnessed.setdefault(host.peer, set()).update(node.membership.witnesses)
            ledger.held = held
            self._check_ring(host, ledger, ring)
            ledger.ring = ring
        if self._contested:
            self._check_contested()

    # --- single rules ---

    def _check_log(self, host: Host) -> None:
        """One decree at a place. What is not durable yet was decided by nobody: a lone voter that crashes before may
        decide otherwise (history *undecided-by-crash*)."""
        node = host.node
        if node is None:
            return
        genesis = node.log.genesis
        if genesis is None:
            return
        self.removed.update(node.log.removed)
        is_decided = self._ledgers[host.index].log_ticket is None
        for index, entry in enumerate(node.log.entries):
            digest = entry_hash(entry)
            known = self._decrees.get((genesis.cluster, entry.position))
            if known not in (None, digest):
                raise Violation("I6", f"{host.label} has another decree at position {index}")
            if not is_decided:
                continue
            self._decrees[genesis.cluster, entry.position] = digest
            if index == 0 and genesis.cluster not in self._withdrawn:
                self._geneses.setdefault(digest, (host.label, genesis.cluster))
        if self._is_genesis_unique and len(self._geneses) > 1:
            labels = " and ".join(label for label, _ in self._geneses.values())
            raise Violation("I6", f"two geneses, first at {labels}")

    def _check_ring(self, host: Host, ledger: Ledger, ring: Ring) -> None:
        node = host.node
        assert node is not None
        self._check_fullness(host, node)
        limit = node.log.position
        changed = _differences(ledger.ring.segments if ledger.ring is not None else (), ring.segments)
        for low, high, before, after in changed:
            if after is None or (before is not None and after < before):
                raise Violation("I1", f"{host.label}: stamp of {low}..{high} fell from {before} to {after}")
            if limit is None or after.position > limit:
                raise Violation("I3", f"{host.label}: {low}..{high} is stamped {after.position}, log ends at {limit}")
        before_own = set(ledger.own)
        ledger.own = self._own(host, node)
        self._check_sole_owner(host, [interval for interval in ledger.own if interval not in before_own])
        for address in list(ledger.alloc):
            self._check_held(host, address, ring)

    @staticmethod
    def _own(host: Host, node: Node) -> list[tuple[int, int]]:
        """What ``host`` takes for its own and may use."""
        if node.membership.fenced or node.membership.leaving.has_offered:
            return []
        owned = [(s.start, s.end) for s in node.ring.segments if s.stamp.owner == host.peer]
        return _without(owned, node.ipam.held)

    def _check_fullness(self, host: Host, node: Node) -> None:
        self._check_canonical(host, node.ring)
        if node.log.genesis is not None and node.ring.segments and not _covers(node.ring, self._area):
            raise Violation("I1", f"{host.label}: ring is not full after genesis")

    def _check_state(self, host: Host, node: Node) -> None:
        """I1 and I3, as far as a ring by itself shows them."""
        self._check_fullness(host, node)
        limit = node.log.position
        for segment in node.ring.segments:
            if limit is None or segment.stamp.position > limit:
                raise Violation("I3", f"{host.label}: {segment} is ahead of the log, which ends at {limit}")

    def _check_canonical(self, host: Host, ring: Ring) -> None:
        previous: Segment | None = None
        for segment in ring.segments:
            number = segment.start >> RANGE_BITS
            end = base(number) + (self._area.sizes[number] if number < len(self._area.sizes) else 0)
            if not 0 <= segment.start < segment.end <= end:
                raise Violation("I1", f"{host.label}: segment {segment} is empty or outside")
            if previous is not None and (
                previous.end > segment.start or (previous.end == segment.start and previous.stamp == segment.stamp)
            ):
                raise Violation("I1", f"{host.label}: {previous} and {segment} overlap or should be one")
            previous = segment

    def _check_sole_owner(self, host: Host, intervals: Iterable[tuple[int, int]]) -> None:
        for low, high in () if self._is_forced else intervals:
            for other in self._hosts:
                if other.peer == host.peer or not self._same_cluster(host, other):
                    continue  # also a copy of the disk: one owner, until the two hear of each other
                for start, end in self._ledgers[other.index].own:
                    if start < high and low < end and not self._is_strangers(host, other, max(low, start)):
                        text = f"{host.label} and {other.label} both own {max(low, start)}..{min(high, end)}"
                        raise Violation("I4", text)

    def _is_strangers(self, host: Host, other: Host, offset: int) -> bool:
        """One of the two inherited the address without ever having heard of the other, whose claim to it is lost as
        soon as both have merged; until then I5 is what counts (history *stranger-island*)."""
        for heir, stranger in ((host, other), (other, host)):
            stamp = None if heir.node is None else heir.node.ring.stamp_at(offset)
            if stamp is None or stamp.position.number == 0:
                continue
            if stranger.peer not in self._witnessed.get(stamp.owner, ()):
                return True
        return False

    def _check_held(self, host: Host, address: str, ring: Ring | None = None) -> None:
        """I2 for one address of a running host."""
        node = host.node
        offset = self._offset(address)
        idents = self._ledgers[host.index].alloc.get(address)
        if node is None or offset is None or not idents:
            return
        stamp = (ring or node.ring).stamp_at(offset)
        if stamp is None or stamp.owner == host.peer:
            return
        blocked = node.ipam.blocked()
        for ident in sorted(idents):
            if (ident, address) not in blocked:
                raise Violation("I2", f"{host.label}: {address} of {ident} is neither own nor blocked")

    def _check_contested(self) -> None:
        for address in list(self._contested):
            holders = self._shown.get(address, {})
            if len(holders) < 2:
                del self._contested[address]
                continue
            peers = [self._ledgers[index].shown[address] for index in holders]
            for first, index in enumerate(() if self._is_forced else holders):
                for other in list(holders)[first + 1 :]:
                    pair = self._hosts[index], self._hosts[other]
                    offset = self._offset(address) or 0
                    if self._same_cluster(*pair) and not self._is_strangers(*pair, offset):
                        text = f"h{index} and h{other} both use {address} in one cluster"
                        raise Violation("unique", text)
            for viewer in self._hosts:
                seen = {peer for peer in peers if self._sees(viewer, peer)}  # a disk and its copy are one peer
                if len(seen) > 1 and not self._may_show_twice:
                    raise Violation(
                        "I5", f"{viewer.label} sees {address} at {' and '.join(map(bytes.hex, sorted(seen)))}"
                    )

    def _sees(self, viewer: Host, peer: PeerId) -> bool:
        if peer == viewer.kernel_peer or peer not in viewer.open_peers:
            return peer == viewer.kernel_peer
        if viewer.kernel_peer not in self.removed:
            return True
        return any(host.kernel_peer == peer and viewer.kernel_peer in host.open_peers for host in self._hosts)

    # --- indexes ---

    def _reload(self, host: Host, rows: dict[tuple[str, bytes], bytes]) -> None:
        ledger = self._ledgers[host.index]
        ledger.alloc = _allocations(rows)
        held = {(ident, address) for address, idents in ledger.alloc.items() for ident in idents}
        ledger.told = ledger.told & held if host.open_peers else held
        for address in set(ledger.shown) | set(ledger.alloc):
            self._show(host, address)

    def _show(self, host: Host, address: str) -> None:
        """Bring the index of visible in-range addresses up to date for one address of ``host``."""
        if self._offset(address) is None:
            return
        ledger = self._ledgers[host.index]
        visible = self._is_visible(host, address)
        holders = self._shown.setdefault(address, {})
        if visible:
            ledger.shown[address] = host.kernel_peer
            holders[host.index] = None
            if len(holders) > 1:
                self._contested[address] = None
        else:
            ledger.shown.pop(address, None)
            holders.pop(host.index, None)
            if not holders:
                del self._shown[address]

    def _is_visible(self, host: Host, address: str) -> bool:
        ledger = self._ledgers[host.index]
        idents = ledger.alloc.get(address, ()) if ledger.has_ports else ()
        return any((ident, address) in ledger.told and (ident, address) not in host.blocked for ident in idents)

    def _offset(self, address: str) -> int | None:
        if address not in self._offsets:
            self._offsets[address] = self._area.offset(address)
        return self._offsets[address]

    def _same_cluster(self, host: Host, other: Host) -> bool:
        """Members with equal logs. One that has just met its own removal is none, nor one whose disk was set back and
        that nobody has told yet."""
        if host.is_set_back or other.is_set_back:
            return False
        if any(each.node is not None and each.node.membership.fenced for each in (host, other)):
            return False
        ours, theirs = self._ledgers[host.index].log_hash, self._ledgers[other.index].log_hash
        return ours is not None and ours == theirs

    # --- everything from scratch ---

    def full_scan(self) -> None:
        """Raises Violation; ``checker`` when the incremental state disagrees with the world."""
        shown: dict[str, dict[int, PeerId]] = {}
        for host in self._hosts:
            node, ledger = host.node, self._ledgers[host.index]
            if node is not None:
                if node.log.hash != ledger.log_hash or node.ring is not ledger.ring:
                    raise Violation("checker", f"{host.label} changed its log or ring unnoticed")
                if ledger.own != self._own(host, node) or ledger.alloc != _allocations(host.disk.written()):
                    raise Violation("checker", f"{host.label} owns or holds something else than is remembered")
                self._check_state(host, node)
                self._check_sole_owner(host, ledger.own)
                for address in ledger.alloc:
                    self._check_held(host, address)
            for address in ledger.alloc:
                if self._offset(address) is not None and self._is_visible(host, address):
                    shown.setdefault(address, {})[host.index] = host.kernel_peer
        remembered = {
            address: {index: self._ledgers[index].shown.get(address) for index in holders}
            for address, holders in self._shown.items()
            if holders
        }
        if remembered != shown:
            raise Violation("checker", "the index of visible addresses is wrong")
        for address, holders in shown.items():
            if len(holders) > 1:
                self._contested[address] = None
        self._check_contested()


def _allocations(rows: dict[tuple[str, bytes], bytes]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for table, key in rows:
        if table == _ALLOC_TABLE:
            ident, _, address = key.decode().partition("\0")
            found.setdefault(address, set()).add(ident)
    return found


def _covers(ring: Ring, area: Ranges) -> bool:
    """Whether every address has a stamp, range by range."""
    for number, size in enumerate(area.sizes):
        at = base(number)
        for segment in ring.segments:
            if segment.start == at:
                at = segment.end
        if at != base(number) + size:
            return False
    return True


def _without(intervals: list[tuple[int, int]], holes: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """What is left of ``intervals`` outside the sorted ``holes``."""
    left: list[tuple[int, int]] = []
    for low, high in intervals:
        at = low
        for start, end in holes:
            if start < high and end > at:
                if at < start:
                    left.append((at, start))
                at = max(at, end)
        if at < high:
            left.append((at, high))
    return left


def _differences(
    old: tuple[Segment, ...], new: tuple[Segment, ...]
) -> list[tuple[int, int, Stamp | None, Stamp | None]]:
    """Pieces [low, high) where two rings differ, with both stamps; by plain walking of all boundaries."""
    bounds = sorted({bound for ring in (old, new) for segment in ring for bound in (segment.start, segment.end)})
    found: list[tuple[int, int, Stamp | None, Stamp | None]] = []
    i = j = 0
    for low, high in pairwise(bounds):
        while i < len(old) and old[i].end <= low:
            i += 1
        while j < len(new) and new[j].end <= low:
            j += 1
        before = old[i].stamp if i < len(old) and old[i].start <= low else None
        after = new[j].stamp if j < len(new) and new[j].start <= low else None
        if before is not after and before != after:
            found.append((low, high, before, after))
    return found
