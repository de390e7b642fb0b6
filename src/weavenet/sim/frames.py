"""Broadcast frames of containers over whichever planes are in use, counted where they arrive.

Rules: a frame arrives at most once at each member; once nothing is wrong any more it arrives exactly once at each, and
passes no host twice. Excepted are frames of a host whose daemon died between telling the kernel and telling the worker
that a peer moved from one plane to the other: both flood to that peer until the next daemon speaks. The other order
would lose frames of every peer that moves, instead of doubling broadcasts of a host that crashes just then.
"""

from __future__ import annotations

from collections.abc import Callable

from weavenet.core.effects import VxlanUse
from weavenet.core.types import PeerId
from weavenet.sim.host import Host
from weavenet.sim.underlay import Underlay
from weavenet.sim.violation import Violation


class Frames:
    def __init__(self, hosts: list[Host], underlay: Underlay) -> None:
        self._hosts = hosts
        self._underlay = underlay
        self._count = 0
        self._arrived: dict[tuple[int, int], int] = {}
        self._torn: set[int] = set()
        self.relayed = 0
        self.is_calm = False
        """Nothing changes any more: from here on a frame that passes a host twice is a violation. While the graphs of
        relays differ, one may wander as long as its hops last."""
        self.on_traffic: Callable[[Host], None] = lambda host: None

    def broadcast(self, host: Host) -> int:
        """A container of ``host`` sends one. Returns its number."""
        self._count += 1
        frame = self._count
        self._arrived[frame, host.index] = 1
        if host.is_torn:
            self._torn.add(frame)
        flooded = {peer.host for peer in host.plane if peer.vxlan is VxlanUse.CARRIES}  # by address, as the kernel's
        for towards in sorted(flooded):
            self._send_by_vxlan(host, towards, frame)
        if host.worker is not None and host.worker.is_running:
            host.worker.send_group(frame)
        self.on_traffic(host)
        return frame

    def _send_by_vxlan(self, host: Host, towards: str, frame: int) -> None:
        target = next((each for each in self._hosts if each.host == towards), None)
        if target is not None:
            source, there = host.kernel_peer, target
            port = self._underlay.vxlan_passes(host, there)
            if port:
                self._underlay.carry(port, host.index, there.index, lambda: self._by_vxlan(source, there, frame))

    def _by_vxlan(self, source: PeerId, target: Host, frame: int) -> None:
        if any(peer.peer == source and peer.vxlan is not VxlanUse.CLOSED for peer in target.plane):
            self._arrive(target.index, frame)

    def by_sleeve(self, index: int, frame: int, trail: tuple[int, ...]) -> None:
        """At host ``index``, by way of the hosts in ``trail``."""
        if self.is_calm and len(set(trail)) != len(trail):
            raise Violation("loop", f"frame {frame} went {' '.join(f'h{each}' for each in trail)}")
        self.relayed += len(trail) > 2
        self._arrive(index, frame)

    def _arrive(self, index: int, frame: int) -> None:
        if (frame, index) in self._arrived and frame not in self._torn:
            raise Violation("duplicate", f"frame {frame} arrived twice at h{index}")
        self._arrived[frame, index] = 1

    def missing(self, frame: int) -> list[str]:
        """Hosts that ``frame`` has not come to."""
        return [host.label for host in self._hosts if (frame, host.index) not in self._arrived]
