"""Operating errors as values: what was expected, what was found, what to run next."""

from __future__ import annotations

from enum import StrEnum

import msgspec

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that somebody else wrote: they are nothing of that kind, hold text that is not UTF-8,
or nest without end in a field that this version would skip."""


class Code(StrEnum):
    """Stable error codes; the CLI maps them to exit codes."""

    INVALID = "invalid"
    NOT_FOUND = "not-found"
    ALREADY_TAKEN = "already-taken"
    OUT_OF_RANGE = "out-of-range"
    NO_SPACE = "no-space"
    IPAM_OFF = "ipam-off"
    BUSY = "busy"
    CANCELLED = "cancelled"
    STORE_FAILED = "store-failed"
    CONFLICT = "conflict"
    HOST = "host"
    TIMEOUT = "timeout"
    FENCED = "fenced"
    DEPARTED = "departed"
    INTERNAL = "internal"


class Failure(msgspec.Struct, frozen=True):
    """A refusal that a person can act on.

    ``expected`` and ``found`` are full clauses; ``next_step`` is a command or an action, or empty.
    """

    code: Code
    expected: str
    found: str = ""
    next_step: str = ""

    def sentence(self) -> str:
        parts = [self.expected]
        if self.found:
            parts.append(f"found: {self.found}")
        if self.next_step:
            parts.append(f"next: {self.next_step}")
        return "; ".join(parts)


class WeaveError(Exception):
    """Carries a :class:`Failure` through code that raises instead of returning it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.sentence())
        self.failure = failure


class InvariantBroken(Exception):
    """Raised by ``check()``: a programming error, never an input error."""


class RefusalCode(StrEnum):
    """Why a link is refused; sent to the other side and shown in ``status connections`` on both."""

    PROTOCOL = "protocol"
    CLUSTER = "cluster"
    RANGE = "range"
    SELF = "self"
    CLONE = "clone"
    REMOVED = "removed"
    DUPLICATE = "duplicate"
    IDENTITY = "identity"
    TOO_MANY = "too-many"
    MALFORMED = "malformed"
    PASSWORD = "password"
    SLOW = "slow"
    FORGOTTEN = "forgotten"
    SEEDS = "seeds"
    SILENT = "silent"
    STOPPING = "stopping"
