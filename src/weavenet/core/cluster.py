"""The cluster as one peer sees it: who may join whom, and ring and log as mesh and handover replicate them.

Invariants: nothing is merged from another cluster; yielding is one durable step before anything of the other cluster is
taken; a ring delta is merged only when the log reaches as far as its sender's did (I3).

A *singleton* is a cluster of one that nobody has used or joined. It yields to any other cluster it meets, and of two
the one with the lower id stays. Everything else refuses, in words. What this does not do: decide (election), allocate
(ring).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weavenet.core.census import Census, foreign
from weavenet.core.config import VOTING_MODES, GenesisMode, NodeConfig
from weavenet.core.effects import Change, Outbox
from weavenet.core.errors import RefusalCode
from weavenet.core.limits import SEGMENTS_MAX
from weavenet.core.mesh.pages import pages
from weavenet.core.mesh.shared import HelloFields
from weavenet.core.messages.gossip import Push, RingDelta
from weavenet.core.messages.link import Hello, Refusal
from weavenet.core.removal.fence import Rejoin, rejoined
from weavenet.core.ring import Ipam, Log
from weavenet.core.ring.pages import delta_pages
from weavenet.core.types import Genesis, LogEntry, PeerId

TABLE = "cluster"
_ENROLLED = b"enrolled"


class Cluster:
    """``on_genesis(now)`` is called when this peer learns the cluster record, ``on_yield(now)`` when it gave up its
    own."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        log: Log,
        ipam: Ipam,
        enrolled_row: bytes | None,
        outbox: Outbox,
        settled_n: Callable[[], int],
        on_genesis: Callable[[float], None],
        on_yield: Callable[[float], None],
        rejoin: Rejoin | None = None,
    ) -> None:
        self._config = config
        self._log = log
        self._ipam = ipam
        self._outbox = outbox
        self._settled_n = settled_n
        self._on_genesis = on_genesis
        self._on_yield = on_yield
        self._enrolled = enrolled_row is not None
        self._rejoin = rejoin
        self._ranges = config.ranges
        self._range_explicit = config.range_explicit and bool(config.ranges)
        self.census: Callable[[], Census] = Census
        """How large the cluster is, as far as known here; the node says how to find out."""
        self.foreign: set[bytes] = set()
        """Cluster ids whose log was pushed to us over a link admitted before we had one; the node refuses such
        links."""

    @staticmethod
    def disk_key() -> tuple[str, bytes]:
        return TABLE, _ENROLLED

    # --- identity ---

    @property
    def id(self) -> bytes:
        genesis = self._log.genesis
        return genesis.cluster if genesis else b""

    @property
    def ranges(self) -> tuple[str, ...]:
        """The cluster's ranges; before genesis those we would propose."""
        genesis = self._log.genesis
        return genesis.ranges if genesis else self._ranges

    @property
    def may_found(self) -> bool:
        """False for a fenced peer, which waits to be let into its cluster again."""
        return self._rejoin is None

    @property
    def is_elector_mode(self) -> bool:
        """Would this peer vote, as itself? Not on a genesis unless :attr:`may_found`. Launched with ``seed=`` it may
        when it votes as no seed: it is none, its share is another's, or its seed was removed or has lost its vote."""
        if not self._config.ranges or self._config.ephemeral_ttl_s:
            return False
        if self._config.mode is GenesisMode.SEED:
            return self._log.genesis is not None and self._ipam.seed_share.seed_id not in self._log.electors
        return self._config.mode in VOTING_MODES

    @property
    def is_singleton(self) -> bool:
        genesis = self._log.genesis
        alone = (self._config.peer,)
        return (
            genesis is not None
            and genesis.electors == alone
            and genesis.owners == alone
            and not self._enrolled
            and not self._ipam.used
        )

    # --- admission (mesh.Shared) ---

    def hello(self) -> HelloFields:
        census = self.census() if self.id else Census()
        return HelloFields(
            cluster=self.id,
            ranges=self.ranges,
            range_explicit=self._range_explicit,
            singleton=self.is_singleton,
            seeds=self.id if self._config.mode is GenesisMode.SEED else b"",
            elector=self.is_elector_mode,
            settled_n=self._settled_n(),
            epoch=self._log.chain.epoch,
            peers=census.peers,
            electors=census.electors,
            addresses=census.addresses,
        )

    def admit(self, now: float, peer: PeerId, hello: Hello) -> Refusal | None:
        """May this peer and we share state? Yields first when we are the singleton of the two."""
        if self._rejoin is not None and hello.cluster not in {b"", self._rejoin.cluster}:
            return Refusal(
                RefusalCode.CLUSTER,
                f"expected cluster {self._rejoin.cluster.hex()[:12]}, which this peer was removed from and joins "
                f"again, found cluster {hello.cluster.hex()[:12]}; next: connect it to a peer of its own cluster",
            )
        if peer in self._log.departed:
            return Refusal(
                RefusalCode.REMOVED,
                f"expected a peer of the cluster, found {hello.peer.hex()}, which left it by `weave reset`; next: "
                "nothing, it comes back under a new identity by itself",
            )
        if peer in self._log.removed and self._log.chain.epoch >= (hello.epoch, hello.epoch_id):
            # Of two peers that removed each other the one with the greater epoch stays, and says so itself.
            return Refusal(
                RefusalCode.REMOVED,
                f"expected a peer of the cluster, found {hello.peer.hex()}, which was removed in favour of "
                f"{self._log.heir(peer).hex()}; next: nothing, it comes back under a new identity by itself",
            )
        if self.id and hello.cluster and self.id != hello.cluster:
            if self.is_singleton and (not hello.singleton or hello.cluster < self.id):
                refusal = self._refuse_range(hello, ours=self._ranges)
                if refusal is None:
                    self._yield(now, hello.cluster)
                return refusal
            if not hello.singleton:
                return self._refuse_cluster(hello)
        refusal = self._refuse_range(hello, ours=self.ranges)
        if refusal is None and hello.range_explicit and not self._range_explicit and not self.id:
            self._ranges = hello.ranges
        return refusal

    def _refuse_cluster(self, hello: Hello) -> Refusal:
        if hello.seeds and self._config.mode is GenesisMode.SEED:
            return Refusal(
                RefusalCode.SEEDS,
                f"expected the same --ipalloc-init seed={','.join(self._config.seeds)}, range and password on all "
                "hosts, found another set on one of us; next: launch both with one set of seeds",
            )
        return foreign(self.id, self.census(), hello)

    def _refuse_range(self, hello: Hello, *, ours: tuple[str, ...]) -> Refusal | None:
        theirs_binding = hello.range_explicit or bool(hello.cluster)
        ours_binding = self._range_explicit or bool(self.id)
        if not (ours and hello.ranges and theirs_binding and ours_binding) or ours == hello.ranges:
            return None
        if (not self._range_explicit and not self.id) or (not hello.range_explicit and not hello.cluster):
            return None  # the one that was not told a range adopts the other's
        if not self._range_explicit and hello.cluster and self.is_singleton:
            return None  # yields its range with its cluster
        return Refusal(
            RefusalCode.RANGE,
            f"expected --ipalloc-range {','.join(ours)}, found {','.join(hello.ranges)}; "
            "next: launch with the cluster's range, or without --ipalloc-range to adopt it",
        )

    def give_up(self, now: float) -> None:
        """Of a cluster that nobody else is in any more, whose record the lock has forgotten: begin anew."""
        self._outbox.note("info", "cluster", f"cluster {self.id.hex()[:12]} was given up by all others")
        self._begin_anew(now)

    def _yield(self, now: float, other: bytes) -> None:
        text = f"unused cluster {self.id.hex()[:12]} of this peer alone yields to {other.hex()[:12]}"
        self._outbox.note("info", "cluster", text)
        self._begin_anew(now)

    def _begin_anew(self, now: float) -> None:
        if self._enrolled:
            self._enrolled = False
            self._outbox.persist(Change(TABLE, _ENROLLED, None))
        self._log.forget()
        self._ipam.forget()
        self._ranges = self._config.ranges
        self._on_yield(now)

    def enrol(self) -> None:
        """Somebody else may hold our record now: from here on it is no singleton any more."""
        if not self._enrolled and self.id:
            self._enrolled = True
            self._outbox.persist(Change(TABLE, _ENROLLED, b"1"))

    # --- replication (mesh.Shared and handover.State) ---

    def log_length(self) -> int:
        return len(self._log)

    def log_hash(self) -> bytes:
        return self._log.hash

    def log_epoch(self) -> tuple[int, bytes]:
        return self._log.chain.epoch

    def log_gap(self, start: int, entries: Sequence[LogEntry]) -> int | None:
        return self._log.chain.gap(start, entries)

    def ring_gap(self, delta: RingDelta) -> int | None:
        return self._log.chain.ring_gap(delta.log_length, delta.segments)

    def ring_hash(self) -> bytes:
        return self._ipam.ring_hash

    def log_from(self, start: int) -> tuple[LogEntry, ...]:
        entries = self._log.entries[start:]
        if entries:
            self.enrol()
        return entries

    def merge_log(self, now: float, start: int, entries: Sequence[LogEntry]) -> bool:
        """True when something new was learnt; it is persisted then."""
        if not entries:
            return False
        first = entries[0]
        if start == 0 and isinstance(first.decree, Genesis) and self.id and first.decree.cluster != self.id:
            self.foreign.add(first.decree.cluster)
            return False
        rejoin = self._rejoin
        if rejoin is not None and not (isinstance(first.decree, Genesis) and first.decree.cluster == rejoin.cluster):
            return False
        had_genesis = self._log.genesis is not None
        if not self._log.merge(start, entries):
            return False
        if not had_genesis and self._log.genesis is not None:
            if self._rejoin is not None:
                self._rejoin = None
                self._outbox.persist(rejoined())
            self._ipam.adopt_genesis(now)
            self._on_genesis(now)
        return True

    def merge_ring(self, now: float, delta: RingDelta) -> RingDelta | None:
        return self._ipam.merge_ring(now, delta)

    def ring_bucket_hashes(self, range_index: int) -> tuple[bytes, ...]:
        return self._ipam.bucket_hashes(range_index)

    def ring_buckets(self, range_index: int, buckets: Sequence[int]) -> RingDelta:
        return self._ipam.buckets(range_index, buckets)

    def pages(self, log_start: int) -> list[Push]:
        ring = delta_pages(self._ipam.ring.segments, len(self._log), SEGMENTS_MAX)
        found = list(pages(log_start, self.log_from(log_start), ring, (), repair=True))
        return found or [Push(log_start, (), (), (), repair=True)]

    def merge_page(self, now: float, page: Push) -> bool:
        if page.log:
            self.merge_log(now, page.log_start, page.log)
            held = self._log.entries[page.log_start : page.log_start + len(page.log)]
            if held != page.log:
                return False
        for delta in page.ring:
            if self.ring_gap(delta) is not None:
                return False
            self.merge_ring(now, delta)
        return True
