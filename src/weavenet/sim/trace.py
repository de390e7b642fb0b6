"""One line per event: virtual time, host, what came in or went out.

Short enough to read, complete enough to argue from.

Equal histories give equal bytes: nothing here prints an object's address, a set or a real time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from weavenet.core.effects import Effect, Persist, Reply, Send, SetBlocked, SetPlane
from weavenet.core.events import Event, Received, Requested
from weavenet.core.messages import decode_body
from weavenet.core.messages.unicast import Routed

TAIL_LINES = 400
_TEXT_MAX = 220


def shorten(value: object) -> str:
    """Compact text of a value: type names, 6 hex digits of ids, nested structs as tuples."""
    if isinstance(value, bytes):
        return value[:3].hex() if len(value) <= 32 else f"{len(value)}B"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, Routed):
        return f"Routed({shorten(value.source)}>{shorten(value.destination)} {shorten(decode_body(value.body))})"
    if isinstance(value, msgspec.Struct):
        fields = (shorten(getattr(value, field)) for field in value.__struct_fields__)
        return f"{type(value).__name__}({' '.join(fields)})"
    if isinstance(value, tuple | list):
        return "[" + " ".join(map(shorten, value)) + "]"
    return str(value)


def event_text(event: Event) -> str:
    match event:
        case Received():
            return f"<- {event.link} {shorten(event.message)}"
        case Requested():
            return f"request {event.request} {shorten(event.command)}"
        case _:
            return shorten(event)


def effect_text(effect: Effect) -> str:
    match effect:
        case Persist():
            rows = (f"{change.table}/{shorten(change.key)}{'' if change.value else '-'}" for change in effect.changes)
            return "persist " + " ".join(rows)
        case Send():
            return f"-> {effect.link} {shorten(effect.message)}"
        case Reply():
            return f"reply {effect.request} {shorten(effect.result)}"
        case SetPlane():
            return "plane " + " ".join(shorten(peer.peer) for peer in effect.peers)
        case SetBlocked():
            return "blocked " + " ".join(f"{ident}={address}" for ident, address in effect.blocked)
        case _:
            return shorten(effect)


class Trace:
    """Collects lines; keeps all of them, or only the last ``keep``."""

    def __init__(self, keep: int | None = TAIL_LINES) -> None:
        self.lines: deque[str] = deque(maxlen=keep)

    def add(self, now: float, who: str, text: str) -> None:
        if len(text) > _TEXT_MAX:
            text = text[:_TEXT_MAX] + "…"
        self.lines.append(f"{now:11.6f} {who:<4} {text}")

    def tail(self, count: int) -> Iterable[str]:
        return list(self.lines)[max(0, len(self.lines) - count) :]
