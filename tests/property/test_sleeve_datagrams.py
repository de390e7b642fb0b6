"""What goes in at one end comes out at the other, or not at all: loss, order, replay, damage, strangers."""

from __future__ import annotations

import random

import msgspec
import pytest

from sleeve_pair import HOSTS, A, B, C, End, damage, fuzz, name_of, plain_frame
from unit.test_sleeve_units import segmented
from unit.test_sleeve_units import unit as tcp_unit
from weavenet.sleeve.keys import REKEY_AFTER_BYTES, SEALED_BYTES_MAX
from weavenet.sleeve.partial import PARTIAL_BYTES_MAX
from weavenet.sleeve.path import BUSY_S, SIZES
from weavenet.sleeve.session import Session
from weavenet.sleeve.tap import VNET, VNET_BYTES
from weavenet.sleeve.wire import HEADER_BYTES, HOPS_AT, HOPS_START, NONCE_START, Kind

HOME = name_of(HOSTS[A])


def random_unit(rng: random.Random, to: End | None = None, size_max: int = 30_000) -> bytes:
    segment = rng.choice([100, 536, 1304])
    payload = rng.randbytes(rng.randint(segment + 1, min(size_max, 200 * segment)))
    made = tcp_unit(
        rng, version=rng.choice([4, 6]), segment=segment, payload=payload, options=4 * rng.randrange(11), flags=0x18
    )
    return made if to is None else made[:VNET_BYTES] + to.mac() + made[VNET_BYTES + 6 :]


def pair(*, aes: bool = True) -> tuple[End, End]:
    a, b = End(A), End(B, aes=aes)
    a.know(b)
    b.know(a)
    a.sessions.by_peer[B].path.size = 1472
    return a, b


def lossy(a: End) -> None:
    """From now on segments are sealed by themselves."""
    path = a.sessions.by_peer[B].path
    path.reported(a.now, path._lost_seen + 1)


@pytest.mark.parametrize("aes", [True, False])
@pytest.mark.parametrize("is_lossy", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_frames_arrive_as_they_were(seed: int, is_lossy: bool, aes: bool) -> None:
    rng = random.Random(seed)
    a, b = pair(aes=aes)
    a.now = 10.0
    if is_lossy:
        lossy(a)
    for _ in range(10):
        frames = [
            random_unit(rng, b) if rng.random() < 0.5 else plain_frame(b, rng.randbytes(rng.randrange(1300)))
            for _ in range(rng.randint(1, 20))
        ]
        expected = [one for frame in frames for one in (segmented(frame) if frame[0] else [frame[VNET_BYTES:]])]
        arrived = b.open(a.seal(*frames), HOME)
        found = [one for frame in arrived for one in (segmented(frame) if frame[0] else [frame[VNET_BYTES:]])]
        assert found == expected
    assert not sum(b.counters().values())


@pytest.mark.parametrize("segment", [1301, 1304, 1324, 1355])
def test_the_largest_units_arrive_to_the_last_byte(segment: int) -> None:
    """Of as many segments as the kernel makes of 64 kB, the last of them short."""
    rng = random.Random(segment)
    a, b = pair()
    a.now = 10.0
    lossy(a)
    for last in (1, 300, segment - 1, segment):
        payload = rng.randbytes((65_215 // segment - 1) * segment + last)
        unit = tcp_unit(rng, version=6, segment=segment, payload=payload, options=12, flags=0x18)
        unit = unit[:VNET_BYTES] + b.mac() + unit[VNET_BYTES + 6 :]
        arrived = b.open(a.seal(unit), HOME)
        assert [piece for frame in arrived for piece in segmented(frame)] == segmented(unit)
    assert not sum(b.counters().values())


@pytest.mark.parametrize("seed", range(30))
def test_a_loss_costs_what_was_lost(seed: int) -> None:
    """Sealed by segment: exactly the segments whose datagrams arrived are delivered, each once."""
    rng = random.Random(seed)
    a, b = pair()
    a.now = 10.0
    lossy(a)
    for _ in range(5):
        unit = random_unit(rng, b)
        datagrams = a.seal(unit)
        segments = segmented(unit)
        if len(datagrams) == 1:
            continue  # it fits into one datagram
        assert len(datagrams) == len(segments)
        kept = [number for number in range(len(datagrams)) if rng.random() > 0.2]
        if rng.random() < 0.5:
            rng.shuffle(kept)
        arrived = b.open([datagrams[number] for number in kept], HOME)
        found = [one for frame in arrived for one in segmented(frame)]
        assert sorted(found) == sorted(segments[number] for number in kept)
        if kept == sorted(kept):
            assert found == [segments[number] for number in kept]


def test_batches_do_not_respect_the_borders_of_units() -> None:
    rng = random.Random(1)
    a, b = pair()
    units = [random_unit(rng, b, 6000) for _ in range(8)]
    datagrams = a.seal(*units)
    rng.shuffle(datagrams)  # at most four frames may be incomplete at once
    small = []
    for unit in units:
        small += a.seal(unit)
    found = []
    for at in range(0, len(small), 3):
        found += b.open(small[at : at + 3], HOME)
    assert found == units
    b.open(datagrams, HOME)
    assert len(b.sessions.by_peer[A].partials) <= 4


def test_nothing_is_delivered_twice() -> None:
    rng = random.Random(2)
    a, b = pair()
    everything: list[bytes] = []
    for number in range(60):
        a.now += 1.0
        if number == 30:
            lossy(a)
        datagrams = a.seal(random_unit(rng, b), plain_frame(b, b"x" * number))
        assert b.open(datagrams, HOME)
        everything += datagrams
    rng.shuffle(everything)
    assert b.open(everything, name_of("203.0.113.9")) == []
    assert b.inbound.counts.replayed > 0 and b.sessions.by_peer[A].path.learned == HOME


def test_no_nonce_repeats() -> None:
    """Also over forgetting and learning the peer again: (key, counters used) never meet twice."""
    rng = random.Random(3)
    a, b = pair()
    used: set[tuple[bytes, int]] = set()
    for number in range(100):
        if number % 10 == 9:
            a.know()
            a.know(b)
        if number % 7 == 0:
            lossy(a)
        if number % 33 == 32:
            a.pairs.tick(4000.0 * number)
            a.sessions.rekeyed()
        a.now += 3.0 * rng.random()
        for datagram in a.seal(random_unit(rng, b, 5000), plain_frame(b, b"small"), plain_frame(b, bytes(1000))):
            counter = int.from_bytes(datagram[15:21], "big")
            if datagram[0] & 15 == Kind.WHOLE and datagram[21]:
                continue  # sealed with the first
            nonce = counter + datagram[21]
            key = a.pairs.by_number(datagram[1])
            assert key is not None
            identity = (key.key.public, nonce)
            assert identity not in used
            used.add(identity)


def test_a_restarted_sender_shares_no_key_with_its_past() -> None:
    a, b = pair()
    old = a.seal(plain_frame(b, b"before"))
    again = End(A)
    again.know(b)
    b.know(again)
    assert b.open(old, HOME) == []
    assert b.open(again.seal(plain_frame(b, b"after")), HOME) == [plain_frame(b, b"after")]


def test_keys_change_without_losing_a_frame() -> None:
    a, b = pair()
    frame = plain_frame(b, b"payload")
    assert b.open(a.seal(frame), HOME) == [frame]
    a.pairs.tick(3601.0)  # a new pair that b does not know yet
    a.sessions.rekeyed()
    assert len(a.pairs.public()) == 2
    assert b.open(a.seal(frame), HOME) == [frame], "the peer has shown only the old one"
    b.know(a)
    assert a.open(b.seal(plain_frame(a, b"answer")), name_of(HOSTS[B])), "sealed for the new key"
    assert a.seal(frame)[0][1] == a.pairs.newest.key.number
    assert b.open(a.seal(frame), HOME) == [frame]
    a.pairs.tick(3601.0 + 301.0)
    a.sessions.rekeyed()
    assert len(a.pairs.public()) == 1
    assert b.open(a.seal(frame), HOME) == [frame]


def tick(end: End, now: float) -> None:
    """As the worker's loop."""
    end.pairs.tick(now)
    if end.pairs.changed:
        end.pairs.changed = False
        end.sessions.rekeyed()


def seal_much(a: End, b: End, size: int) -> list[bytes]:
    """A frame after which the key in use has sealed ``size`` bytes and more."""
    key = a.sessions.by_peer[B].sending
    assert key is not None
    key.sealed_bytes = size
    frame = plain_frame(b, b"much")
    return b.open(a.seal(frame), HOME)


def test_volume_changes_keys_without_cutting_off_who_has_not_heard() -> None:
    a, b = pair()
    a.open(b.seal(plain_frame(a, b"hello")), name_of(HOSTS[B]))
    for now in (2.0, 2.5, 3.1, 30.0, 299.0):
        assert seal_much(a, b, REKEY_AFTER_BYTES)
        tick(a, now)
        assert len(a.pairs.pairs) == 2
        assert a.open(b.seal(plain_frame(a, b"hello")), name_of(HOSTS[B])), "sealed for the old key"
    b.know(a)
    assert a.open(b.seal(plain_frame(a, b"hello")), name_of(HOSTS[B]))
    old = [one.key for one in a.pairs.pairs]
    assert seal_much(a, b, REKEY_AFTER_BYTES)
    tick(a, 300.0)
    assert [one.key for one in a.pairs.pairs] == old, "the newest is due, the one before has its time"
    tick(a, 302.1)
    assert len(a.pairs.pairs) == 2 and a.pairs.pairs[0].key == old[1]


def test_a_key_that_has_sealed_its_limit_seals_no_more() -> None:
    a, b = pair()
    session = a.sessions.by_peer[B]
    a.open(b.seal(plain_frame(a, b"hello")), name_of(HOSTS[B]))
    first = a.pairs.newest.key.number
    assert seal_much(a, b, SEALED_BYTES_MAX)
    tick(a, 2.0)
    assert a.pairs.newest.key.number != first
    assert session.sending is None and a.seal(plain_frame(b, b"x")) == [] and a.outbound.no_key == 1
    b.know(a)
    assert a.open(b.seal(plain_frame(a, b"hello")), name_of(HOSTS[B]))
    assert b.open(a.seal(plain_frame(b, b"y")), HOME) == [plain_frame(b, b"y")]
    assert seal_much(a, b, SEALED_BYTES_MAX)
    tick(a, 4.0)
    assert a.pairs.by_number(first) is None, "of no use any more, nor is the second"


@pytest.mark.parametrize("is_lossy", [True, False])
def test_a_unit_that_is_too_large_makes_the_next_one_step_smaller(
    is_lossy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many calls it takes to send it."""
    a, b = pair()
    a.now = 10.0
    if is_lossy:
        lossy(a)

    def refuse(*_: object) -> bool:
        a.udp.refused_size = True
        return False

    monkeypatch.setattr(a.udp, "send", refuse)
    monkeypatch.setattr(a.udp, "send_scattered", refuse)
    unit = tcp_unit(random.Random(1), version=4, segment=1324, payload=bytes(60_000), options=12, flags=0x18)
    a.seal(unit[:VNET_BYTES] + b.mac() + unit[VNET_BYTES + 6 :])
    assert a.sessions.by_peer[B].path.size == max(size for size in SIZES if size < 1472)


def test_closed_peers_get_and_give_nothing() -> None:
    a, b = pair()
    datagrams = a.seal(plain_frame(b, b"x"))
    b.know(a, is_open=False)
    assert b.open(datagrams, HOME) == []
    assert b.inbound.counts.not_open == 1
    assert b.seal(plain_frame(a, b"x")) == []


def test_group_frames_go_once_to_each() -> None:
    a, b, c = End(A), End(B), End(C)
    a.know(b, c)
    b.know(a)
    c.know(a)
    frame = bytes(VNET_BYTES) + b"\xff" * 6 + b"\x02source" + b"\x88\xb6hello"
    a.far.send(frame)
    a.outbound.drain()
    by_name = dict(a.udp.sent)
    assert len(a.udp.sent) == 2
    assert b.open(by_name[name_of(HOSTS[B])], HOME) == [frame]
    assert c.open(by_name[name_of(HOSTS[C])], HOME) == [frame]


def test_a_relay_forwards_unopened_and_counts_hops() -> None:
    rng = random.Random(4)
    a, relay, c = End(A), End(B), End(C)
    a.know(c)
    relay.know(a, c)
    c.know(a)
    for peer in (A, C):
        relay.sessions.by_peer[peer].path.learned = name_of(HOSTS[peer])
    relay.sessions.route()
    unit = random_unit(rng, c)
    datagrams = a.seal(unit)
    relay.open(datagrams, HOME)
    forwarded = relay.udp.take()
    assert [data[:HOPS_AT] + data[HEADER_BYTES:] for data in forwarded] == [
        data[:HOPS_AT] + data[HEADER_BYTES:] for data in datagrams
    ]
    assert all(new[HOPS_AT] == old[HOPS_AT] - 1 for new, old in zip(forwarded, datagrams, strict=True))
    assert c.open(forwarded, name_of(HOSTS[B])) == [unit]
    assert c.sessions.by_peer[A].path.learned is None, "a relay's address is not the peer's"
    relay.open(datagrams, name_of("203.0.113.9"))
    assert relay.udp.take() == [], "only peers are relayed for"
    endless = [data[:HOPS_AT] + b"\xff" + data[HEADER_BYTES:] for data in datagrams]
    relay.open(endless, HOME)
    assert relay.udp.take() == [], "nor longer than anything honest has to travel"
    for _ in range(20):
        relay.open(forwarded, HOME)
        forwarded = relay.udp.take() or forwarded
    assert forwarded[0][HOPS_AT] == 0
    relay.open(forwarded, HOME)
    assert relay.udp.take() == []


def test_who_is_relayed_for_and_who_relays_is_watched_closely() -> None:
    """Also where another plane carries the relay's own frames; heartbeats alone are no reason."""
    a, relay, c = End(A), End(B), End(C)
    a.know(c, relay, carries=False)
    session = a.sessions.by_peer[C]
    session.wanted = msgspec.structs.replace(session.wanted, relay=B)
    a.sessions.route()
    relay.know(a, c, carries=False)
    relay.now = a.now = 1000.0
    paths = relay.sessions.by_peer[A].path, relay.sessions.by_peer[C].path, a.sessions.by_peer[B].path
    for path, name in zip(paths, (HOSTS[A], HOSTS[C], HOSTS[B]), strict=True):
        path.learned = name_of(name)
        path.next_at = 1100.0
    relay.sessions.route()
    a.outbound.control(session, bytes(60), 0, name_of(HOSTS[B]))
    relay.open(a.udp.take(), HOME)
    assert relay.udp.take() and [path.next_at for path in paths] == [1100.0] * 3
    relay.open(a.seal(plain_frame(c, b"x")), HOME)
    assert relay.udp.take()
    assert [path.next_at for path in paths] == [1100.0, 1000.0 + BUSY_S, 1000.0 + BUSY_S]
    for path in paths[1:]:
        for now in (1001.0, 1002.0):
            nonce = next(nonce for nonce, _, size in path.due(now) if not size)
            path.answered(now, nonce, direct=True)
        assert path.next_at == 1002.0 + BUSY_S


def hostile_unit(rng: random.Random) -> bytes:
    """Claims to be a unit, with lengths that contradict each other and odd offsets."""
    start = rng.choice([0, 13, 14, 33, 34, 35, 54, 73, 74, 75])
    kind, first, ether = rng.choice([(1, 0x40, b"\x08\x00"), (4, 0x60, b"\x86\xdd")])
    tag = rng.choice([b"", b"\x81\x00\x00\x01"])
    frame = bytearray(bytes(12) + tag + ether + bytes((first | rng.randrange(16),)) + bytes(rng.choice([70, 90])))
    if start + 12 < len(frame):
        frame[start + 12] = rng.randrange(4, 16) << 4
    return VNET.pack(1, kind, 0, rng.choice([1, 100]), start, 16) + bytes(frame)


ODD_HEADERS = bytearray(bytes(12) + b"\x08\x00\x4f" + bytes(70))
ODD_HEADERS[35 + 12] = 0x50
TAGGED = VNET.pack(1, 1, 0, 1, 0, 16) + bytes(12) + b"\x81\x00\x08\x00\x00\x00"


@pytest.mark.parametrize(
    ("kind", "plaintext", "index", "last"),
    [
        (Kind.SEGMENT, VNET.pack(1, 1, 0, 1, 0, 16) + bytes(14), 0, 1),
        (Kind.SEGMENT, TAGGED, 0, 1),
        (Kind.WHOLE, TAGGED, 0, 0),
        (Kind.BATCH, (len(TAGGED) - VNET_BYTES).to_bytes(2, "big") + TAGGED, 0, 0),
        (Kind.SEGMENT, VNET.pack(1, 1, 0, 100, 35, 16) + bytes(ODD_HEADERS), 1, 3),
    ],
)
def test_headers_that_end_early_or_contradict_each_other_are_refused(
    kind: Kind, plaintext: bytes, index: int, last: int
) -> None:
    a, b = pair()
    assert b.open([sealed(a, kind, plaintext, index, last)], HOME) == []
    assert b.inbound.counts.refused == 1 and b.inbound.failure is None


def sealed(a: End, kind: Kind, plaintext: bytes, index: int, last: int) -> bytes:
    """A datagram with a genuine seal over any plaintext."""
    session = a.sessions.by_peer[B]
    key = session.sending
    assert key is not None
    place = key.take(last + 1).to_bytes(6, "big") + bytes((index, last))
    body = bytearray(len(plaintext) + 16)
    key.aead.encrypt_into(NONCE_START[kind] + place, memoryview(plaintext), None, memoryview(body))
    return session.prefixes[kind] + place + bytes((HOPS_START,)) + bytes(body)


def test_forged_fragments_take_bounded_memory_and_time() -> None:
    a, b = pair()
    start = a.seal(plain_frame(b, bytes(700)))[0][:15]
    session = b.sessions.by_peer[A]
    for counter in range(1000, 1010):
        for index in [*range(1, 120), 0]:
            place = counter.to_bytes(6, "big") + bytes((index, 255, HOPS_START))
            b.open([start + place + bytes(1400 + index)], name_of("203.0.113.9"))
            held = [sum(map(len, [*one.pieces, *one.rest.values()])) for one in session.partials.values()]
            assert len(held) <= 4 and max(held, default=0) <= PARTIAL_BYTES_MAX
    assert b.inbound.counts.malformed
    large = start + (2000).to_bytes(6, "big") + bytes((0, 255, HOPS_START))
    for index in range(4):  # in order, as large as datagrams get
        b.open([large[:21] + bytes((index,)) + large[22:] + bytes(60_000)], HOME)
        assert sum(one.size for one in session.partials.values()) <= 4 * PARTIAL_BYTES_MAX
    b.open([start + (3000).to_bytes(6, "big") + bytes((0, 255, HOPS_START)) + bytes(100)], HOME)
    assert session.partials
    b.inbound.sweep()
    assert session.partials, "fragments may still be on their way"
    before = b.inbound.counts.incomplete
    b.inbound.sweep()
    assert not session.partials and b.inbound.counts.incomplete > before


def test_the_largest_frame_arrives() -> None:
    a, b = pair()
    frame = plain_frame(b, bytes(65_535 - 14))
    assert b.open(a.seal(frame), HOME) == [frame]


def test_a_fault_in_handling_costs_one_datagram(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pair()
    frames = [plain_frame(b, bytes((number,)) * 700) for number in range(3)]
    datagrams = a.seal(*frames)

    def deliver(session: Session, plain: memoryview) -> None:
        if plain[-1] == 1:
            raise IndexError("fault")
        whole(session, plain)

    whole = b.inbound.delivery.frame
    monkeypatch.setattr(b.inbound.delivery, "frame", deliver)
    assert b.open(datagrams, HOME) == [frames[0], frames[2]]
    assert b.inbound.counts.malformed == 1 and isinstance(b.inbound.failure, IndexError)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_a_member_seals_does_no_harm(seed: int) -> None:
    """Genuine seals over nonsense: nothing raises, and what comes after is delivered."""
    rng = random.Random(seed)
    a, b = pair()
    a.now = 10.0
    session = a.sessions.by_peer[B]
    key = session.sending
    assert key is not None
    for _ in range(60):
        good = random_unit(rng, b, 3000)
        cut = rng.choice([24, 28, rng.randrange(len(good))])
        plaintext = rng.choice(
            [rng.randbytes(rng.randrange(300)), good[:cut], hostile_unit(rng)[: rng.choice([cut, 999])]]
        )
        if rng.random() < 0.2:
            plaintext = max(0, len(plaintext) - VNET_BYTES).to_bytes(2, "big") + plaintext  # as in a batch
        last = rng.choice([0, 1, 3, 255])
        counter = key.take(last + 1).to_bytes(6, "big")
        kind = rng.choice(list(Kind))
        datagrams = []
        for index in range(rng.randint(1, 5)):
            place = counter + bytes((min(index, 255), last))
            size = rng.choice([len(plaintext), rng.randrange(len(plaintext) + 1)])
            sealed = bytearray(size + 16)
            data, out = memoryview(plaintext)[:size], memoryview(sealed)
            key.aead.encrypt_into(NONCE_START[kind] + place, data, None, out)
            datagrams.append(session.prefixes[kind] + place + b"\x08" + bytes(sealed))
        b.open(datagrams, HOME)
        if rng.random() < 0.3:
            lossy(a)
        frame = plain_frame(b, b"after it")
        assert b.open(a.seal(frame), HOME)[-1] == frame
        assert b.inbound.failure is None


@pytest.mark.parametrize("seed", range(3))
def test_damaged_datagrams(seed: int) -> None:
    counted = fuzz(2000, seed, lambda rng: random_unit(rng, None, 3000))
    assert counted["forged"] and counted["replayed"] and counted["malformed"] and counted["unknown"]


def test_damage_beside_genuine_datagrams_costs_only_the_damaged() -> None:
    rng = random.Random(5)
    a, b = pair()
    a.now = 10.0
    lossy(a)
    for _ in range(50):
        unit = random_unit(rng, b, 9000)
        datagrams = a.seal(unit)
        segments = segmented(unit)
        if len(datagrams) == 1:
            continue
        spoiled = rng.randrange(len(datagrams))
        mixed = [damage(rng, data, datagrams) if number == spoiled else data for number, data in enumerate(datagrams)]
        if any(mixed[spoiled][:23] + mixed[spoiled][24:] == data[:23] + data[24:] for data in datagrams):
            continue
        found = [one for frame in b.open(mixed, HOME) for one in segmented(frame)]
        assert found == [one for number, one in enumerate(segments) if number != spoiled]
