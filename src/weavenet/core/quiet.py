"""Events that only one part of a node has to do with: the mesh, the heartbeats of data paths, the addresses.

Most events of a cluster at rest are of this kind: signs of life, digests, what was known already; an address out of
this host's own space. Where one of them left nothing new for another part, the node need not ask all its parts what
they make of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from weavenet.core.commands import Allocate, Command, Explain, GetReport, ListAttachments, Lookup, LookupName
from weavenet.core.effects import Persist, Reply
from weavenet.core.events import Event, PlaneTraffic, ProbeReceived, Received, Tick
from weavenet.core.messages.gossip import Prune, Push, RecordBuckets, RecordMarks, RecordPull, RingBuckets
from weavenet.core.messages.link import Digest, Heartbeat
from weavenet.core.messages.unicast import Routed
from weavenet.core.ring.holdings import ALLOC_TABLE

_EVENTS = frozenset({Tick, ProbeReceived, PlaneTraffic})
_MESSAGES = frozenset({Heartbeat, Digest, Prune, RecordBuckets, RecordMarks, RecordPull, RingBuckets, Routed})
"""What they teach the mesh, it tells as a change; none of them carries ring or log."""
_COMMANDS = frozenset({Allocate, Lookup, ListAttachments, LookupName, GetReport, Explain})


def may_be_quiet(event: Event) -> bool:
    """Whether ``event`` can have changed only what mesh and heartbeats keep to themselves, unless they say so."""
    if type(event) is not Received:
        return type(event) in _EVENTS
    message = event.message
    if type(message) is Push:
        return not message.log and not message.ring
    return type(message) in _MESSAGES


def concerns_only_client(command: Command, effects: Iterable[object]) -> bool:
    """Whether ``command``, which caused ``effects``, was answered at once and changed at most which container uses what
    address of this host: a matter between its client and us."""
    if type(command) not in _COMMANDS:
        return False
    is_answered = False
    for effect in effects:
        if type(effect) is Reply:
            is_answered = True
        elif type(effect) is not Persist or any(change.table != ALLOC_TABLE for change in effect.changes):
            return False
    return is_answered
