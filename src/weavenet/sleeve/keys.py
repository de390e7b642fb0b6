"""Key pairs of this process, the keys derived from them, their counters and replay windows.

Invariant, argued in ``weavenet.sleeve.wire``: under one :class:`SendingKey` no counter is ever used twice, and under
one :class:`ReceivingKey` none is accepted twice. Both are reached only through the :class:`OwnPair` that made them
and live as long as that, so that nothing can begin anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from weavenet.core.overlay.sleeve import SleeveKey
from weavenet.core.types import PeerId
from weavenet.sleeve.wire import COUNTER_MAX, FRAGMENTS_MAX, WINDOW

REKEY_AFTER_S = 3600.0
"""A new pair after this long: how far back a stolen process memory reveals traffic, against gossip per change."""
REKEY_AFTER_BYTES = 1 << 37
"""Sealed under one key. AES-GCM keeps its margin up to about 2^38.5 bytes (RFC 8446, section 5.5)."""
SEALED_BYTES_MAX = 1 << 38
"""Under one key; then nothing more is sealed with it. A tick's worth may come on top."""
PAIR_OVERLAP_S = 300.0
"""The pair before the newest opens for this long at least: longer than an idle path goes without a heartbeat. Volume
alone does not cut it short."""
PAIR_KEPT_MAX_S = 86_400.0
"""It opens for so long at most where a peer uses it still: one that has not heard of the next, because no daemon runs
here, or no link leads there while datagrams pass."""
KEYS_MAX = 65_536
"""Derived from one pair, some 1 to 33 kB each. At the bound the pair is replaced instead of forgetting a counter."""
AES, CHACHA = 1, 2
_SALT = b"weave sleeve 1"
_MASK = WINDOW - 1


class Aead(Protocol):
    """What ``cryptography`` offers of both ciphers."""

    def encrypt_into(self, nonce: bytes, data: memoryview, aad: None, buf: memoryview) -> int: ...
    def decrypt_into(self, nonce: bytes, data: memoryview, aad: None, buf: memoryview) -> int: ...


def has_aes_instructions() -> bool:
    """Whether this processor computes AES itself (``aes`` among the flags or features of /proc/cpuinfo)."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            text = file.read(1 << 16)
    except OSError:
        return False
    return any(" aes" in line for line in text.splitlines() if line.startswith(("flags", "Features")))


class SendingKey:
    """Seals, one counter each time; ``sealed_bytes`` for rekeying by volume."""

    __slots__ = ("aead", "counter", "own", "sealed_bytes", "theirs")

    def __init__(self, aead: Aead, own: int, theirs: int) -> None:
        self.aead = aead
        self.own = own
        self.theirs = theirs
        self.counter = 0
        self.sealed_bytes = 0

    @property
    def is_exhausted(self) -> bool:
        return self.sealed_bytes >= SEALED_BYTES_MAX

    def take(self, count: int) -> int:
        """The first of ``count`` fresh counters. Raises OverflowError at the end of the counter, years away."""
        first = self.counter
        if first > COUNTER_MAX - FRAGMENTS_MAX - count:
            raise OverflowError("the counter of a key is used up")
        self.counter = first + count
        return first


class ReplayWindow:
    """Accepts each counter once; of counters that are WINDOW or more behind, those never seen may be refused.

    Slot ``c mod WINDOW`` holds the largest accepted counter of that residue: a counter is fresh when it is larger. So
    nothing has to be cleared when the window moves."""

    __slots__ = ("_slots", "top")

    def __init__(self) -> None:
        self._slots = [-1] * WINDOW
        self.top = -1

    def is_fresh(self, counter: int) -> bool:
        return counter > self._slots[counter & _MASK] and counter > self.top - WINDOW

    def accept_next(self, counter: int, count: int) -> int:
        """As :meth:`accept` for ``count`` counters in a row, all newer than any before."""
        slot = counter & _MASK
        if slot + count <= WINDOW:
            self._slots[slot : slot + count] = range(counter, counter + count)
        else:
            for each in range(counter, counter + count):
                self._slots[each & _MASK] = each
        gap = counter - self.top - 1 if self.top >= 0 else 0
        self.top = counter + count - 1
        return gap

    def accept(self, counter: int, count: int = 1) -> int:
        """Note an authenticated unit of ``count`` counters; returns how many counters before it were skipped,
        negative for one that comes late and was counted as skipped."""
        self._slots[counter & _MASK] = counter
        gap = counter - self.top - 1
        if gap < 0:
            return -count
        if self.top < 0:
            gap = 0  # what was sent before we knew the key was not lost on the way
        self.top = counter + count - 1
        return gap


class ReceivingKey:
    """Opens; made when the first datagram names it."""

    __slots__ = ("aead", "window")

    def __init__(self, aead: Aead) -> None:
        self.aead = aead
        self.window = ReplayWindow()


class OwnPair:
    """One X25519 pair of this process. ``aes``: whether its owner prefers AES."""

    def __init__(self, number: int, now: float, *, aes: bool) -> None:
        self._private = X25519PrivateKey.generate()
        self.key = SleeveKey(number, self._private.public_key().public_bytes_raw(), aes)
        self.made_at = now
        self._sending: dict[tuple[PeerId, bytes], SendingKey] = {}
        self._receiving: dict[tuple[PeerId, bytes], ReceivingKey] = {}

    @property
    def is_spent(self) -> bool:
        return len(self._sending) + len(self._receiving) >= KEYS_MAX

    def sending(self, me: PeerId, peer: PeerId, theirs: SleeveKey) -> SendingKey:
        """The one key towards that pair of ``peer``. Raises ValueError for a public key of low order."""
        found = self._sending.get((peer, theirs.public))
        if found is None:
            aead = self._derive(theirs, me, peer, self.key.public, theirs.public)
            found = self._sending[peer, theirs.public] = SendingKey(aead, self.key.number, theirs.number)
        return found

    def receiving(self, me: PeerId, peer: PeerId, theirs: SleeveKey) -> ReceivingKey:
        """The one key from that pair of ``peer``. Raises ValueError for a public key of low order."""
        found = self._receiving.get((peer, theirs.public))
        if found is None:
            aead = self._derive(theirs, peer, me, theirs.public, self.key.public)
            found = self._receiving[peer, theirs.public] = ReceivingKey(aead)
        return found

    def _derive(self, theirs: SleeveKey, sender: PeerId, receiver: PeerId, first: bytes, second: bytes) -> Aead:
        secret = self._private.exchange(X25519PublicKey.from_public_bytes(theirs.public))
        cipher = AES if theirs.aes and self.key.aes else CHACHA
        info = bytes((cipher,)) + sender + receiver + first + second
        key = HKDF(algorithm=hashes.SHA256(), length=32, salt=_SALT, info=info).derive(secret)
        return AESGCM(key) if cipher == AES else ChaCha20Poly1305(key)


class OwnPairs:
    """Newest last, two at most. ``changed`` is set when the public halves changed; the owner clears it."""

    def __init__(self, now: float, *, aes: bool) -> None:
        self._aes = aes
        self.pairs = [OwnPair(os.urandom(1)[0], now, aes=aes)]
        self.changed = True
        self._is_due = False
        self._is_exhausted = False

    @property
    def newest(self) -> OwnPair:
        return self.pairs[-1]

    def public(self) -> tuple[SleeveKey, ...]:
        return tuple(pair.key for pair in self.pairs)

    def by_number(self, number: int) -> OwnPair | None:
        return next((pair for pair in self.pairs if pair.key.number == number), None)

    def sealed_much(self, key: SendingKey) -> None:
        """More than REKEY_AFTER_BYTES were sealed with ``key``. That of an older pair has its successor already,
        which the peer only has to hear of."""
        if key.own == self.newest.key.number:
            self._is_due = True
            self._is_exhausted = self._is_exhausted or key.is_exhausted

    def tick(self, now: float, *, in_use: Callable[[int], bool] = lambda number: False) -> None:
        """Make and drop pairs as time and volume ask, at most one a second. The pair before the newest has its time,
        unless the newest is of no use any more. ``in_use``: whether peers use the pair of that number."""
        newest = self.newest
        age_s = now - newest.made_at
        is_replaceable = len(self.pairs) == 1 or (
            age_s >= PAIR_OVERLAP_S and (age_s >= PAIR_KEPT_MAX_S or not in_use(self.pairs[0].key.number))
        )
        is_wanted = age_s >= REKEY_AFTER_S or (self._is_due and age_s >= 1.0)
        is_needed = (newest.is_spent or self._is_exhausted) and age_s >= 1.0
        if is_needed or (is_wanted and is_replaceable):
            self._is_due = self._is_exhausted = False
            number = (newest.key.number + 1) & 0xFF
            self.pairs = [newest, OwnPair(number, now, aes=self._aes)]
            self.changed = True
        elif len(self.pairs) > 1 and is_replaceable:
            del self.pairs[0]
            self.changed = True
