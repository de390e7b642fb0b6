"""The wire protocol, version 1. Each struct is a msgpack array ``[tag, field, …]``; fields are only ever appended.

Framing is in ``weavenet.wire``. ``decode(encode(x)) == x`` holds for every message; anything else is refused loudly
with :class:`MalformedMessage`.
"""

from __future__ import annotations

import msgspec

from weavenet.core.errors import UNDECODABLE
from weavenet.core.messages.gossip import (
    LogPull,
    Prune,
    Push,
    RecordBuckets,
    RecordMarks,
    RecordPull,
    RingBuckets,
)
from weavenet.core.messages.link import Digest, Heartbeat, Hello, Refusal
from weavenet.core.messages.unicast import Body, Routed

Message = (
    Hello
    | Refusal
    | Heartbeat
    | Digest
    | Push
    | Prune
    | LogPull
    | RingBuckets
    | RecordBuckets
    | RecordMarks
    | RecordPull
    | Routed
)

_message_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_body_decoder: msgspec.msgpack.Decoder[Body] = msgspec.msgpack.Decoder(Body)
_encoder = msgspec.msgpack.Encoder()


class MalformedMessage(Exception):
    """Bytes that are no message of this protocol; the text says which field is wrong."""


def encode(message: Message | Body) -> bytes:
    return _encoder.encode(message)


def decode_message(data: bytes) -> Message:
    """Raises MalformedMessage for anything that is not exactly one valid message."""
    try:
        return _message_decoder.decode(data)
    except UNDECODABLE as error:
        raise MalformedMessage(str(error)) from error


def decode_body(data: bytes) -> Body:
    """Raises MalformedMessage for anything that is not exactly one valid unicast body."""
    try:
        return _body_decoder.decode(data)
    except UNDECODABLE as error:
        raise MalformedMessage(str(error)) from error


__all__ = ["Body", "MalformedMessage", "Message", "decode_body", "decode_message", "encode"]
