"""The CA profile, byte for byte, and the child process that makes it."""

from __future__ import annotations

import datetime
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from weavenet.core.errors import WeaveError
from weavenet.runtime.certificates import Issuing, Order, issue, private_key_pem
from weavenet.runtime.issuing import EMPTY_PASSWORD_SEED, derive_seed, peer_id
from weavenet.runtime.tls import public_key_of

IDENTITY_SEED = bytes(range(32))
NAME = "00:00:00:00:00:01"


def test_vector_of_the_profile() -> None:
    """Any other implementation must produce these bytes from password, identity key and name."""
    issued = issue(Order(IDENTITY_SEED, NAME, ("correct horse battery staple",)))
    assert derive_seed("correct horse battery staple").hex() == VECTOR["ca_seed"]
    assert issued.public_key.hex() == VECTOR["public_key"]
    assert peer_id(issued.public_key).hex() == VECTOR["peer_id"]
    assert issued.authorities[0].fingerprint.hex() == VECTOR["fingerprint"]
    assert issued.authorities[0].certificate.hex() == VECTOR["ca"]
    assert issued.leaf.hex() == VECTOR["leaf"]


VECTOR = {
    "ca_seed": "27442b01a4083437fd5b2c2447d50ac05b27f4f5ae3515f3abe0e86b609c535e",
    "public_key": "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8",
    "peer_id": "56475aa75463474c0285df5dbf2bcab7",
    "fingerprint": "af6acb77f2e04901",
    "ca": (
        "3082013d3081f0a003020102020101300506032b657030243122302006035504030c1977656176652d63612d616636616362"
        "373766326530343930313020170d3730303130313030303030305a180f39393939313233313233353935395a302431223020"
        "06035504030c1977656176652d63612d61663661636237376632653034393031302a300506032b6570032100fc2620f44147"
        "31ee7483199bb310909786c3720934ba271176204a9798052137a345304330120603551d130101ff040830060101ff020100"
        "300e0603551d0f0101ff040403020204301d0603551d0e04160414c9f9ba178a428cb1fa4a36a3621724f6c97a3649300506"
        "032b65700341001e34fb03070a51f7f5d4dd7234e69b5a6c9119b51d5278fcc426437590c0812a824ac6be6412115ae6d96e"
        "236640d1cde9c96b24b4cf1e8073c7e3388eae2b01"
    ),
    "leaf": (
        "308201b630820168a0030201020210484f9cb0518d6ee6001bdce05a52a5bd300506032b657030243122302006035504030c"
        "1977656176652d63612d616636616362373766326530343930313020170d3730303130313030303030305a180f3939393931"
        "3233313233353935395a302b3129302706035504030c20353634373561613735343633343734633032383564663564626632"
        "6263616237302a300506032b657003210003a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8a3"
        "81a63081a3300c0603551d130101ff04023000300e0603551d0f0101ff040403020780301d0603551d0e04160414fd81a6db"
        "64d6faf7f702c07971a82c25c1dc3c90301f0603551d23041830168014c9f9ba178a428cb1fa4a36a3621724f6c97a364930"
        "430603551d11043c303a863877656176653a3536343735616137353436333437346330323835646635646266326263616237"
        "2f30303a30303a30303a30303a30303a3031300506032b6570034100e69484b9ecfa869a42cb039b5f0edb5fa9b291ae84fd"
        "8a2eb8fd4b3d71ab70817b04f670013827e973c1ae76c14c7505273d917412c11fc76c87d60255ac6f00"
    ),
}


def test_constant_of_the_empty_password_is_what_scrypt_gives() -> None:
    assert derive_seed("") == EMPTY_PASSWORD_SEED


def test_profile_as_parsed_by_a_library() -> None:
    issued = issue(Order(b"", NAME, ()))
    authority = x509.load_der_x509_certificate(issued.authorities[0].certificate)
    leaf = x509.load_der_x509_certificate(issued.leaf)
    authority.verify_directly_issued_by(authority)
    leaf.verify_directly_issued_by(authority)
    for certificate in (authority, leaf):
        assert certificate.not_valid_before_utc == datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        assert certificate.not_valid_after_utc == datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    assert authority.serial_number == 1
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    expected = f"weave:{hashlib.sha256(issued.public_key).hexdigest()[:32]}/{NAME}"
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [expected]


def test_the_private_key_encoding_is_pkcs8() -> None:
    key = serialization.load_pem_private_key(private_key_pem(IDENTITY_SEED).encode(), None)
    assert isinstance(key, Ed25519PrivateKey)
    assert key.private_bytes_raw() == IDENTITY_SEED


def test_public_key_of_a_certificate() -> None:
    issued = issue(Order(b"", NAME, ()))
    assert public_key_of(issued.leaf) == issued.public_key
    for cut in range(0, 200, 7):
        assert public_key_of(issued.leaf[:cut]) is None
    assert public_key_of(b"\x30\x84\xff\xff\xff\xff" + bytes(50)) is None


def test_child_makes_a_new_identity_and_keeps_a_given_one() -> None:
    first, second = Issuing(Order(b"", NAME, ())), Issuing(Order(b"", NAME, ()))
    fresh, other = first.collect(), second.collect()
    assert fresh.identity_seed != other.identity_seed
    assert fresh.authorities == other.authorities
    assert Issuing(Order(fresh.identity_seed, NAME, ())).collect() == fresh


def test_a_failing_child_is_explained() -> None:
    with pytest.raises(WeaveError) as caught:
        Issuing(Order(b"too short", NAME, ())).collect()
    assert "32" in caught.value.failure.found
