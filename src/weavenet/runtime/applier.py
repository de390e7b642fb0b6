"""Brings the kernel to what was last wanted: blocked addresses, open paths, the sleeve worker's state.

Only the latest state is applied, by one task, one at a time. Invariant: an address is blocked before a plane that came
later opens, and unblocked only after a plane that came earlier was applied: between two wanted states the union of both
block lists is in force.

Does not know the kernel: ``block`` and ``apply`` do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from weavenet.core.effects import PlanePeer
from weavenet.core.errors import WeaveError
from weavenet.core.overlay.sleeve import SleeveDesired
from weavenet.core.types import PeerId

RETRY_S = 1.0
Blocked = tuple[tuple[str, str], ...]

_log = logging.getLogger("weave.datapath")


class Applier:
    """``apply`` None: there is no data path, blocking still works. ``may_show``: peers whose paths may be open in the
    kernel; None: whatever an earlier life left there."""

    def __init__(
        self,
        block: Callable[[Blocked], Awaitable[None]],
        apply: Callable[[tuple[PlanePeer, ...]], Awaitable[None]] | None,
        may_show: frozenset[PeerId] | None = None,
    ) -> None:
        self._block, self._apply = block, apply
        self._blocked: Blocked = ()
        self._in_force: frozenset[tuple[str, str]] = frozenset()  # dropped for certain, whatever runs now
        self._in_kernel: Blocked | None = ()  # as last set; None: being set, or that failed
        self._peers: tuple[PlanePeer, ...] | None = None
        self._peers_stale = False
        self._may_show = may_show
        self._sleeve: SleeveDesired | None = None
        self.on_sleeve: Callable[[SleeveDesired], None] = lambda desired: None
        """Hands the wanted state to the sleeve worker."""
        self._waiting: list[Callable[[], None]] = []  # for their addresses to be blocked
        self._closing: list[Callable[[], None]] = []  # for paths to be closed
        self._wake = asyncio.Event()

    def set_plane(self, peers: tuple[PlanePeer, ...], done: Callable[[], None]) -> None:
        wanted = frozenset(peer.peer for peer in peers)
        if self._may_show is not None and self._may_show <= wanted:
            self._may_show = wanted
            done()
        else:
            self._closing.append(done)
        self._peers, self._peers_stale = peers, True
        self._wake.set()

    def set_sleeve(self, desired: SleeveDesired) -> None:
        self._sleeve = desired
        self._wake.set()

    def set_blocked(self, blocked: Blocked, done: Callable[[], None]) -> None:
        self._blocked = blocked
        if self._in_force.issuperset(blocked):
            done()
        else:
            self._waiting.append(done)
        self._wake.set()

    @property
    def blocked(self) -> Blocked:
        """As last wanted."""
        return self._blocked

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._round()
            except (OSError, WeaveError) as error:
                _log.warning("the data path could not be set, trying again: %s", error)
                await asyncio.sleep(RETRY_S)
                self._wake.set()

    async def _round(self) -> None:
        blocked, peers, sleeve, waiting = self._blocked, self._peers, self._sleeve, self._waiting
        self._waiting = []
        try:
            await self._force(tuple(sorted({*self._in_force, *blocked})))
        finally:
            for done in waiting:
                done()
        if sleeve is not None:  # ahead of the kernel, which then sends frames there
            self._sleeve = None if self._sleeve is sleeve else self._sleeve
            self.on_sleeve(sleeve)
        if self._peers_stale and peers is not None:
            await self._apply_peers(peers)
        if not self._waiting:
            await self._force(blocked)

    async def _apply_peers(self, peers: tuple[PlanePeer, ...]) -> None:
        self._peers_stale = False
        closing, self._closing = self._closing, []
        try:
            if self._apply is not None:
                await self._apply(peers)
        except BaseException:
            self._peers_stale = True
            self._closing = closing + self._closing
            raise
        if not self._peers_stale:
            self._may_show = frozenset(peer.peer for peer in peers)
        for done in closing:
            done()

    async def _force(self, blocked: Blocked) -> None:
        if blocked == self._in_kernel:
            return
        self._in_force &= frozenset(blocked)
        self._in_kernel = None
        await self._block(blocked)
        self._in_kernel, self._in_force = blocked, frozenset(blocked)
