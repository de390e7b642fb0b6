"""Links: their life cycle as one transition table, and which of them stands for a peer.

A link opens with its certificate verified. Both sides send ``Hello`` at once. Ours accepted theirs: AGREED, and we say
so with a first heartbeat; anything but a refusal from them shows that they accepted ours: ESTABLISHED. So a link that
one side refuses never carries state. Of several established links to one peer the one with the lowest XOR of both
nonces stays; both sides know both numbers and need not talk about it.

Invariant: at most one established link per peer. Does not send.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from weavenet.core.errors import InvariantBroken, RefusalCode
from weavenet.core.limits import HEARTBEAT_BUSY_S, HEARTBEAT_MISSES, SILENCE_MAX_S
from weavenet.core.messages.link import Digest, Hello
from weavenet.core.types import PeerId


class LinkState(StrEnum):
    """GREETING: our hello is on its way, theirs awaited. AGREED: we accepted theirs. CLOSING: the driver was told to
    close, or the peer said it does."""

    GREETING = "greeting"
    AGREED = "agreed"
    ESTABLISHED = "established"
    CLOSING = "closing"


class LinkStep(StrEnum):
    ACCEPT = "accept"
    CONFIRM = "confirm"
    CLOSE = "close"


TRANSITIONS: dict[tuple[LinkState, LinkStep], LinkState] = {
    (LinkState.GREETING, LinkStep.ACCEPT): LinkState.AGREED,
    (LinkState.GREETING, LinkStep.CLOSE): LinkState.CLOSING,
    (LinkState.AGREED, LinkStep.CONFIRM): LinkState.ESTABLISHED,
    (LinkState.AGREED, LinkStep.CLOSE): LinkState.CLOSING,
    (LinkState.ESTABLISHED, LinkStep.CLOSE): LinkState.CLOSING,
}


class Gossip(msgspec.Struct):
    """How the replicated state stands with the peer of a link. ``eager``: changes are pushed at once; else announced.
    ``has_agreed``: both were equal once. ``theirs``, ``sent``: last digest received and sent. ``tries``: how often we
    still start a repair of the difference to ``theirs``, which showed, or was repaired, at ``differs_since``.
    ``is_feeding``: its last answer taught us something. Times in seconds of ``now``."""

    eager: bool = False
    announce: bool = False
    has_agreed: bool = False
    theirs: Digest | None = None
    sent: Digest | None = None
    sent_at: float = 0.0
    tries: int = 0
    differs_since: float | None = None
    is_feeding: bool = False
    repair_after: float = 0.0
    pruned_at: float = float("-inf")


class Link(msgspec.Struct):
    """One connection. ``host``:``port`` is the remote end as seen here; for an outbound link what was dialled.
    ``nonce`` is ours. ``cluster``: whose record they pushed. ``code`` and ``info`` say why it is closing."""

    id: int
    peer: PeerId
    name: str
    host: str
    port: int
    dial: int | None
    nonce: int
    opened_at: float
    heard_at: float
    gossip: Gossip
    password_line: int = 0
    state: LinkState = LinkState.GREETING
    hello: Hello | None = None
    established_at: float | None = None
    cluster: bytes = b""
    code: RefusalCode | None = None
    info: str = ""
    interval_s: float = HEARTBEAT_BUSY_S
    beat_at: float = 0.0
    used_at: float = 0.0
    grace_until: float = 0.0
    echo: tuple[int, float] | None = None
    rtt_s: float | None = None

    @property
    def outbound(self) -> bool:
        return self.dial is not None

    @property
    def is_established(self) -> bool:
        return self.state is LinkState.ESTABLISHED

    @property
    def title(self) -> str:
        """For people: the nickname, once the peer has said it, and the remote end."""
        nickname = "" if self.hello is None else self.hello.nickname
        return f"{nickname} at {self.host}:{self.port}" if nickname else f"{self.host}:{self.port}"

    @property
    def listening(self) -> tuple[str, int]:
        """Where others reach the peer, as far as this link shows."""
        if self.outbound or self.hello is None:
            return self.host, self.port
        return self.host, self.hello.port

    @property
    def incarnation(self) -> int:
        return 0 if self.hello is None else self.hello.incarnation

    @property
    def rank(self) -> int:
        """The lowest of two links between the same two processes survives."""
        return self.nonce ^ (0 if self.hello is None else self.hello.link_nonce)

    def step(self, step: LinkStep) -> None:
        """Raises InvariantBroken for a step that the state does not know."""
        after = TRANSITIONS.get((self.state, step))
        if after is None:
            raise InvariantBroken(f"link {self.id} is {self.state} and cannot {step}")
        self.state = after

    def silent_at(self) -> float:
        """When this link counts as dead unless something is heard."""
        patience_s = min(HEARTBEAT_MISSES * self.interval_s, SILENCE_MAX_S)
        return max(self.heard_at + patience_s, self.grace_until)


class Links:
    """All links by id, and the established one per peer."""

    def __init__(self) -> None:
        self.by_id: dict[int, Link] = {}
        self.by_peer: dict[PeerId, Link] = {}

    def established(self) -> list[Link]:
        return list(self.by_peer.values())

    def of_peer(self, peer: PeerId, state: LinkState) -> list[Link]:
        return [link for link in self.by_id.values() if link.peer == peer and link.state is state]

    def check(self) -> None:
        """Raises InvariantBroken."""
        established = {link.id for link in self.by_id.values() if link.is_established}
        if established != {link.id for link in self.by_peer.values()}:
            raise InvariantBroken("not exactly one established link per peer")
        for peer, link in self.by_peer.items():
            if link.peer != peer or self.by_id.get(link.id) is not link:
                raise InvariantBroken(f"link {link.id} is filed under {peer.hex()}")
            if link.hello is None or link.established_at is None:
                raise InvariantBroken(f"link {link.id} is established without a hello")
