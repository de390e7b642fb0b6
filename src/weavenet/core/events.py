"""What happens to a node. Time comes beside each event as ``now`` (seconds, monotonic); there is no other clock."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from weavenet.core.commands import Command
from weavenet.core.errors import RefusalCode
from weavenet.core.messages import Message
from weavenet.core.overlay.sleeve import SleeveStatus
from weavenet.core.types import PeerId


class Tick(msgspec.Struct, frozen=True):
    """The deadline that the node asked for (or a later time) has come."""


class Resolved(msgspec.Struct, frozen=True):
    """Outcome of ``Resolve``: (host, port) pairs with numeric hosts, or the resolver's sentence in ``error``."""

    target: str
    addresses: tuple[tuple[str, int], ...]
    error: str = ""


class RecordOffered(msgspec.Struct, frozen=True):
    """Outcome of ``OfferRecord``: the record that the lock keeps (the first one ever offered), empty when it has none,
    or a sentence with the next step in ``error`` when it could not be asked; the offer may have counted all the
    same."""

    record: bytes
    error: str = ""


class DialOutcome(StrEnum):
    """How a dial failed."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    PASSWORD = "password"
    SELF = "self"
    TLS = "tls"


class DialFailed(msgspec.Struct, frozen=True):
    dial: int
    outcome: DialOutcome
    sentence: str


class LinkOpened(msgspec.Struct, frozen=True):
    """TLS is done and the peer's certificate is verified; hellos come next. ``dial`` is None for inbound links.
    ``password_line``: 1-based line of our password file that signed the peer's certificate, 0 without a password."""

    link: int
    dial: int | None
    peer: PeerId
    name: str
    host: str
    port: int
    password_line: int = 0


class LinkClosed(msgspec.Struct, frozen=True):
    link: int
    code: RefusalCode | None
    sentence: str


class InboundFailed(msgspec.Struct, frozen=True):
    """Somebody connected to us and was not accepted (wrong password, garbage, too slow); for ``status connections``."""

    host: str
    port: int
    code: RefusalCode
    sentence: str


class Received(msgspec.Struct, frozen=True):
    link: int
    message: Message


class Requested(msgspec.Struct, frozen=True):
    """A command of the control API; answered by exactly one ``Reply`` unless cancelled."""

    request: int
    command: Command


class Cancelled(msgspec.Struct, frozen=True):
    """The client of ``request`` went away."""

    request: int


class ProbeReceived(msgspec.Struct, frozen=True):
    """A heartbeat frame came in on the data path from the plane MAC ``mac``."""

    mac: bytes
    nonce: int
    is_answer: bool


class PlaneTraffic(msgspec.Struct, frozen=True):
    """Frames flowed on the data path since the last such event (driver polls device counters every second)."""


class WireguardReported(msgspec.Struct, frozen=True):
    """Public keys of this host's WireGuard device, the one in use first, and its UDP port; no keys: there is none."""

    keys: tuple[bytes, ...]
    port: int


class SleeveReported(msgspec.Struct, frozen=True):
    """What the sleeve worker last said of itself; None: no worker runs now."""

    status: SleeveStatus | None


Event = (
    Tick
    | Resolved
    | RecordOffered
    | DialFailed
    | LinkOpened
    | LinkClosed
    | InboundFailed
    | Received
    | Requested
    | Cancelled
    | ProbeReceived
    | PlaneTraffic
    | SleeveReported
    | WireguardReported
)
