"""X25519 pairs for the WireGuard device. Nothing of them is kept here."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey


class X25519Keys:
    """Implements :class:`weavenet.plane.wireguard.KeyMaker`."""

    def new(self) -> tuple[bytes, bytes]:
        key = X25519PrivateKey.generate()
        return key.private_bytes_raw(), key.public_key().public_bytes_raw()

    def public(self, private: bytes) -> bytes:
        return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
