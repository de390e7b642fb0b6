"""What a daemon stands on before any event loop runs: locks, the opened store, name, key and certificates.

Order matters for start-up time: the certificate child runs while the rest of the program is imported, so this module
imports little. Everything here blocks.
"""

from __future__ import annotations

import os
from pathlib import Path

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.runtime import identity
from weavenet.runtime.certificates import Issued, Issuing
from weavenet.runtime.identity import Me
from weavenet.runtime.lock import Lock
from weavenet.runtime.settings import Settings
from weavenet.runtime.store import Rows, Store, open_store


class Foundation:
    """Made by :meth:`lay`, completed by :meth:`settle`; :meth:`reopen` gives the next life a store again."""

    def __init__(self, settings: Settings, locks: list[Lock], store: Store, root: Path) -> None:
        self.settings = settings
        self.store = store
        self.rows: Rows = {}
        self.issued: Issued | None = None
        self.is_fresh = False
        """Nothing was in the store: nobody waits for containers or names of this host yet."""
        self.notices: tuple[str, ...] = ()
        """What people must know about how this daemon came by its identity."""
        self.warnings: tuple[str, ...] = ()
        """What whoever launches this daemon should know."""
        self._root = root
        self._locks = locks
        self._name = ""
        self._issuing: Issuing | None = None

    @classmethod
    def lay(cls, settings: Settings, root: Path = Path("/")) -> Foundation:
        """Lock, open the store, start the certificate child. Raises WeaveError (AlreadyRunning among them)."""
        locks = [Lock.acquire(Path(settings.pid_file))]
        try:
            store = open_store(Path(settings.data_dir))
            try:
                locks.append(Lock.acquire(Path(settings.lock_file)))
                self = cls(settings, locks, store, root)
                self.rows = store.load()
                self.is_fresh = not self.rows
                self._check_range()
                self._drop_foreign_key()
                self._name = identity.choose_name(settings, self.rows, root)
                self._issuing = Issuing(identity.order(settings, self.rows, self._name))
                self._tell_of_reset()
            except BaseException:
                store.close()
                raise
        except BaseException:
            for lock in locks:
                lock.release()
            raise
        return self

    def _check_range(self) -> None:
        """What a cluster divided stays divided: a range given anew is refused, rather than taken for a change. The
        default range is refused where it hides a route, but only as long as there is a choice."""
        settings, divided = self.settings, self._divided()
        if divided and settings.range_explicit and settings.ranges not in {(), divided}:
            raise WeaveError(
                Failure(
                    Code.INVALID,
                    f"expected --ipalloc-range {','.join(divided)}, which the cluster of this host has divided",
                    ",".join(settings.ranges),
                    "launch without --ipalloc-range; to divide another range, `weave reset` on every host, and launch "
                    "all with that",
                )
            )
        if settings.range_overlap and not divided:
            raise WeaveError(
                Failure(
                    Code.INVALID,
                    f"expected the default range {','.join(settings.ranges)} not to overlap a route of this host",
                    settings.range_overlap,
                    "weave launch --ipalloc-range CIDR with a free range, the same on every host",
                )
            )
        if settings.range_overlap and divided == settings.ranges:
            self.warnings += (
                f"the range {','.join(divided)}, which the cluster has divided, overlaps a route of this host "
                f"({settings.range_overlap}); next: change that route, or `weave reset` on every host and launch all "
                "with another --ipalloc-range",
            )

    def _divided(self) -> tuple[str, ...]:
        if not self.rows:
            return ()
        from weavenet.core.removal.fence import cluster_ranges

        return cluster_ranges(self.rows)

    def _drop_foreign_key(self) -> None:
        """A copied disk starts as somebody else: the same cut as for a removed peer, before anything is said."""
        reason = "" if self.settings.assume_identity else identity.foreign(self.rows, self._root)
        if reason:
            from weavenet.core.removal.fence import fenced_disk

            self.store.write_now((*fenced_disk(self.rows), *identity.forgotten(self.rows)))
            self.rows = self.store.load()
            self.notices = (reason,)

    def _tell_of_reset(self) -> None:
        """A reset that has gone too far to be given up goes on at the next start, and ends the daemon."""
        if not self.rows:
            return
        from weavenet.core.leaving import Leaving, Phase

        if Leaving.phase_on(self.rows) in {Phase.VACATING, Phase.SURRENDERING, Phase.GONE}:
            self.warnings += (
                "a `weave reset` of this host was not finished and goes on now: the daemon ends when it is done; "
                "next: `weave launch` again then, if this host is to come back",
            )

    def settle(self) -> Me:
        """Wait for the child, make key and name durable. Raises WeaveError."""
        if self._issuing is not None:
            self.issued = self._issuing.collect()
            self._issuing = None
        if self.issued is None:
            raise RuntimeError("a foundation is settled after it was laid")
        identity.remember(self.store, self.rows, self.issued, self._name, self._root)
        return Me(self._name, self.settings.nickname or os.uname().nodename, self.issued)

    def reopen(self) -> Me:
        """After a life ended: the store as it is on disk, every page written anew. Raises WeaveError; may be called
        again then."""
        self.store.close()
        store = open_store(Path(self.settings.data_dir))
        try:
            store.rewrite()
            self.rows = store.load()
        except WeaveError:
            store.close()
            raise
        self.store = store
        return self.settle()

    def fence(self) -> Me:
        """After a life ended because this peer was removed: its part in the cluster and its key go in one commit, a
        new key is made (spec "Fenced"). Blocks; raises WeaveError; may be called again then."""
        from weavenet.core.removal.fence import fenced_disk

        self.reopen()
        self.store.write_now((*fenced_disk(self.rows), *identity.forgotten(self.rows)))
        self.rows = self.store.load()
        self._issuing = Issuing(identity.order(self.settings, self.rows, self._name))
        return self.settle()

    def erase(self) -> None:
        """After this peer left: nothing of it stays on disk; the locks are held to the end. Blocks; raises WeaveError
        or OSError."""
        from weavenet.runtime.erasing import erase_files

        self.store.close()
        erase_files(self.settings, self._root)

    def close(self) -> None:
        self.store.close()
        for lock in self._locks:
            lock.release()
        self._locks = []
