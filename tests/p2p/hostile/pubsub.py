"""Gossip messages, right or wrong (https://github.com/libp2p/specs/blob/master/pubsub/README.md)."""

import itertools
import time
from typing import Final

from openlora.p2p.content.dag_pb import encode_fields
from openlora.p2p.identity import Identity
from tests.p2p.hostile.wire import framed, raw_peer_id

PROTOCOL: Final = "/meshsub/1.1.0"
_numbers = itertools.count(time.time_ns())


def publish(identity: Identity, topic: str, data: bytes, sequence: int | None = None) -> bytes:
    """An RPC with one message, well-formed and signed."""
    return framed(encode_fields([(2, message(identity, topic, data, sequence))]))


def message(identity: Identity, topic: str, data: bytes, sequence: int | None = None) -> bytes:
    number = next(_numbers) if sequence is None else sequence
    plain = encode_fields(
        [(1, raw_peer_id(identity.peer_id)), (2, data), (3, number.to_bytes(8, "big")), (4, topic.encode())]
    )
    return plain + encode_fields([(5, identity.sign(b"libp2p-pubsub:" + plain))])


def subscribe(*topics: str) -> bytes:
    return framed(encode_fields([(1, encode_fields([(1, 1), (2, topic.encode())])) for topic in topics]))


def graft(*topics: str) -> bytes:
    return _control([(3, encode_fields([(1, topic.encode())])) for topic in topics])


def prune(*topics: str) -> bytes:
    return _control([(4, encode_fields([(1, topic.encode()), (3, 1 << 40)])) for topic in topics])


def i_have(topic: str, ids: list[bytes]) -> bytes:
    return _control([(1, encode_fields([(1, topic.encode()), *((2, each) for each in ids)]))])


def i_want(ids: list[bytes]) -> bytes:
    return _control([(2, encode_fields([(1, each) for each in ids]))])


def i_do_not_want(ids: list[bytes]) -> bytes:
    return _control([(5, encode_fields([(1, each) for each in ids]))])


def _control(entries: list[tuple[int, bytes]]) -> bytes:
    return framed(encode_fields([(3, encode_fields(entries))]))
