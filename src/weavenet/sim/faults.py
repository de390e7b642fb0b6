"""The fault menu: how bad the network, the disks and the hosts are in one history.

Plain numbers with their units in the names; probabilities are per message, per dial or per commit as each line says.
Weights choose among the events of :class:`FaultKind`; 0 switches a kind off. :func:`draw_faults` picks a random corner
of the menu, since histories with everything at once hide what single faults show.
"""

from __future__ import annotations

import random
from enum import Enum

import msgspec


class FaultKind(Enum):
    CRASH = "crash"
    CRASH_AMONG_EFFECTS = "crash-among-effects"
    STORE_FAILS = "store-fails"
    REBOOT = "reboot"
    LOST_DISK = "lost-disk"
    PARTITION = "partition"
    ISOLATE = "isolate"
    ONE_WAY = "one-way"
    FLAP = "flap"
    SWIZZLE = "swizzle"
    CUT_LINK = "cut-link"
    PAUSE = "pause"
    SUSPEND = "suspend"
    VM_PAUSE = "vm-pause"
    SLOW_DISK = "slow-disk"
    ROLLBACK = "rollback"
    CLONE = "clone"


OF_SWARMS = frozenset({FaultKind.ROLLBACK, FaultKind.CLONE})
"""Kinds that everyday histories do without (``swarm``)."""


class FaultOptions(msgspec.Struct, kw_only=True, frozen=True):
    # --- per message on a link (TCP: loss is a stall of the stream, or the end of it) ---
    delay_min_s: float = 0.0005
    delay_max_s: float = 0.005
    stall_probability: float = 0.0
    stall_max_s: float = 1.0
    break_probability: float = 0.0
    # --- per routed message (relays and reconnects lose, repeat and reorder them) ---
    routed_loss_probability: float = 0.0
    routed_duplicate_probability: float = 0.0
    routed_reorder_probability: float = 0.0
    routed_reorder_max_s: float = 2.0
    # --- per probe frame on the data path ---
    probe_loss_probability: float = 0.0
    probe_duplicate_probability: float = 0.0
    # --- per dial, per name lookup ---
    dial_failure_probability: float = 0.0
    resolve_failure_probability: float = 0.0
    # --- per commit ---
    fsync_min_s: float = 0.0002
    fsync_max_s: float = 0.002
    slow_fsync_probability: float = 0.0
    slow_fsync_max_s: float = 0.5
    # --- per offer to the lock of ``lock=``: no answer, whether or not it counted; how long until it counts ---
    lock_failure_probability: float = 0.0
    lock_delay_max_s: float = 0.01
    # --- hosts ---
    clock_skew_max_s: float = 0.0
    outage_max_s: float = 8.0
    """Longest partition, pause or downtime before it is lifted again."""
    weights: dict[FaultKind, float] = {}


CALM = FaultOptions()
"""No faults: delays only."""


def _maybe(rng: random.Random, probability: float, highest: float) -> float:
    return rng.random() * highest if rng.random() < probability else 0.0


def draw_faults(rng: random.Random, *, lost_disks: bool) -> FaultOptions:
    """A random corner of the menu. ``lost_disks``: whether a disk may be lost (the host returns as a new peer)."""
    weights: dict[FaultKind, float] = {}
    for kind in FaultKind:
        if kind not in OF_SWARMS and rng.random() < 0.5:
            weights[kind] = rng.random()
    if not lost_disks:
        weights.pop(FaultKind.LOST_DISK, None)
    elif FaultKind.LOST_DISK in weights:
        weights[FaultKind.LOST_DISK] *= 0.3
    slow_network = rng.random() < 0.3
    slow_disk = rng.random() < 0.3
    return FaultOptions(
        delay_min_s=0.0005,
        delay_max_s=rng.uniform(0.02, 0.3) if slow_network else rng.uniform(0.001, 0.02),
        stall_probability=_maybe(rng, 0.5, 0.03),
        stall_max_s=rng.uniform(0.2, 3.0),
        break_probability=_maybe(rng, 0.4, 0.003),
        routed_loss_probability=_maybe(rng, 0.5, 0.2),
        routed_duplicate_probability=_maybe(rng, 0.5, 0.3),
        routed_reorder_probability=_maybe(rng, 0.5, 0.3),
        routed_reorder_max_s=rng.uniform(0.1, 5.0),
        probe_loss_probability=_maybe(rng, 0.5, 0.3),
        probe_duplicate_probability=_maybe(rng, 0.5, 0.2),
        dial_failure_probability=_maybe(rng, 0.4, 0.2),
        resolve_failure_probability=_maybe(rng, 0.3, 0.2),
        fsync_max_s=rng.uniform(0.02, 0.15) if slow_disk else 0.003,
        slow_fsync_probability=_maybe(rng, 0.5, 0.1),
        slow_fsync_max_s=rng.uniform(0.2, 2.0),
        lock_failure_probability=_maybe(rng, 0.6, 0.5),
        lock_delay_max_s=rng.choice((0.01, 1.0, 20.0)),
        clock_skew_max_s=rng.choice((0.0, 10.0, 100_000.0)),
        outage_max_s=rng.choice((2.0, 8.0, 20.0)),
        weights=weights,
    )
