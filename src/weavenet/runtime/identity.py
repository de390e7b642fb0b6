"""Who we are: the identity key and the peer name, from the store, from what was given, or made on first start.

Both live in table ``runtime`` of the store and are durable before anything is sent. The name is a label; the key makes
the PeerId. Everything of the host is read below ``root``, so that tests bring their own.

Does not notice a copied disk: that needs a fingerprint of the host beside the key.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from weavenet.core.effects import Change
from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.runtime.certificates import Issued, Order
from weavenet.runtime.settings import NameFrom, Settings, peer_name
from weavenet.runtime.store import Rows, Store

TABLE = "runtime"
_SEED, _NAME = b"identity-seed", b"peer-name"
_UUIDS_OF_NOBODY = frozenset({"", "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"})
"""What firmware shows when its maker did not care."""


def choose_name(settings: Settings, rows: Rows, root: Path = Path("/")) -> str:
    """Given, else persisted, else derived as ``name_from`` says."""
    if settings.name:
        return peer_name(settings.name)
    if persisted := rows.get((TABLE, _NAME)):
        return peer_name(persisted.decode(errors="replace"))
    match settings.name_from:
        case NameFrom.HOSTNAME:
            import socket

            return _name_of("hostname", socket.getfqdn())
        case NameFrom.RANDOM:
            return _name_of("random", os.urandom(16).hex())
        case NameFrom.MACHINE_ID:
            machine = _read(root / "etc/machine-id")
            if not machine:
                return _name_of("random", os.urandom(16).hex())
            uuid = _read(root / "sys/class/dmi/id/product_uuid")
            return _name_of("machine-id", machine, "" if uuid in _UUIDS_OF_NOBODY else uuid)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip().lower()
    except OSError:
        return ""


def _name_of(*inputs: str) -> str:
    """48 bits of a hash, as a locally administered unicast MAC. machine-id(5) asks that it is never shown itself."""
    digest = hashlib.sha256("\0".join(("weave-peer-name", *inputs)).encode()).digest()
    return ":".join(f"{octet:02x}" for octet in bytes([(digest[0] & 0xFC) | 0x02]) + digest[1:6])


def order(settings: Settings, rows: Rows, name: str) -> Order:
    """What the certificate child is asked for."""
    return Order(rows.get((TABLE, _SEED), b""), name, settings.passwords)


def remember(store: Store, rows: Rows, issued: Issued, name: str) -> None:
    """Make key and name durable if they are new; blocks. Raises WeaveError when the disk now holds another key."""
    found = rows.get((TABLE, _SEED))
    if found is not None and found != issued.identity_seed:
        raise WeaveError(
            Failure(
                Code.STORE_FAILED,
                "expected the identity key that this daemon started with",
                f"{store.path} holds another one: it was replaced while the daemon ran",
                "stop the daemon, put the right store back, and launch again",
            )
        )
    wanted = {(TABLE, _SEED): issued.identity_seed, (TABLE, _NAME): name.encode()}
    changes = [Change(table, key, value) for (table, key), value in wanted.items() if rows.get((table, key)) != value]
    if changes:
        store.write_now(changes)


def forgotten(rows: Rows) -> tuple[Change, ...]:
    """The row changes that end this identity; the name stays."""
    return (Change(TABLE, _SEED, None),) if (TABLE, _SEED) in rows else ()


def node_rows(rows: Rows) -> Rows:
    """What belongs to the node: everything but the secrets kept here."""
    return {place: value for place, value in rows.items() if place[0] != TABLE}


class Me(msgspec.Struct, frozen=True):
    """What is settled before the node starts. ``issued`` holds secrets."""

    name: str
    nickname: str
    issued: Issued
