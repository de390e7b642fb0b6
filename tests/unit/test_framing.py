"""Frames: any cut of the stream gives the same messages; bounds are enforced before a body is held."""

from __future__ import annotations

import pytest

from weavenet.core.errors import RefusalCode
from weavenet.core.limits import HELLO_BYTES_MAX, MESSAGE_BYTES_MAX
from weavenet.core.messages import Heartbeat, MalformedMessage, Prune, Refusal, RingBuckets
from weavenet.wire.framing import FrameDecoder, FrameTooLong, frame

MESSAGES = [Heartbeat(1, 2), Prune(), Refusal(RefusalCode.CLUSTER, "another cluster"), Heartbeat(3, 4)]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 64])
def test_any_cut_of_the_stream_gives_the_messages(step: int) -> None:
    stream = b"".join(frame(message) for message in MESSAGES)
    decoder = FrameDecoder()
    seen = [m for at in range(0, len(stream), step) for m in decoder.feed(stream[at : at + step])]
    assert seen == MESSAGES
    assert decoder.held_bytes == 0


def test_first_frame_is_bounded_like_a_hello() -> None:
    decoder = FrameDecoder()
    with pytest.raises(FrameTooLong, match=str(HELLO_BYTES_MAX)):
        list(decoder.feed((HELLO_BYTES_MAX + 1).to_bytes(4, "big")))
    with pytest.raises(MalformedMessage):
        list(decoder.feed(frame(Prune())))
    assert decoder.held_bytes == 0


def test_later_frames_have_the_larger_bound() -> None:
    decoder = FrameDecoder()
    assert list(decoder.feed(frame(Prune()))) == [Prune()]
    assert list(decoder.feed((HELLO_BYTES_MAX + 1).to_bytes(4, "big"))) == []
    decoder = FrameDecoder()
    list(decoder.feed(frame(Prune())))
    with pytest.raises(FrameTooLong):
        list(decoder.feed((MESSAGE_BYTES_MAX + 1).to_bytes(4, "big")))


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x91\x63", b"\x01\x02", frame(Prune())[4:] + b"\x00", b"\x93\x03\xff\x00"]
)
def test_garbage_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        list(FrameDecoder().feed(len(body).to_bytes(4, "big") + body))


def test_messages_before_the_wrong_one_are_delivered() -> None:
    decoder = FrameDecoder()
    seen = []
    with pytest.raises(MalformedMessage):
        for message in decoder.feed(frame(Prune()) + frame(Heartbeat(1, 1)) + b"\x00\x00\x00\x01\xc1"):
            seen.append(message)
    assert seen == [Prune(), Heartbeat(1, 1)]


def test_a_message_nobody_would_accept_is_not_framed() -> None:
    hashes = tuple(bytes(8) for _ in range(64))
    frame(RingBuckets(0, hashes, False))
    with pytest.raises(FrameTooLong):
        frame(Refusal(RefusalCode.RANGE, "x" * (MESSAGE_BYTES_MAX + 1)))
