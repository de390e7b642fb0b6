"""The worker's loop: what it looks at, and when."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from weavenet.core.overlay.sleeve import SleeveDesired, SleeveEndpoint, SleeveKey, SleevePeer
from weavenet.core.types import PeerId
from weavenet.sleeve.feed import Listener
from weavenet.sleeve.keys import PAIR_KEPT_MAX_S, PAIR_OVERLAP_S, OwnPair
from weavenet.sleeve.udp import UdpSocket
from weavenet.sleeve.worker import STATUS_INTERVAL_S, Worker

ME, OTHER = PeerId(b"m" * 16), PeerId(b"o" * 16)
LOW_ORDER = SleeveKey(1, bytes(32))


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    tap, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    tap.setblocking(False)
    made = Worker(tap.detach(), UdpSocket(0, "127.0.0.1"), Listener(str(tmp_path / "worker.sock")))
    yield made
    made.close()
    far.close()


def know(worker: Worker, key: SleeveKey) -> None:
    endpoint = SleeveEndpoint("127.0.0.1", 9)
    peer = SleevePeer(OTHER, (key,), (endpoint,), None, True, True, True, ())
    worker.sessions.apply(time.monotonic(), SleeveDesired(ME, 1376, (peer,)))


def test_a_peer_without_a_usable_key_is_reported_and_left_alone(worker: Worker) -> None:
    know(worker, OwnPair(1, 0.0, aes=True).key)
    session = worker.sessions.by_peer[OTHER]
    assert session.sending is not None
    worker._tick(time.monotonic())
    session.path.works, session.path.changed = True, False
    know(worker, LOW_ORDER)
    assert session.sending is None
    now = time.monotonic()
    worker._tick(now)
    assert not worker.status().paths[0].works
    assert worker._tick_at >= now + STATUS_INTERVAL_S / 2, "it has no round of probes to wait for"


@pytest.mark.parametrize("hours", [2, 30])
def test_a_key_is_kept_while_a_peer_has_not_heard_of_the_next(worker: Worker, hours: int) -> None:
    """No daemon tells the others of new keys, and datagrams pass."""
    know(worker, OwnPair(1, 0.0, aes=True).key)
    session = worker.sessions.by_peer[OTHER]
    first = worker.status().keys[0]
    session.confirmed = first.number
    start = now = time.monotonic()
    while now < start + hours * 3600.0:
        worker._tick(now)
        session.received += 1
        now += 30.0
    if now > start + 3600.0 + PAIR_KEPT_MAX_S:
        assert first not in worker.status().keys
        return
    assert worker.status().keys[0] == first and len(worker.status().keys) == 2
    assert session.sending is not None and session.sending.own == first.number
    for _ in range(2):  # nothing comes any more
        now += PAIR_OVERLAP_S
        worker._tick(now)
    assert first not in worker.status().keys
