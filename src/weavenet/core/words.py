"""How names and times are written for people, everywhere the same."""

from __future__ import annotations

from weavenet.core.types import Electors, LogEntry, Remove


def titled(name: str, nickname: str) -> str:
    """``0a:…:01(h1)``, as the original names peers."""
    return f"{name}({nickname})" if nickname else name


def duration(seconds: float) -> str:
    """``42s``, ``7m 3s``, ``5h 12m``, ``3d 4h``."""
    if 0 < seconds < 1:
        return "1s"
    whole = int(seconds)
    for size, unit, smaller, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // smaller}{small_unit}"
    return f"{whole}s"


def absence(seconds: float, *, is_known: bool) -> str:
    """``is_known``: it was heard of since this daemon started, hence for that long not."""
    if is_known:
        return f"last seen {duration(seconds)} ago"
    return f"not seen since this daemon started {duration(seconds)} ago"


def decree_words(entry: LogEntry) -> str:
    """What was decided."""
    match entry.decree:
        case Electors(electors=electors):
            return f"{len(electors)} electors"
        case Remove(removed=removed, heir=heir):
            return f"{', '.join(peer.hex()[:12] for peer in removed)} removed, heir {heir.hex()[:12]}"
        case _:
            return "genesis"
