"""Headers of sleeve datagrams: what is encoded is decoded, anything else is refused without an exception."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weavenet.sleeve.wire import HEADER_BYTES, OVERHEAD_BYTES, Header, Kind, decode, encode

octet = st.integers(0, 255)
six = st.binary(min_size=6, max_size=6)
headers = st.builds(
    Header,
    st.sampled_from(Kind),
    octet,
    octet,
    six,
    six,
    st.integers(255, (1 << 48) - 1),
    st.shared(octet, key="index"),
    st.shared(octet, key="index").flatmap(lambda index: st.integers(index, 255)),
    octet,
)


@given(headers, st.binary(min_size=OVERHEAD_BYTES - HEADER_BYTES, max_size=64))
def test_decode_of_encode(header: Header, rest: bytes) -> None:
    assert decode(encode(header) + rest) == header


@given(st.binary(max_size=80))
def test_anything_is_decoded_or_refused(data: bytes) -> None:
    found = decode(data)
    assert found is None or encode(found) == data[:HEADER_BYTES]
