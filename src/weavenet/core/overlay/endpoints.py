"""What is attached to this host's bridge, remembered, and told to the others as endpoint records.

An attachment is kept across restarts of daemon and host; its MAC and addresses are announced while its interface is
live. A restarted daemon announces what was live when it stopped, so the others never see it empty. An address that is
blocked here is not announced: others would answer for it in our container's name, and not find who has it now.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from weavenet.core.commands import Attachment
from weavenet.core.effects import Change, Outbox
from weavenet.core.limits import DEAD_KEEP_S
from weavenet.core.messages.gossip import KIND_ENDPOINT, EndpointRecord
from weavenet.core.types import without_prefix

TABLE = "attachments"


def is_named(container: str) -> bool:
    """``netns:NAME``, which can be met again under its name, unlike a path or a process."""
    return container.startswith("netns:") and not container.startswith("netns:/")


class Publisher(Protocol):
    def publish(self, now: float, kind: int, key: bytes, body: bytes) -> None: ...
    def withdraw(self, now: float, kind: int, key: bytes) -> None: ...


class Endpoints:
    def __init__(self, rows: Iterable[tuple[bytes, bytes]], outbox: Outbox, publisher: Publisher) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._attachments: dict[str, Attachment] = {
            key.decode(): msgspec.msgpack.decode(value, type=Attachment) for key, value in rows
        }
        self._dead_until: dict[str, float] = {}
        self._blocked: frozenset[tuple[str, str]] = frozenset()
        self.changed: set[str] = set()
        """Idents whose attachment, or what can be reached of it, differs since somebody emptied it."""

    @property
    def any_live(self) -> bool:
        return any(attachment.live for attachment in self._attachments.values())

    def start(self, now: float) -> None:
        for attachment in self._attachments.values():
            self._announce(now, attachment)

    def set_blocked(self, now: float, blocked: Iterable[tuple[str, str]]) -> None:
        """``blocked``: (ident, address without prefix)."""
        before, self._blocked = self._blocked, frozenset(blocked)
        for ident in sorted({ident for ident, _ in before ^ self._blocked} & self._attachments.keys()):
            self._announce(now, self._attachments[ident])
        self.changed.update(ident for ident, _ in before ^ self._blocked)

    def get(self, ident: str) -> Attachment | None:
        return self._attachments.get(ident)

    def is_blocked(self, ident: str, address: str) -> bool:
        """``address`` without prefix."""
        return (ident, address) in self._blocked

    def shown(self, ident: str) -> tuple[str, ...]:
        """Addresses (CIDR text) under which ``ident`` can be met now: none while it is dead."""
        attachment = self._attachments.get(ident)
        if attachment is None or not attachment.live or ident in self._dead_until:
            return ()
        return self._unblocked(attachment)

    def _unblocked(self, attachment: Attachment) -> tuple[str, ...]:
        return tuple(
            text for text in attachment.addresses if not self.is_blocked(attachment.ident, without_prefix(text))
        )

    def deadline(self) -> float | None:
        return min(self._dead_until.values()) if self._dead_until else None

    def tick(self, now: float) -> None:
        for ident in [ident for ident, until in self._dead_until.items() if now >= until]:
            self.remove(now, ident)

    def died(self, now: float, ident: str) -> None:
        """Its process is gone: forget the attachment unless it revives while its addresses are kept. A named namespace
        may come back at any time, so what was asked for it is kept."""
        attachment = self._attachments.get(ident)
        if attachment is not None and not is_named(attachment.container):
            self._dead_until[ident] = now + DEAD_KEEP_S
            self.changed.add(ident)

    def revived(self, ident: str) -> None:
        self._dead_until.pop(ident, None)
        self.changed.add(ident)

    def all(self) -> tuple[Attachment, ...]:
        return tuple(self._attachments[ident] for ident in sorted(self._attachments))

    def put(self, now: float, attachment: Attachment) -> None:
        if self._attachments.get(attachment.ident) == attachment:
            return
        self._attachments[attachment.ident] = attachment
        self.changed.add(attachment.ident)
        if attachment.live:
            self._dead_until.pop(attachment.ident, None)
        self._outbox.persist(Change(TABLE, attachment.ident.encode(), msgspec.msgpack.encode(attachment)))
        self._announce(now, attachment)

    def clear(self, now: float) -> None:
        """Nothing is attached any more, and nothing remembered."""
        for ident in sorted(self._attachments):
            self.remove(now, ident)

    def remove(self, now: float, ident: str) -> None:
        self._dead_until.pop(ident, None)
        self.changed.add(ident)
        if self._attachments.pop(ident, None) is not None:
            self._outbox.persist(Change(TABLE, ident.encode(), None))
            self._publisher.withdraw(now, KIND_ENDPOINT, ident.encode())

    def _announce(self, now: float, attachment: Attachment) -> None:
        key = attachment.ident.encode()
        if attachment.live and attachment.mac:
            record = EndpointRecord(attachment.ident, attachment.mac, self._unblocked(attachment))
            self._publisher.publish(now, KIND_ENDPOINT, key, msgspec.msgpack.encode(record))
        else:
            self._publisher.withdraw(now, KIND_ENDPOINT, key)
