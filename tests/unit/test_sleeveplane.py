"""What the sleeve worker is told, and what is published of what it says."""

from __future__ import annotations

import msgspec

from weavenet.core.config import NodeConfig
from weavenet.core.effects import Outbox
from weavenet.core.limits import SLEEVE_PROOF_S
from weavenet.core.messages.gossip import KIND_SLEEVE_PATH
from weavenet.core.overlay.openplanes import OpenPlane, OpenPlanes
from weavenet.core.overlay.paths import PathState
from weavenet.core.overlay.planes import SLEEVE
from weavenet.core.overlay.sleeve import (
    SleeveEndpoint,
    SleeveKey,
    SleevePath,
    SleevePeer,
    SleeveRecord,
    SleeveStatus,
)
from weavenet.core.overlay.sleeveplane import SleevePlane
from weavenet.core.types import PeerId

ME, OTHER = PeerId(b"m" * 16), PeerId(b"o" * 16)
HOST = "192.0.2.2"
KEY = SleeveKey(1, bytes(32))
WORKS = SleevePath(OTHER, True, SleeveEndpoint(HOST, 6783), 0.01, 0.0, 1472, 0, 0, 0, 0)
FAILS = SleevePath(OTHER, False, None, None, 0.0, 1232, 0, 0, 0, 0)


class FakeMesh:
    """A link to OTHER, of which nothing but its open path is known. ``said``: kinds of what was published."""

    def __init__(self) -> None:
        self.said: list[int] = []

    def reachable(self) -> frozenset[PeerId]:
        return frozenset((ME, OTHER))

    def established_peers(self) -> frozenset[PeerId]:
        return frozenset((OTHER,))

    def neighbours(self, peer: PeerId) -> list[PeerId]:
        return []

    def hosts_of(self, peer: PeerId) -> tuple[str, ...]:
        return (HOST,)

    def records_of(self, origin: PeerId, kind: int) -> list[bytes]:
        return []

    def publish(self, now: float, kind: int, key: bytes, body: bytes) -> None:
        self.said.append(kind)

    def withdraw(self, now: float, kind: int, key: bytes) -> None: ...


class Bench:
    """One open path, to OTHER, on sleeve."""

    def __init__(self) -> None:
        row = OpenPlane(
            HOST,
            ((b"\x02other", ("10.32.0.2/12",)),),
            plane=SLEEVE,
            is_vxlan_allowed=False,
            sleeve=SleeveRecord((KEY,), 6783),
        )
        config = NodeConfig(peer=ME, name="::1", nickname="me", ranges=(), planes=("fastdp", SLEEVE))
        self.mesh = FakeMesh()
        self.planes = OpenPlanes([(OTHER, msgspec.msgpack.encode(row))], Outbox())
        self.sleeve = SleevePlane(config=config, mesh=self.mesh, planes=self.planes)
        self._told: tuple[SleevePeer, ...] = ()

    def report(self, now: float, process: bytes | None, *paths: SleevePath) -> None:
        status = None if process is None else SleeveStatus(process, 6783, (KEY,), paths, (), {})
        self.sleeve.publish(now, self.sleeve.reported(now, status))

    def told(self, now: float) -> SleevePeer:
        """What the worker knows of OTHER when it has heard the newest."""
        desired = self.sleeve.desired(now, (), rows_changed=True, busy=True)
        self._told = self._told if desired is None else desired.peers
        return self._told[0]


def test_without_a_lease_the_worker_forwards_nothing() -> None:
    bench = Bench()
    before = bench.told(0.0)
    assert before.is_open and before.carries and before.takes_groups
    bench.planes.shut(True)
    shut = bench.told(1.0)
    assert not shut.is_open and not shut.carries and not shut.takes_groups
    bench.planes.shut(False)
    assert bench.told(2.0) == before


def test_a_new_worker_has_the_time_to_show_what_works() -> None:
    """Nobody hears that a link carries no datagrams because the worker was started again."""
    bench = Bench()
    bench.told(0.0)
    bench.report(0.5, b"process1", WORKS)
    bench.report(100.0, None)
    bench.report(100.3, b"process2")
    bench.report(100.4, b"process2", FAILS)
    assert bench.sleeve.state(100.4, OTHER) is PathState.UNPROVEN
    assert KIND_SLEEVE_PATH not in bench.mesh.said
    bench.report(100.5 + SLEEVE_PROOF_S, b"process2", FAILS)
    assert bench.sleeve.state(100.5 + SLEEVE_PROOF_S, OTHER) is PathState.BROKEN
    assert bench.mesh.said.count(KIND_SLEEVE_PATH) == 1
