"""Who we are: the identity key and the peer name, from the store, from what was given, or made on first start.

Both live in table ``runtime`` of the store and are durable before anything is sent. The name is a label; the key makes
the PeerId. Everything of the host is read below ``root``, so that tests bring their own.

A key that was made on another machine is not used (:func:`foreign`): the disk was copied, and two hosts with one
identity would hand out the same addresses.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from weavenet.core.effects import Change
from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.runtime.certificates import Issued, Order
from weavenet.runtime.fingerprint import (
    UUIDS_OF_NOBODY,
    decode_fingerprint,
    encode_fingerprint,
    read_fingerprint,
    read_text,
)
from weavenet.runtime.settings import NameFrom, Settings, peer_name
from weavenet.runtime.store import Rows, Store

TABLE = "runtime"
SEED, NAME, _FINGERPRINT = b"identity-seed", b"peer-name", b"fingerprint"


def choose_name(settings: Settings, rows: Rows, root: Path = Path("/")) -> str:
    """Given, else persisted, else derived as ``name_from`` says."""
    if settings.name:
        return peer_name(settings.name)
    if persisted := rows.get((TABLE, NAME)):
        return peer_name(persisted.decode(errors="replace"))
    match settings.name_from:
        case NameFrom.HOSTNAME:
            import socket

            return _name_of("hostname", socket.getfqdn())
        case NameFrom.RANDOM:
            return _name_of("random", os.urandom(16).hex())
        case NameFrom.MACHINE_ID:
            machine = read_text(root / "etc/machine-id")
            if not machine:
                return _name_of("random", os.urandom(16).hex())
            uuid = read_text(root / "sys/class/dmi/id/product_uuid")
            return _name_of("machine-id", machine, "" if uuid in UUIDS_OF_NOBODY else uuid)


def _name_of(*inputs: str) -> str:
    """48 bits of a hash, as a locally administered unicast MAC. machine-id(5) asks that it is never shown itself."""
    digest = hashlib.sha256("\0".join(("weave-peer-name", *inputs)).encode()).digest()
    return ":".join(f"{octet:02x}" for octet in bytes([(digest[0] & 0xFC) | 0x02]) + digest[1:6])


def foreign(rows: Rows, root: Path = Path("/")) -> str:
    """Why the key in ``rows`` is not this machine's, in words; empty when it is, or when there is none."""
    row = rows.get((TABLE, _FINGERPRINT))
    made_on = decode_fingerprint(row) if row is not None and (TABLE, SEED) in rows else None
    differences = made_on.differences(read_fingerprint(root)) if made_on is not None else ()
    if not differences:
        return ""
    return (
        f"the disk comes from another machine (other {', '.join(differences)}), so this host starts with a new "
        "identity: peer name, targets and attachments stay, addresses are claimed anew; if it is the same machine, "
        "launch with --assume-identity next time, and free the former identity's space with `weave rmpeer`"
    )


def order(settings: Settings, rows: Rows, name: str) -> Order:
    """What the certificate child is asked for."""
    return Order(rows.get((TABLE, SEED), b""), name, settings.passwords)


def remember(store: Store, rows: Rows, issued: Issued, name: str, root: Path = Path("/")) -> None:
    """Make key, name and fingerprint durable if they are new; blocks. Raises WeaveError when the disk now holds
    another key."""
    found = rows.get((TABLE, SEED))
    if found is not None and found != issued.identity_seed:
        raise WeaveError(
            Failure(
                Code.STORE_FAILED,
                "expected the identity key that this daemon started with",
                f"{store.path} holds another one: it was replaced while the daemon ran",
                "stop the daemon, put the right store back, and launch again",
            )
        )
    wanted = {(TABLE, SEED): issued.identity_seed, (TABLE, NAME): name.encode()}
    wanted[TABLE, _FINGERPRINT] = encode_fingerprint(read_fingerprint(root))
    changes = [Change(table, key, value) for (table, key), value in wanted.items() if rows.get((table, key)) != value]
    if changes:
        store.write_now(changes)


def forgotten(rows: Rows) -> tuple[Change, ...]:
    """The row changes that end this identity; the name stays."""
    return (Change(TABLE, SEED, None),) if (TABLE, SEED) in rows else ()


def node_rows(rows: Rows) -> Rows:
    """What belongs to the node: everything but the secrets kept here."""
    return {place: value for place, value in rows.items() if place[0] != TABLE}


class Me(msgspec.Struct, frozen=True):
    """What is settled before the node starts. ``issued`` holds secrets."""

    name: str
    nickname: str
    issued: Issued
