"""TLS 1.3 between two peers, without sockets: bytes in, bytes out, and failures as sentences.

Both sides show a leaf that the password's CA signed, and both verify (profile: ``issuing.py``). ``SSLObject`` over
two memory buffers is driven here rather than by asyncio, because asyncio drops the alert that says why a handshake
failed. In TLS 1.3 the client's proof reaches the server after the client's own handshake has ended, so a client may
learn only on its first read that its certificate was refused.

Invariants: no plaintext is delivered before the peer's certificate was verified *and* the PeerId in it was found to be
the hash of its public key. No session tickets, hence no resumption that would skip verification.
"""

from __future__ import annotations

import os
import re
import ssl
from enum import StrEnum
from pathlib import Path

import msgspec

from weavenet.core.types import PeerId
from weavenet.runtime.certificates import Issued, certificate_pem, private_key_pem
from weavenet.runtime.issuing import authority_name, peer_id

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME (openssl/x509_vfy.h); Python has no name for it."""
READ_BYTES = 65_536
CHAIN_ERRORS = frozenset({18, 19, 20, 21, 24})
"""X509_V_ERR_*: self-signed leaf, self-signed in chain, no issuer, cannot verify leaf, invalid CA: not our password."""
PASSWORD_REASONS = frozenset(
    {
        "PEER_DID_NOT_RETURN_A_CERTIFICATE",
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    }
)
OURS_REFUSED = "the other side says our certificate is not signed by a password it accepts; check --password on both"
THEIRS_REFUSED = "certificate not signed by a password we accept; check --password on both"

_URI = re.compile(r"weave:([0-9a-f]{32})/([0-9a-f]{2}(?::[0-9a-f]{2}){5})")
_ED25519_PREFIX = bytes.fromhex("302a300506032b6570032100")
"""SubjectPublicKeyInfo of an Ed25519 key up to the 32 raw bytes (RFC 8410 section 4)."""


class TlsTrouble(StrEnum):
    PASSWORD = "password"
    TLS = "tls"


class TlsFailure(Exception):
    """The connection is of no use; ``outgoing`` of the channel holds an alert that should still be sent."""

    def __init__(self, trouble: TlsTrouble, sentence: str) -> None:
        super().__init__(sentence)
        self.trouble, self.sentence = trouble, sentence


class PeerIdentity(msgspec.Struct, frozen=True):
    """Who the other side proved to be; ``password_line`` as in ``LinkOpened``."""

    peer: PeerId
    name: str
    password_line: int


class Credentials:
    """Our side of every handshake: certificates, key, and the authorities we accept."""

    def __init__(self, issued: Issued, *, authenticated: bool) -> None:
        self.peer = PeerId(peer_id(issued.public_key))
        self.authenticated = authenticated
        self._lines = {authority_name(a.fingerprint): line for line, a in enumerate(issued.authorities, start=1)}
        self._server = _context(ssl.PROTOCOL_TLS_SERVER, issued)
        self._server.num_tickets = 0
        self._client = _context(ssl.PROTOCOL_TLS_CLIENT, issued)

    def context(self, *, server_side: bool) -> ssl.SSLContext:
        return self._server if server_side else self._client

    def identify(self, channel: ssl.SSLObject) -> PeerIdentity:
        """Read a verified certificate. Raises TlsFailure when it is signed by us and yet not of our profile."""
        described, der = channel.getpeercert(), channel.getpeercert(binary_form=True)
        if not described or der is None:
            raise TlsFailure(TlsTrouble.TLS, "the other side showed no certificate")
        public_key = public_key_of(der)
        names = described.get("subjectAltName", ())
        match = _URI.fullmatch(str(names[0][1])) if len(names) == 1 and names[0][0] == "URI" else None
        if match is None or public_key is None or bytes.fromhex(match[1]) != peer_id(public_key):
            raise TlsFailure(TlsTrouble.TLS, "the certificate does not name the owner of its key as a weave peer")
        issuers = [str(pair[1]) for part in described.get("issuer", ()) for pair in part if pair[0] == "commonName"]
        line = self._lines.get(issuers[0]) if len(issuers) == 1 else None
        if line is None:
            raise TlsFailure(TlsTrouble.PASSWORD, THEIRS_REFUSED)
        return PeerIdentity(PeerId(bytes.fromhex(match[1])), match[2], line if self.authenticated else 0)


def _context(protocol: int, issued: Issued) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    context.verify_flags |= NO_CHECK_TIME
    context.load_verify_locations(cadata="".join(certificate_pem(a.certificate) for a in issued.authorities))
    _load_chain(context, certificate_pem(issued.leaf) + private_key_pem(issued.identity_seed))
    return context


def _load_chain(context: ssl.SSLContext, pem: str) -> None:
    """``ssl`` takes a private key from a file only: one in anonymous memory never touches a disk."""
    descriptor = os.memfd_create("weave-chain", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem.encode())
        context.load_cert_chain(Path(f"/proc/self/fd/{descriptor}"))
    finally:
        os.close(descriptor)


def public_key_of(certificate: bytes) -> bytes | None:
    """Raw Ed25519 key of a DER certificate, None when it is of another kind or the encoding is not DER.

    RFC 5280: Certificate ::= SEQUENCE { tbsCertificate SEQUENCE { [0] version, serialNumber, signature, issuer,
    validity, subject, subjectPublicKeyInfo, … } … }.
    """
    try:
        at, end = _enter(certificate, 0, len(certificate))
        at, end = _enter(certificate, at, end)
        for _ in range(6):
            at = _element(certificate, at, end)[2]
        start, stop = at, _element(certificate, at, end)[2]
    except ValueError:
        return None
    info = certificate[start:stop]
    if len(info) != len(_ED25519_PREFIX) + 32 or not info.startswith(_ED25519_PREFIX):
        return None
    return info[len(_ED25519_PREFIX) :]


def _element(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """(tag, start of content, end) of the DER element at ``at``. Raises ValueError."""
    if at + 2 > end:
        raise ValueError("truncated")
    tag, length, start = data[at], data[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 3 or start + count > end:
            raise ValueError("length")
        length = int.from_bytes(data[start : start + count], "big")
        start += count
    if start + length > end:
        raise ValueError("truncated")
    return tag, start, start + length


def _enter(data: bytes, at: int, end: int) -> tuple[int, int]:
    tag, start, stop = _element(data, at, end)
    if tag != 0x30:
        raise ValueError("no sequence")
    return start, stop


class TlsChannel:
    """One side of one TLS connection."""

    def __init__(self, credentials: Credentials, *, server_side: bool) -> None:
        self._credentials = credentials
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = credentials.context(server_side=server_side).wrap_bio(
            self._incoming, self._outgoing, server_side=server_side
        )
        self.identity: PeerIdentity | None = None

    @property
    def unsent_bytes(self) -> int:
        return self._outgoing.pending

    def feed(self, data: bytes) -> None:
        """Bytes from the network; then call :meth:`handshake` or :meth:`read`."""
        self._incoming.write(data)

    def outgoing(self) -> bytes:
        """Bytes for the network."""
        return self._outgoing.read()

    def handshake(self) -> PeerIdentity | None:
        """Go on as far as possible; the peer's identity once it is done. Raises TlsFailure."""
        if self.identity is None:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                return None
            except ssl.SSLError as error:
                raise _failure(error) from error
            self.identity = self._credentials.identify(self._tls)
        return self.identity

    def read(self) -> tuple[bytes, bool]:
        """All plaintext that is there, and whether the peer has closed its direction. Raises TlsFailure."""
        parts: list[bytes] = []
        while True:
            try:
                part = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                return b"".join(parts), False
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b"".join(parts), True
            except ssl.SSLError as error:
                raise _failure(error) from error
            if not part:
                return b"".join(parts), True
            parts.append(part)

    def write(self, data: bytes) -> None:
        """Encrypt; only after the handshake. Raises TlsFailure."""
        view = memoryview(data)
        try:
            while view:
                view = view[self._tls.write(view) :]
        except ssl.SSLError as error:
            raise _failure(error) from error

    def close(self) -> None:
        """Queue a close_notify, so that the other side can tell an end from a cut."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            return  # waits for the other side's close_notify, or the handshake never ended


def _failure(error: ssl.SSLError) -> TlsFailure:
    """What an OpenSSL error means to a person."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in CHAIN_ERRORS:
            return TlsFailure(TlsTrouble.PASSWORD, THEIRS_REFUSED)
        return TlsFailure(TlsTrouble.TLS, f"certificate refused: {error.verify_message}")
    reason = error.reason or ""
    if reason in PASSWORD_REASONS:
        return TlsFailure(TlsTrouble.PASSWORD, OURS_REFUSED if "ALERT" in reason else THEIRS_REFUSED)
    text = reason.replace("_", " ").lower() or str(error)
    return TlsFailure(TlsTrouble.TLS, f"TLS failed: {text}")
