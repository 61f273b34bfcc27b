"""Attacks on the DHT."""

import os

from openlora.p2p.content.dag_pb import encode_fields
from tests.p2p.hostile.siege import Tally, all_of, siege
from tests.p2p.hostile.wire import Target, Wire, framed, raw_peer_id, someone

_KAD = "/openlora/kad/1.0.0"
_PUT_VALUE, _ADD_PROVIDER, _GET_PROVIDERS, _FIND_NODE = 0, 2, 3, 4
_LOCALHOST = bytes.fromhex("047f000001060fa1")  # /ip4/127.0.0.1/tcp/4001


async def dht_flood(target: Target, tally: Tally) -> None:
    """Provider records, values and look-ups with random keys, in long conversations and in short ones."""

    def messages(peer: bytes) -> list[bytes]:
        key = b"\x12\x20" + os.urandom(32)
        provider = encode_fields([(1, peer), (2, _LOCALHOST)])
        stranger = encode_fields([(1, raw_peer_id(someone(key.hex()).peer_id)), (2, _LOCALHOST)])
        record = encode_fields([(1, key), (2, os.urandom(1000))])
        return [
            encode_fields([(1, _ADD_PROVIDER), (2, key), (9, provider)]),
            encode_fields([(1, _ADD_PROVIDER), (2, key), (9, stranger)]),
            encode_fields([(1, _PUT_VALUE), (2, key), (3, record)]),
            encode_fields([(1, _FIND_NODE), (2, key), *((8, stranger) for _ in range(20))]),
            encode_fields([(1, _GET_PROVIDERS), (2, key)]),
        ]

    async def talk(wire: Wire) -> None:
        peer = raw_peer_id(wire.identity.peer_id)
        while True:
            stream = await wire.open(_KAD)
            for _ in range(20):
                for message in messages(peer):
                    await stream.send(framed(message))
                    tally["messages"] += 1

    async def short(wire: Wire) -> None:
        peer = raw_peer_id(wire.identity.peer_id)
        while True:
            for message in messages(peer):
                stream = await wire.open(_KAD)
                await stream.send(framed(message))
                tally["messages"] += 1

    tally.tell()
    await all_of(
        siege(target, tally, "talker", talk),
        siege(target, tally, "talkers", talk, source="127.0.1.2", renew=True),
        siege(target, tally, "short", short, source="127.0.1.3"),
        siege(target, tally, "shorts", short, source="127.0.1.4", renew=True),
        siege(target, tally, "deaf", talk, source="127.0.1.5", renew=True, deaf=True),
    )
