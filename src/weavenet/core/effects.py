"""What a core wants done, in order.

**The one rule**: a ``Send``, ``Reply``, ``SetPlane``, ``SetSleeve``, ``SetBlocked``, ``SetNames``, ``Fence``,
``Vacate`` or ``Depart`` leaves only when every ``Persist`` emitted before it, by this or any earlier event of the node,
is durable. Persists may share one commit. Only a ``Send`` or ``Probe`` marked ``stateless`` passes ahead. A persist
that fails ends the node: the driver stops executing effects and restarts it from what is on disk.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from weavenet.core.commands import Result
from weavenet.core.errors import RefusalCode
from weavenet.core.messages import Body, Message
from weavenet.core.overlay.sleeve import SleeveDesired
from weavenet.core.overlay.wireguard import WireguardRecord
from weavenet.core.types import PeerId


class Change(msgspec.Struct, frozen=True):
    """Put ``value`` at (table, key), or delete it when ``value`` is None."""

    table: str
    key: bytes
    value: bytes | None


class Persist(msgspec.Struct, frozen=True):
    changes: tuple[Change, ...]


class Send(msgspec.Struct, frozen=True):
    link: int
    message: Message
    stateless: bool = False


class Reply(msgspec.Struct, frozen=True):
    request: int
    result: Result


class Resolve(msgspec.Struct, frozen=True):
    """Resolve ``target`` (``host[:port]``); the driver answers with a ``Resolved`` event, always."""

    target: str


class Dial(msgspec.Struct, frozen=True):
    """Open a connection; the driver answers with ``LinkOpened`` or ``DialFailed`` carrying ``dial``, always."""

    dial: int
    host: str
    port: int


class OfferRecord(msgspec.Struct, frozen=True):
    """Ask the lock at ``url`` (``file:``, ``http:``, ``https:``, ``etcd:``) to keep ``record`` if it has none yet;
    empty: only look. The driver answers with ``RecordOffered``, always, and keeps at most one under way."""

    url: str
    record: bytes


class WithdrawRecord(msgspec.Struct, frozen=True):
    """Ask the lock at ``url`` to forget ``record``, if that is still what it keeps. Answered and bounded like
    ``OfferRecord``: with what the lock keeps afterwards."""

    url: str
    record: bytes


class CloseLink(msgspec.Struct, frozen=True):
    """Flush what was sent, then close. The driver answers with ``LinkClosed``."""

    link: int
    code: RefusalCode
    sentence: str


class Endpoint(msgspec.Struct, frozen=True):
    """A remote container port: MAC and addresses (CIDR text)."""

    mac: bytes
    addresses: tuple[str, ...]


class VxlanUse(Enum):
    """CARRIES: frames to the peer leave over VXLAN. PROBED: only heartbeats do, frames take another plane. CLOSED:
    nothing is sent to it nor taken from it over VXLAN."""

    CARRIES = "carries"
    PROBED = "probed"
    CLOSED = "closed"


class PlanePeer(msgspec.Struct, frozen=True):
    """An open data path: the peer's underlay address, the MAC of its plane device, and what lives behind it.
    ``tunnel``: VXLAN goes through WireGuard to the device that has these keys; None: over the underlay, in clear."""

    peer: PeerId
    host: str
    mac: bytes
    endpoints: tuple[Endpoint, ...]
    vxlan: VxlanUse = VxlanUse.CARRIES
    tunnel: WireguardRecord | None = None


class SetPlane(msgspec.Struct, frozen=True):
    """The whole desired state of the data path; the plane diffs it with the kernel's."""

    peers: tuple[PlanePeer, ...]


class SetSleeve(msgspec.Struct, frozen=True):
    """The whole desired state of the sleeve worker. Only emitted when sleeve is among the planes of this peer."""

    desired: SleeveDesired


class SetBlocked(msgspec.Struct, frozen=True):
    """The whole set of (ident, address) whose frames this host's bridge drops at the container's port."""

    blocked: tuple[tuple[str, str], ...]


class NameRecord(msgspec.Struct, frozen=True):
    """What a name stands for. ``name``: absolute, with trailing dot, as it was entered; two names that differ only in
    case never both occur. ``addresses``: packed, 4 or 16 bytes each, ascending; of live and reachable entries only.
    Empty: the name is gone."""

    name: str
    addresses: tuple[bytes, ...]


class SetNames(msgspec.Struct, frozen=True):
    """Names to answer. ``whole``: these replace everything that was set before; else only what changed."""

    whole: bool
    names: tuple[NameRecord, ...]


class Probe(msgspec.Struct, frozen=True):
    """A heartbeat frame on the data path to ``mac``; always stateless."""

    peer: PeerId
    mac: bytes
    nonce: int
    is_answer: bool


class Note(msgspec.Struct, frozen=True):
    """A line for the log (and the simulator's trace). ``level``: debug, info, warning, error."""

    level: str
    topic: str
    text: str


class Fence(msgspec.Struct, frozen=True):
    """This peer was removed: end this life, give the disk to :func:`weavenet.core.removal.fence.fenced_disk`, make a
    new key, and start again as a newcomer. Nothing comes after it. ``reason``: a sentence for people."""

    reason: str


class Vacate(msgspec.Struct, frozen=True):
    """Take every container and this host itself off the network, whoever is being attached included, then send the
    command ``Vacated``. Doing it twice is harmless."""


class Depart(msgspec.Struct, frozen=True):
    """This peer has left: end this life, give the disk to :func:`weavenet.core.leaving.departed_disk`, remove whatever
    was made on this host, and end. Nothing comes after it. ``reason``: a sentence for people."""

    reason: str


class Unicast(msgspec.Struct, frozen=True):
    """Internal: the node lowers it to a ``Send`` of a ``Routed`` on the next hop, or drops it when there is none."""

    destination: PeerId
    body: Body


Effect = (
    Persist
    | Send
    | Reply
    | Resolve
    | OfferRecord
    | WithdrawRecord
    | Dial
    | CloseLink
    | SetPlane
    | SetSleeve
    | SetBlocked
    | SetNames
    | Probe
    | Note
    | Fence
    | Vacate
    | Depart
)
"""What a driver executes."""

Internal = Effect | Unicast
"""What sub-cores append to their :class:`Outbox`."""


class Outbox:
    """Ordered collector of effects, shared by the sub-cores of one node."""

    def __init__(self) -> None:
        self.effects: list[Internal] = []

    def append(self, effect: Internal) -> None:
        self.effects.append(effect)

    def persist(self, *changes: Change) -> None:
        if changes:
            self.effects.append(Persist(changes))

    def note(self, level: str, topic: str, text: str) -> None:
        self.effects.append(Note(level, topic, text))

    def unicast(self, destination: PeerId, body: Body) -> None:
        self.effects.append(Unicast(destination, body))

    def drain(self) -> list[Internal]:
        drained, self.effects = self.effects, []
        return drained
