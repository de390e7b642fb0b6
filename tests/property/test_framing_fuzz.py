"""Whatever bytes arrive, a frame decoder yields messages or raises MalformedMessage, and holds a bounded amount."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from weavenet.core.limits import HELLO_BYTES_MAX
from weavenet.core.messages import Heartbeat, MalformedMessage
from weavenet.wire.framing import FrameDecoder, frame


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=20))
def test_arbitrary_bytes(chunks: list[bytes]) -> None:
    decoder = FrameDecoder()
    try:
        for chunk in chunks:
            list(decoder.feed(chunk))
            assert decoder.held_bytes <= HELLO_BYTES_MAX + 4
    except MalformedMessage:
        assert decoder.held_bytes == 0


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_valid_stream_with_one_flipped_byte(data: st.DataObject) -> None:
    messages = [Heartbeat(i, i * 1000) for i in range(5)]
    stream = bytearray(b"".join(frame(message) for message in messages))
    at = data.draw(st.integers(0, len(stream) - 1))
    stream[at] ^= data.draw(st.integers(1, 255))
    decoder = FrameDecoder()
    seen = []
    try:
        for message in decoder.feed(bytes(stream)):
            seen.append(message)
    except MalformedMessage:
        pass
    assert len(seen) <= len(messages)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.builds(Heartbeat, st.integers(0, 2**62), st.integers(0, 2**62)), max_size=20), st.data())
def test_cuts_do_not_matter(messages: list[Heartbeat], data: st.DataObject) -> None:
    stream = b"".join(frame(message) for message in messages)
    decoder = FrameDecoder()
    seen: list[object] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        seen += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert seen == messages
