"""Which plane a peer's frames leave over: the best one that works; else what may still work.

Each end chooses for what it sends, so the two ends may be on different planes for a moment; both accept from either.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from weavenet.core.overlay.paths import PathState
from weavenet.core.overlay.planes import PREFERENCE

Candidate = tuple[str, PathState]


def in_common(ours: Iterable[str], theirs: Iterable[str]) -> tuple[str, ...]:
    """Planes that both ends have, best first."""
    both = set(ours) & set(theirs)
    return tuple(plane for plane in PREFERENCE if plane in both)


def best(candidates: Sequence[Candidate], current: str) -> str:
    """The plane to use. ``candidates``: planes allowed for this peer, best first, at least one; ``current``: in use.

    Nothing is used because it is believed to work while another is known to. While none is known to, the best one that
    was not found broken is tried; when all are broken, whatever is in use stays.
    """
    for wanted in (PathState.WORKING, PathState.UNPROVEN):
        for plane, state in candidates:
            if state is wanted:
                return plane
    return current if any(plane == current for plane, _ in candidates) else candidates[0][0]


def covers(subnets: Iterable[str], host: str) -> bool:
    """Whether an address is within one of the subnets (CIDR text). What cannot be read covers nothing."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for text in subnets:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            continue
        if address in network:
            return True
    return False
