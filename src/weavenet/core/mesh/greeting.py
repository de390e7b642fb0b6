"""The hello: what we say, and whether what they say is acceptable.

Checks in order: protocol versions overlap, the hello is of the certificate's owner, it is not ourselves, there is room;
the admission of the cluster follows. Every refusal says what was expected, what was found and what to do.
"""

from __future__ import annotations

from weavenet.core.config import NodeConfig
from weavenet.core.errors import RefusalCode
from weavenet.core.incarnation import start_number
from weavenet.core.limits import PROTOCOL_MAX, PROTOCOL_MIN, VXLAN_PORT
from weavenet.core.mesh.links import Link, Links
from weavenet.core.mesh.records import Records
from weavenet.core.mesh.room import Room
from weavenet.core.mesh.shared import Shared
from weavenet.core.messages.gossip import Mark
from weavenet.core.messages.link import Hello, PlaneOffer, Refusal
from weavenet.core.ranges import ranges_problem
from weavenet.core.types import peer_text, plane_mac

_PLANE_PORTS = {"fastdp": VXLAN_PORT}


def own_hello(config: NodeConfig, shared: Shared, incarnation: int, link: Link, known: Mark) -> Hello:
    """What we say on ``link``; ``known`` is our mark of the peer's records."""
    fields = shared.hello()
    mac = plane_mac(config.peer)
    return Hello(
        protocol_min=PROTOCOL_MIN,
        protocol_max=PROTOCOL_MAX,
        features=(),
        software=config.software,
        peer=config.peer,
        name=config.name,
        nickname=config.nickname,
        incarnation=incarnation,
        cluster=fields.cluster,
        ranges=fields.ranges,
        range_explicit=fields.range_explicit,
        singleton=fields.singleton,
        seeds=fields.seeds,
        elector=fields.elector,
        settled_n=fields.settled_n,
        port=config.port,
        link_nonce=link.nonce,
        planes=tuple(PlaneOffer(kind, _PLANE_PORTS.get(kind, 0), mac) for kind in config.planes),
        known=(known.incarnation, known.top),
        observed_host=link.host,
        epoch=fields.epoch[0],
        epoch_id=fields.epoch[1],
        peers=fields.peers,
        electors=fields.electors,
        addresses=fields.addresses,
    )


def judge(config: NodeConfig, links: Links, room: Room, link: Link, hello: Hello) -> Refusal | None:
    """None when ``hello`` is acceptable on ``link`` as far as the mesh can tell; the cluster's admission comes next."""
    if hello.protocol_min > PROTOCOL_MAX or hello.protocol_max < PROTOCOL_MIN:
        return Refusal(
            RefusalCode.PROTOCOL,
            f"expected link protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}, found {hello.protocol_min} to "
            f"{hello.protocol_max} (software {hello.software}); next: upgrade the older of the two",
        )
    if hello.peer != link.peer or hello.name != link.name:
        return Refusal(
            RefusalCode.IDENTITY,
            f"expected peer {peer_text(link.peer)} ({link.name}) as in the certificate, found "
            f"{peer_text(hello.peer)} ({hello.name}); next: restart that peer, its name may have just changed",
        )
    if problem := ranges_problem(hello.ranges):
        return Refusal(
            RefusalCode.MALFORMED,
            f"expected address ranges such as 10.32.0.0/12 in a hello, found: {problem[:200]}; "
            "next: launch that peer with a correct --ipalloc-range",
        )
    if hello.peer == config.peer:
        return Refusal(RefusalCode.SELF, "this is ourselves; nothing to do")
    held = links.by_peer.get(hello.peer)
    if held is None and not room.is_for(hello.peer):
        return Refusal(
            RefusalCode.TOO_MANY,
            f"expected at most {config.conn_limit} links, found all in use on {config.nickname or config.name}; "
            "next: launch it with a higher --conn-limit, or connect to another peer",
        )
    if held is not None and held.incarnation > hello.incarnation:
        return Refusal(
            RefusalCode.DUPLICATE,
            f"expected a start of that peer not before {held.incarnation}, found {hello.incarnation}: a later start "
            "of it is connected; nothing to do unless its disk was copied to a second host",
        )
    return None


def outlived(records: Records) -> str:
    """Why we may not go on under our key: others know a later life of it. Empty while nobody does."""
    if not any(records.outlived):
        return ""
    return (
        f"others know another start {start_number(records.outlived[0])} of {peer_text(records.own)}, which this disk "
        "has not seen: it was set back to an earlier state, or a copy of it runs on another host; its space stays with "
        f"that identity until `weave rmpeer {peer_text(records.own)}`"
    )
