"""Which machine this is, kept beside the identity key: a key found on another machine came with a copied disk.

Inputs: machine-id, DMI uuid, cloud instance-id, and the MACs of devices that have hardware behind them. All are hashed,
since machine-id(5) asks that it is never shown. Missing inputs equal only missing ones. One exchanged MAC is tolerated:
network cards are replaced. So are any number that only came or only went, as long as another stayed: devices are
handed to containers and come back. MACs that a driver made up are none, those of a bond's ports are their own.

Does not decide what becomes of the key. Everything is read below ``root``, so that tests bring their own machine.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

MAC_COUNT_MAX = 256
NET_ADDR_RANDOM = "1"
"""In ``addr_assign_type`` (Linux, ABI/testing/sysfs-class-net): as SR-IOV functions have it, another after each start
of the machine."""
UUIDS_OF_NOBODY = frozenset({"", "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"})
"""What firmware shows when its maker did not care."""

_INSTANCE_FILE = "var/lib/cloud/data/instance-id"


class Fingerprint(msgspec.Struct, frozen=True):
    """Hashes; an empty text stands for an input that the machine does not have. ``macs`` are sorted."""

    machine_id: str
    dmi_uuid: str
    instance_id: str
    macs: tuple[str, ...]

    def differences(self, now: Fingerprint) -> tuple[str, ...]:
        """What tells the machine of ``self`` from that of ``now``, in words; empty when they count as one."""
        found = [
            title
            for title, before, after in (
                ("machine-id", self.machine_id, now.machine_id),
                ("DMI uuid", self.dmi_uuid, now.dmi_uuid),
                ("instance-id", self.instance_id, now.instance_id),
            )
            if before != after
        ]
        gone, come = set(self.macs) - set(now.macs), set(now.macs) - set(self.macs)
        number = min(len(gone), len(come)) if set(self.macs) & set(now.macs) else max(len(gone), len(come))
        if number > 1:
            found.append(f"{number} MAC addresses")
        return tuple(found)


def read_fingerprint(root: Path) -> Fingerprint:
    uuid = read_text(root / "sys/class/dmi/id/product_uuid")
    return Fingerprint(
        _hashed("machine-id", read_text(root / "etc/machine-id")),
        _hashed("dmi-uuid", "" if uuid in UUIDS_OF_NOBODY else uuid),
        _hashed("instance-id", read_text(root / _INSTANCE_FILE)),
        tuple(sorted(_hashed("mac", mac) for mac in _physical_macs(root / "sys/class/net"))),
    )


def decode_fingerprint(row: bytes) -> Fingerprint | None:
    """None when the row is none of ours."""
    try:
        return msgspec.msgpack.decode(row, type=Fingerprint)
    except msgspec.DecodeError:
        return None


def encode_fingerprint(fingerprint: Fingerprint) -> bytes:
    return msgspec.msgpack.encode(fingerprint)


def read_text(path: Path) -> str:
    """Stripped, in lower case; empty when it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip().lower()
    except OSError:
        return ""


def _physical_macs(devices: Path) -> set[str]:
    try:
        found = sorted(devices.iterdir())
    except OSError:
        return set()
    macs = {_mac_of(device) for device in found if (device / "device").exists()}
    return set(sorted(macs - {"", "00:00:00:00:00:00"})[:MAC_COUNT_MAX])


def _mac_of(device: Path) -> str:
    """Empty when it has none of its own. The ports of a bond all show one MAC, which is theirs otherwise."""
    own = read_text(device / "bonding_slave/perm_hwaddr")
    is_random = read_text(device / "addr_assign_type") == NET_ADDR_RANDOM
    return own or ("" if is_random else read_text(device / "address"))


def _hashed(kind: str, text: str) -> str:
    return hashlib.sha256(f"weave-{kind}\0{text}".encode()).hexdigest()[:32] if text else ""
