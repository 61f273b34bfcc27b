"""Attacks by number: connections that say nothing, and many identities at once."""

import os

import trio

from openlora.p2p.content.dag_pb import encode_fields
from openlora.p2p.presence.service import topic
from tests.p2p.hostile import pubsub
from tests.p2p.hostile.siege import Tally, all_of, siege
from tests.p2p.hostile.wire import MULTISTREAM_LINE, Cut, Stream, Target, Wire, connect, framed, line

_SYBILS = 60


def _machines(network: int) -> tuple[str, ...]:
    """Eight addresses. Who has just knocked too often at one must wait a few seconds."""
    return tuple(f"127.0.{network}.{number}" for number in range(1, 9))


async def nothing(target: Target, tally: Tally) -> None:
    """What the stage itself costs, and how the pair fares when all attacks are over."""
    tally.tell()
    await trio.sleep_forever()


async def silent_connections(target: Target, tally: Tally) -> None:
    """Hundreds of connections from eight machines that say nothing, or stop at each step of the handshake."""
    to_noise = MULTISTREAM_LINE + line("/noise")
    handshakes = (b"", b"\x00\x20" + os.urandom(32), b"\xff\xff" + os.urandom(65535))
    beginnings = (b"", to_noise[:7], MULTISTREAM_LINE * 9000, *(to_noise + handshake for handshake in handshakes))
    tally.tell()

    async def stall(source: str, beginning: bytes) -> None:
        while True:
            try:
                async with await connect(target, source) as socket:
                    tally["connections"] += 1
                    await socket.send_all(beginning)
                    while await socket.receive_some(4096):
                        pass
            except (Cut, trio.BrokenResourceError):
                pass
            tally["cut"] += 1
            await trio.sleep(0.5)

    await all_of(*(stall(source, beginnings[n % len(beginnings)]) for source in _machines(4) for n in range(50)))


async def sybils(target: Target, tally: Tally) -> None:
    """Sixty identities on sixty machines connect at once, and gossip what they like."""

    async def gossip(wire: Wire) -> None:
        stream = await wire.negotiated(pubsub.PROTOCOL)
        await stream.send(pubsub.subscribe(topic(target.chain_id)) + pubsub.graft(topic(target.chain_id)))
        while True:
            await stream.send(pubsub.publish(wire.identity, topic(target.chain_id), os.urandom(500)))
            tally["messages"] += 1
            await trio.sleep(0.1)

    tally.tell()
    await all_of(
        *(
            siege(target, tally, f"sybil {number}", gossip, source=f"127.0.2.{number + 1}", renew=True)
            for number in range(_SYBILS)
        )
    )


async def idlers(target: Target, tally: Tally) -> None:
    """Two hundred and fifty identities on eight machines that are let in, and then only hold their places."""

    async def hold(_: Wire) -> None:
        await trio.sleep_forever()

    tally.tell()
    await all_of(
        *(
            siege(target, tally, f"idler {number} of {source}", hold, source=source)
            for source in _machines(1)
            for number in range(31)
        )
    )


async def many_names(target: Target, tally: Tally) -> None:
    """Ever new identities, each of which says more of itself than anybody could use."""
    addresses = [(2, bytes.fromhex("040a0000") + os.urandom(1) + bytes.fromhex("060fa1")) for _ in range(1000)]
    protocols = [(3, f"/{number}/{'x' * 40}".encode()) for number in range(18_000)]
    said = framed(encode_fields(addresses + protocols))

    async def identify(stream: Stream) -> None:
        await stream.send(said)
        await stream.wire.finish(stream)

    async def push(wire: Wire) -> None:
        stream = await wire.negotiated("/ipfs/id/push/1.0.0")
        tally["names"] += 1
        await stream.send(said)
        await trio.sleep(0.3)

    tally.tell()
    await all_of(
        *(
            siege(
                target, tally, f"from {source}", push, source=source, renew=True, accepts={"/ipfs/id/1.0.0": identify}
            )
            for source in _machines(5)
        )
    )
