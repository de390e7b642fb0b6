"""The password as certificate authority: keys and certificates of one peer, made in a short-lived child process.

``python -m weavenet.runtime.certificates`` reads one :class:`Order` (msgpack) on standard input and writes one
:class:`Issued` on standard output; secrets pass through these two pipes only. It is a process of its own because
``cryptography`` would cost the daemon 7 MB for good, and scrypt 64 MB for a moment. The daemon imports this module
for the types alone; everything heavy is imported inside functions.

Profile (every byte is determined by password, identity key and name, since Ed25519 signatures are):

=============  =====================================================================================
CA key         Ed25519, seed = scrypt(password, salt ``weave-ca-v1``, N=2^16, r=8, p=1, 32 bytes)
fingerprint    SHA-256(raw public CA key)[:8]
CA             serial 1, subject = issuer = CN ``weave-ca-<fingerprint hex>``, 1970-01-01 … 9999-12-31 23:59:59,
               basicConstraints critical CA pathlen 0, keyUsage critical keyCertSign, SKI (RFC 5280 4.2.1.2 method 1)
PeerId         SHA-256(raw public identity key)[:16], lower-case hex in text
leaf           serial = SHA-256(fingerprint, raw public key, name)[:16] with the two highest bits 01, issuer = CA,
               subject CN ``<PeerId>``, same validity, basicConstraints critical not CA, keyUsage critical
               digitalSignature, SKI, AKI = the CA's SKI, SAN URI ``weave:<PeerId>/<name>``
=============  =====================================================================================

Validity is unbounded because no decision here may depend on a wall clock. Whoever knows the password can mint
identities: it separates members from strangers, not members from each other. Without a password the CA of the empty
one is used: encrypted, not authenticated.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec

from weavenet.core.errors import Code, Failure, WeaveError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**16, 8, 1
SCRYPT_SALT = b"weave-ca-v1"
EMPTY_PASSWORD_SEED = bytes.fromhex("3ca9f539148d5ea5a880d585a9e758d138655e7146c38988fd5c2e1005b835da")
"""``authority_seed("")``, computed once: 200 ms of scrypt would buy nothing, as everybody knows this key."""
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


def authority_seed(password: str) -> bytes:
    """Private CA key of a password; about 200 ms and 64 MiB, on purpose."""
    return derive_seed(password) if password else EMPTY_PASSWORD_SEED


def derive_seed(password: str) -> bytes:
    return hashlib.scrypt(
        password.encode(), salt=SCRYPT_SALT, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P, maxmem=2**27, dklen=32
    )


def peer_id(public_key: bytes) -> bytes:
    """SHA-256(raw Ed25519 public key)[:16]."""
    return hashlib.sha256(public_key).digest()[:16]


def authority_name(fingerprint: bytes) -> str:
    """Common name of a CA."""
    return f"weave-ca-{fingerprint.hex()}"


def identity_uri(public_key: bytes, name: str) -> str:
    return f"weave:{peer_id(public_key).hex()}/{name}"


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
    """Make what ``order`` asks for. Slow, and imports ``cryptography``: meant for the child."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding

    identity = (
        Ed25519PrivateKey.from_private_bytes(order.identity_seed)
        if order.identity_seed
        else Ed25519PrivateKey.generate()
    )
    authorities = []
    leaf = b""
    for password in order.passwords or ("",):
        key = Ed25519PrivateKey.from_private_bytes(authority_seed(password))
        fingerprint = hashlib.sha256(key.public_key().public_bytes_raw()).digest()[:8]
        certificate = _authority(key, fingerprint)
        authorities.append(Authority(certificate.public_bytes(Encoding.DER), fingerprint))
        leaf = leaf or _leaf(key, fingerprint, identity, order.name).public_bytes(Encoding.DER)
    return Issued(identity.private_bytes_raw(), identity.public_key().public_bytes_raw(), tuple(authorities), leaf)


def _builder(subject: str, issuer: str, serial: int) -> x509.CertificateBuilder:
    from datetime import UTC, datetime

    from cryptography import x509
    from cryptography.x509.oid import NameOID

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    return (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(issuer))
        .serial_number(serial)
        .not_valid_before(datetime(1970, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(key: Ed25519PrivateKey, fingerprint: bytes) -> x509.Certificate:
    from cryptography import x509

    name = authority_name(fingerprint)
    return (
        _builder(name, name, 1)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, None)
    )


def _leaf(key: Ed25519PrivateKey, fingerprint: bytes, identity: Ed25519PrivateKey, name: str) -> x509.Certificate:
    from cryptography import x509

    public_key = identity.public_key().public_bytes_raw()
    digest = hashlib.sha256(fingerprint + public_key + name.encode()).digest()[:16]
    serial = int.from_bytes(digest, "big") & ((1 << 126) - 1) | (1 << 126)
    return (
        _builder(peer_id(public_key).hex(), authority_name(fingerprint), serial)
        .public_key(identity.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(identity.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity_uri(public_key, name))]),
            critical=False,
        )
        .sign(key, None)
    )


class Issuing:
    """A running child. Start it early, collect it late: it takes 0.1 s, and 0.2 s more per password line."""

    def __init__(self, order: Order) -> None:
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "weavenet.runtime.certificates"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            stdin = self._child.stdin
            if stdin is not None:  # an order fits into the pipe, so neither call blocks
                stdin.write(msgspec.msgpack.encode(order))
                stdin.flush()
        except OSError as error:
            raise WeaveError(_failure(str(error))) from error

    def collect(self) -> Issued:
        """Blocks until the child is done. Raises WeaveError."""
        try:
            output, complaint = self._child.communicate(timeout=CHILD_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            self._child.kill()
            self._child.communicate()
            raise WeaveError(_failure(f"nothing within {CHILD_TIMEOUT_S:.0f} s")) from error
        if self._child.returncode != 0:
            lines = complaint.decode(errors="replace").strip().splitlines() or [f"exit {self._child.returncode}"]
            raise WeaveError(_failure(lines[-1]))
        try:
            return msgspec.msgpack.decode(output, type=Issued)
        except msgspec.DecodeError as error:
            raise WeaveError(_failure(str(error))) from error


def _failure(found: str) -> Failure:
    return Failure(
        Code.HOST,
        "expected the child process that makes keys and certificates to succeed",
        found,
        "check free memory and that the python package `cryptography` works, then launch again",
    )


def main() -> int:
    try:
        order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Order)
    except msgspec.DecodeError as error:
        print(f"expected an order on standard input, found: {error}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.msgpack.encode(issue(order)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
