"""Certificates as the daemon sees them: what it asks of the child process (``issuing.py``, with the exact profile) and
what it gets back.

Imports no cryptography. Whoever holds an :class:`Issued` holds our private key: it is never logged or reported.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from functools import partial

import msgspec

from weavenet import program
from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.runtime import issuing
from weavenet.runtime.fork import Fork, ForkFailed

CHILD_TIMEOUT_S = 60.0
"""Eight password lines on a busy small machine take a few seconds; beyond this something hangs."""


class Order(msgspec.Struct, frozen=True, array_like=True):
    """``identity_seed``: raw Ed25519 private key, empty to make one. ``passwords``: none means unauthenticated."""

    identity_seed: bytes
    name: str
    passwords: tuple[str, ...]


class Authority(msgspec.Struct, frozen=True, array_like=True):
    """A CA that we accept: its certificate (DER) and public fingerprint (8 bytes)."""

    certificate: bytes
    fingerprint: bytes


class Issued(msgspec.Struct, frozen=True, array_like=True):
    """``authorities`` are in the order of the passwords; ``leaf`` (DER) is signed by the first."""

    identity_seed: bytes
    public_key: bytes
    authorities: tuple[Authority, ...]
    leaf: bytes


def private_key_pem(identity_seed: bytes) -> str:
    """PKCS #8 of an Ed25519 key (RFC 8410 section 7): a fixed prefix, then the 32 raw bytes."""
    return _pem("PRIVATE KEY", bytes.fromhex("302e020100300506032b657004220420") + identity_seed)


def certificate_pem(der: bytes) -> str:
    return _pem("CERTIFICATE", der)


def _pem(label: str, der: bytes) -> str:
    import base64

    text = base64.b64encode(der).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def issue(order: Order) -> Issued:
    """In this process, for tools and tests; the daemon uses :class:`Issuing`."""
    return _parse(_issue(order))


def _parse(answer: str | bytes) -> Issued:
    """Raises ValueError, KeyError or TypeError when it is no answer."""
    fields = json.loads(answer)
    return Issued(
        bytes.fromhex(fields["identity_seed"]),
        bytes.fromhex(fields["public_key"]),
        tuple(Authority(bytes.fromhex(der), bytes.fromhex(print_)) for der, print_ in fields["authorities"]),
        bytes.fromhex(fields["leaf"]),
    )


class Issuing:
    """A running child. Start it early, collect it late: it takes 0.1 s, and 0.2 s more per password line.

    A fork while the daemon has no threads yet: half of what the child needs is in memory then. Later a process of its
    own."""

    def __init__(self, order: Order) -> None:
        fields = {"identity_seed": order.identity_seed.hex(), "name": order.name, "passwords": order.passwords}
        self._collect: Callable[[], str | bytes]
        try:
            if threading.active_count() == 1:
                self._collect = partial(Fork(partial(_issue, order)).collect, CHILD_TIMEOUT_S)
            else:
                self._collect = partial(_communicate, _spawn(json.dumps(fields).encode()))
        except OSError as error:
            raise WeaveError(_failure(str(error))) from error

    def collect(self) -> Issued:
        """Blocks until the child is done. Raises WeaveError."""
        try:
            return _parse(self._collect())
        except (ForkFailed, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise WeaveError(_failure(str(error))) from error


def _issue(order: Order) -> bytes:
    return json.dumps(issuing.issue(order.identity_seed, order.name, order.passwords)).encode()


def _spawn(order: bytes) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        program.command("weavenet.runtime.issuing"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    stdin = child.stdin
    if stdin is not None:  # an order fits into the pipe, so neither call blocks
        stdin.write(order)
        stdin.flush()
    return child


def _communicate(child: subprocess.Popen[bytes]) -> bytes:
    try:
        output, complaint = child.communicate(timeout=CHILD_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        child.kill()
        child.communicate()
        raise TimeoutError(f"nothing within {CHILD_TIMEOUT_S:.0f} s") from error
    if child.returncode != 0:
        lines = complaint.decode(errors="replace").strip().splitlines() or [f"exit {child.returncode}"]
        raise ForkFailed(lines[-1])
    return output


def _failure(found: str) -> Failure:
    return Failure(
        Code.HOST,
        "expected the child process that makes keys and certificates to succeed",
        found,
        "check free memory and that the python package `cryptography` works, then launch again",
    )
