"""The wire codec: every message survives the round trip; anything else is refused as malformed and nothing worse.

Strategies are derived from the structs themselves, so that a new message is covered without anybody remembering it.
"""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from weavenet.core.messages import Body, MalformedMessage, Message, decode_body, decode_message, encode
from weavenet.core.messages.gossip import OriginDelta, Push, Record
from weavenet.core.messages.link import Heartbeat
from weavenet.core.types import PeerId

MESSAGES = get_args(Message)
BODIES = get_args(Body)


def values(kind: inspect.Type) -> st.SearchStrategy[object]:
    match kind:
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.IntType():
            return st.integers(kind.ge or 0, kind.le or (1 << 64) - 1)
        case inspect.StrType():
            return st.text(max_size=min(kind.max_length or 20, 20))
        case inspect.BytesType():
            return st.binary(min_size=kind.min_length or 0, max_size=min(kind.max_length or 40, 40))
        case inspect.EnumType():
            return st.sampled_from(list(kind.cls))
        case inspect.VarTupleType():
            least = kind.min_length or 0
            return st.lists(values(kind.item_type), min_size=least, max_size=max(least, 3)).map(tuple)
        case inspect.TupleType():
            return st.tuples(*map(values, kind.item_types))
        case inspect.UnionType():
            return st.one_of(*map(values, kind.types))
        case inspect.StructType():
            return st.builds(kind.cls, *(values(field.type) for field in kind.fields))
        case _:
            raise NotImplementedError(kind)


def structs(kind: type) -> st.SearchStrategy[object]:
    return values(inspect.type_info(kind))


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_every_message_survives_the_round_trip(kind: type[Message]) -> None:
    @settings(max_examples=40)
    @given(structs(kind))
    def check(message: Message) -> None:
        assert decode_message(encode(message)) == message

    check()


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.__name__)
def test_every_body_survives_the_round_trip(kind: type[Body]) -> None:
    @settings(max_examples=40)
    @given(structs(kind))
    def check(body: Body) -> None:
        assert decode_body(encode(body)) == body

    check()


@given(st.binary(max_size=400))
def test_random_bytes_are_malformed_or_a_message(data: bytes) -> None:
    for decode in (decode_message, decode_body):
        try:
            decoded = decode(data)
        except MalformedMessage:
            continue
        assert decode(encode(decoded)) == decoded


@given(st.one_of(*map(structs, MESSAGES)), st.data())
def test_truncated_and_damaged_messages_are_malformed_or_another_message(message: Message, data: st.DataObject) -> None:
    whole = encode(message)
    with pytest.raises(MalformedMessage):
        decode_message(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(MalformedMessage):
        decode_message(whole + b"\x00")
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :]
    try:
        decode_message(damaged)
    except MalformedMessage as error:
        assert str(error)


def test_deep_nesting_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        decode_message(b"\x91" * 100_000)


def test_an_oversized_record_is_malformed() -> None:
    delta = OriginDelta(PeerId(bytes(16)), 1, 0, 1, (Record(1, 9, bytes(2049)),), (), None, 0)
    with pytest.raises(MalformedMessage, match="length"):
        decode_message(encode(Push(0, (), (), (delta,))))


def test_fields_that_a_later_version_appends_are_ignored() -> None:
    array = msgspec.msgpack.decode(encode(Heartbeat(1, 2, 3)))
    assert decode_message(msgspec.msgpack.encode([*array, "new"])) == Heartbeat(1, 2, 3)
    assert decode_message(msgspec.msgpack.encode(array[:3])) == Heartbeat(1, 2, 1000)


def test_a_time_that_leaves_no_room_for_an_answer_is_malformed() -> None:
    """The receiver sends it back with the time it lay there, and msgpack has no integers beyond 64 bits."""
    beat = msgspec.msgpack.decode(encode(Heartbeat(1, 2)))
    with pytest.raises(MalformedMessage):
        decode_message(msgspec.msgpack.encode([beat[0], (1 << 64) - 1, *beat[2:]]))
