"""Events that only the mesh or the heartbeats of data paths have to do with.

Most events of a cluster at rest are of this kind: signs of life, digests, what was known already. Where one of them
left nothing new for another part, the node need not ask all its parts what they make of it.
"""

from __future__ import annotations

from weavenet.core.events import Event, PlaneTraffic, ProbeReceived, Received, Tick
from weavenet.core.messages.gossip import Prune, Push, RecordBuckets, RecordMarks, RecordPull, RingBuckets
from weavenet.core.messages.link import Digest, Heartbeat
from weavenet.core.messages.unicast import Routed

_EVENTS = frozenset({Tick, ProbeReceived, PlaneTraffic})
_MESSAGES = frozenset({Heartbeat, Digest, Prune, RecordBuckets, RecordMarks, RecordPull, RingBuckets, Routed})
"""What they teach the mesh, it tells as a change; none of them carries ring or log."""


def may_be_quiet(event: Event) -> bool:
    """Whether ``event`` can have changed only what mesh and heartbeats keep to themselves, unless they say so."""
    if type(event) is not Received:
        return type(event) in _EVENTS
    message = event.message
    if type(message) is Push:
        return not message.log and not message.ring
    return type(message) in _MESSAGES
