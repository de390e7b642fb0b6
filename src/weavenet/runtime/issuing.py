"""The password as certificate authority: makes keys and certificates of one peer, in a short-lived child process.

``program.py weavenet.runtime.issuing`` reads one JSON object on standard input (``identity_seed`` hex or empty,
``name``, ``passwords``) and writes one on standard output; secrets pass through these two pipes only. It is a process
of its own because ``cryptography`` would cost the daemon 7 MB for good, and scrypt 64 MB for a moment. It imports
nothing else of this project, since it runs at every start.

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
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**16, 8, 1
SCRYPT_SALT = b"weave-ca-v1"
EMPTY_PASSWORD_SEED = bytes.fromhex("3ca9f539148d5ea5a880d585a9e758d138655e7146c38988fd5c2e1005b835da")
"""``authority_seed("")``, computed once: 200 ms of scrypt would buy nothing, as everybody knows this key."""


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


def issue(identity_seed: bytes, name: str, passwords: Sequence[str]) -> dict[str, object]:
    """The answer as JSON: ``identity_seed``, ``public_key``, ``leaf`` (DER) and ``authorities`` as pairs of certificate
    (DER) and fingerprint, bytes as hex. An empty ``identity_seed`` asks for a new key, no password for the CA of the
    empty one. Slow, and imports ``cryptography``."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding

    identity = Ed25519PrivateKey.from_private_bytes(identity_seed) if identity_seed else Ed25519PrivateKey.generate()
    authorities = []
    leaf = b""
    for password in passwords or ("",):
        key = Ed25519PrivateKey.from_private_bytes(authority_seed(password))
        fingerprint = hashlib.sha256(key.public_key().public_bytes_raw()).digest()[:8]
        certificate = _authority(key, fingerprint)
        authorities.append((certificate.public_bytes(Encoding.DER).hex(), fingerprint.hex()))
        leaf = leaf or _leaf(key, fingerprint, identity, name).public_bytes(Encoding.DER)
    return {
        "identity_seed": identity.private_bytes_raw().hex(),
        "public_key": identity.public_key().public_bytes_raw().hex(),
        "authorities": authorities,
        "leaf": leaf.hex(),
    }


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


def main(arguments: list[str]) -> int:
    order = json.load(sys.stdin)
    json.dump(issue(bytes.fromhex(order["identity_seed"]), order["name"], order["passwords"]), sys.stdout)
    return 0
