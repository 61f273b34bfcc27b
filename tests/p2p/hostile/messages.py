"""Attacks by message: too long, too many, or nothing that anybody could mean."""

import os
import random

import trio

from openlora.p2p.content.dag_pb import decode_fields, encode_fields, encode_varint
from openlora.p2p.presence.service import topic
from tests.p2p.hostile import pubsub
from tests.p2p.hostile.siege import Body, Tally, all_of, siege
from tests.p2p.hostile.streams import PROTOCOLS
from tests.p2p.hostile.wire import Stream, Target, Wire, framed

_GIB = 1 << 30
_APPLICATION = ("/openlora/1/infer", "/openlora/1/control", "/openlora/1/presence")


async def oversize(target: Target, tally: Tally) -> None:
    """A message of 1 GiB announced on every protocol, followed by as much of it as is let in."""

    def announce(protocol: str) -> Body:
        length = _GIB.to_bytes(4, "big") if protocol in _APPLICATION else encode_varint(_GIB)

        async def body(wire: Wire) -> None:
            stream = await wire.negotiated(protocol)
            await stream.send(length)
            tally["announced"] += 1
            for _ in range(64):
                await stream.send(bytes(64 * 1024))
                tally["kib"] += 64

        return body

    async def gossip(wire: Wire) -> None:
        """Within the bounds of one RPC, and over those of one message."""
        stream = await wire.negotiated(pubsub.PROTOCOL)
        while True:
            await stream.send(pubsub.publish(wire.identity, topic(target.chain_id), bytes(200 * 1024)))
            tally["large messages"] += 1

    tally.tell()
    await all_of(
        *(
            siege(target, tally, protocol, announce(protocol), source=f"127.0.1.{number}", renew=True)
            for number, protocol in enumerate(PROTOCOLS, 1)
        ),
        siege(target, tally, "large gossip", gossip, source="127.0.1.30", renew=True),
    )


async def gossip_flood(target: Target, tally: Tally) -> None:
    """As many signed messages as the connection takes, with garbage in them; by one, and by one of many names."""

    async def flood(wire: Wire) -> None:
        stream = await wire.negotiated(pubsub.PROTOCOL)
        await stream.send(pubsub.subscribe(topic(target.chain_id)))
        while True:
            batch = [pubsub.message(wire.identity, topic(target.chain_id), os.urandom(40)) for _ in range(50)]
            await stream.send(b"".join(framed(encode_fields([(2, each)])) for each in batch[:25]))
            await stream.send(framed(encode_fields([(2, each) for each in batch[25:]])))
            tally["messages"] += len(batch)

    async def forward(wire: Wire) -> None:
        """Messages of others that they have not signed, and one without a sender."""
        stream = await wire.negotiated(pubsub.PROTOCOL)
        name = topic(target.chain_id).encode()
        while True:
            forged = [
                encode_fields([(1, os.urandom(38)), (2, b"x"), (3, os.urandom(8)), (4, name), (5, os.urandom(64))])
                for _ in range(20)
            ]
            await stream.send(framed(encode_fields([(2, each) for each in forged])))
            tally["forged"] += len(forged)

    tally.tell()
    await all_of(
        siege(target, tally, "flood", flood),
        siege(target, tally, "floods", flood, source="127.0.1.2", renew=True),
        siege(target, tally, "forward", forward, source="127.0.1.3", renew=True),
    )


async def gossip_control(target: Target, tally: Tally) -> None:
    """Subscriptions to thousands of topics, and control messages about messages that never were."""

    async def topics(wire: Wire) -> None:
        stream = await wire.negotiated(pubsub.PROTOCOL)
        while True:
            names = [os.urandom(16).hex() for _ in range(1000)]
            await stream.send(pubsub.subscribe(*names))
            await stream.send(b"".join(pubsub.subscribe(name) for name in names[:200]))
            await stream.send(pubsub.graft(*names) + pubsub.prune(*names))
            await stream.send(b"".join(pubsub.i_have(name, []) for name in names))
            tally["topics"] += len(names)

    async def ids(wire: Wire) -> None:
        stream = await wire.negotiated(pubsub.PROTOCOL)
        await stream.send(pubsub.subscribe(topic(target.chain_id)) + pubsub.graft(topic(target.chain_id)))
        while True:
            some = [os.urandom(23).hex().encode() for _ in range(2000)]
            await stream.send(pubsub.i_have(topic(target.chain_id), some) + pubsub.i_want(some))
            await stream.send(pubsub.i_do_not_want(some))
            tally["ids"] += len(some)

    tally.tell()
    await all_of(
        siege(target, tally, "topics", topics),
        siege(target, tally, "many topics", topics, source="127.0.1.2", renew=True),
        siege(target, tally, "ids", ids, source="127.0.1.3"),
        siege(target, tally, "many ids", ids, source="127.0.1.4", renew=True),
    )


async def garbage(target: Target, tally: Tally) -> None:
    """On every protocol that the victim announces: noise, and well-framed noise."""

    async def spoil(wire: Wire) -> None:
        announced = sorted(await _announced(wire))
        for protocol in random.sample(announced, k=len(announced)):
            for spoiled in _spoiled(protocol):
                stream = await wire.open(protocol)
                await stream.send(spoiled)
                tally[protocol] += 1
            await trio.sleep(0.01)
        await trio.sleep(0.5)

    tally.tell()
    await all_of(
        *(siege(target, tally, f"garbage {n}", spoil, source=f"127.0.1.{n}", renew=True) for n in range(1, 4)),
        siege(target, tally, "garbage", spoil, source="127.0.1.9"),
    )


async def _announced(wire: Wire) -> set[str]:
    """What identify says that the victim speaks."""
    stream: Stream = await wire.negotiated("/ipfs/id/1.0.0")
    fields = decode_fields(await stream.message())
    return {value.decode() for number, value in fields if number == 3 and isinstance(value, bytes)}


def _spoiled(protocol: str) -> tuple[bytes, ...]:
    noise = os.urandom(600)
    deep = b"\x0a\x7f" * 300
    huge = encode_fields([(1, b"\xff" * 50), (2, noise[:40]), (3, 2**63)])
    if protocol in _APPLICATION:
        return (
            noise,
            len(noise).to_bytes(4, "big") + noise,
            b"\x00\x00\x00\x00",
            b"\x00\x00\x00\x0b\x00" + b"\x9f" * 10,
            b"\x00\x00\x00\x05\x01abcd",
        )
    return noise, framed(noise), framed(deep), framed(huge), framed(b""), b"\x80" * 20
