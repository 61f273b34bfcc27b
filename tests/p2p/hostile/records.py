"""Attacks on presence: records that are forged, replayed, or from another time, by gossip and by exchange.

The messages that carry them are all well-formed and signed: it is the records that must be refused."""

import itertools
import time
from collections.abc import Callable, Iterator

import msgspec
import trio

from openlora.p2p.presence import service
from openlora.p2p.presence.record import MAX_RECORD_BYTES
from openlora.p2p.presence.service import Wanted, topic
from tests.p2p.hostile import pubsub
from tests.p2p.hostile.operators import CHAIN_ID, HONEST, NOBODY, REGISTRY, ROGUE, record
from tests.p2p.hostile.requests import asking
from tests.p2p.hostile.siege import Tally, all_of, siege
from tests.p2p.hostile.wire import Stream, Target, Wire, someone

_ROGUE_PEER = someone("rogue peer")
Records = Callable[[], Iterator[bytes]]


async def forged_presence(target: Target, tally: Tally) -> None:
    """Signed by another; another's peer id; bound by another's hot key; not staked; of another chain; too long."""
    victims = someone("somebody else")

    def records() -> Iterator[bytes]:
        stolen = ROGUE.binding(_ROGUE_PEER.peer_id)
        while True:
            yield record(ROGUE, _ROGUE_PEER, signer=victims)
            yield record(HONEST, victims, signer=_ROGUE_PEER)
            yield record(HONEST, _ROGUE_PEER, binding=stolen)
            yield record(ROGUE, victims, binding=stolen)
            yield record(ROGUE, _ROGUE_PEER, binding=ROGUE.binding(_ROGUE_PEER.peer_id, HONEST.hot_key))
            yield record(ROGUE, _ROGUE_PEER, binding=b"\xff" * 65)
            yield record(NOBODY, _ROGUE_PEER)
            yield record(HONEST, _ROGUE_PEER, hot_key=ROGUE.hot_key.address.lower(), binding=stolen)
            yield record(ROGUE, _ROGUE_PEER, chain_id=1, binding=ROGUE.binding(_ROGUE_PEER.peer_id, chain_id=1))
            yield record(ROGUE, _ROGUE_PEER)[:-1]
            yield bytes(MAX_RECORD_BYTES + 1)

    await _tell(target, tally, records)


async def replayed_presence(target: Target, tally: Tally) -> None:
    """The honest node's own records, again and again; records of an hour ago; and a record below the last one."""
    heard: list[bytes] = []

    async def eavesdrop(wire: Wire) -> None:
        while True:
            heard.extend(await _ask(wire))
            await trio.sleep(1)

    def records() -> Iterator[bytes]:
        hour_ago = int(time.time()) - 3600
        while True:
            yield from heard[-20:]
            yield record(ROGUE, _ROGUE_PEER, issued_at=hour_ago, expires_at=hour_ago + 60)
            yield record(ROGUE, _ROGUE_PEER, issued_at=int(time.time()) - 59, expires_at=int(time.time()) - 1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(siege, target, tally, "eavesdropper", eavesdrop)
        await _tell(target, tally, records)


async def timeless_presence(target: Target, tally: Tally) -> None:
    """A staked operator's records that would live until 2099, or that come from the future."""
    in_2099 = 4_070_908_800

    def records() -> Iterator[bytes]:
        while True:
            now = int(time.time())
            yield record(ROGUE, _ROGUE_PEER, expires_at=in_2099)
            yield record(ROGUE, _ROGUE_PEER, expires_at=now + 61, issued_at=now)
            yield record(ROGUE, _ROGUE_PEER, issued_at=in_2099 - 60, expires_at=in_2099)
            yield record(ROGUE, _ROGUE_PEER, issued_at=now + 30, expires_at=now + 90)

    await _tell(target, tally, records)


async def presence_flood(target: Target, tally: Tally) -> None:
    """A staked operator whose records are all true, and who tells a new one as often as it can, by many mouths."""
    sequence = itertools.count(time.time_ns())

    def records() -> Iterator[bytes]:
        binding = ROGUE.binding(_ROGUE_PEER.peer_id)
        while True:
            yield record(ROGUE, _ROGUE_PEER, binding=binding, sequence=next(sequence))

    await _tell(target, tally, records)


async def _tell(target: Target, tally: Tally, records: Records) -> None:
    """By gossip and by exchange, in turns that no rate limit cuts short."""
    assert (target.chain_id, target.registry) == (CHAIN_ID, REGISTRY)

    async def gossip(wire: Wire) -> None:
        stream = await wire.negotiated(pubsub.PROTOCOL)
        await stream.send(pubsub.subscribe(topic(target.chain_id)))
        for data in records():
            await stream.send(pubsub.publish(wire.identity, topic(target.chain_id), data))
            tally["gossiped"] += 1
            await trio.sleep(0.02)

    async def exchange(stream: Stream) -> None:
        await stream.receive(int.from_bytes(await stream.receive(4), "big"))
        for data in records():
            await stream.send((1 + len(data)).to_bytes(4, "big") + b"\x01" + data)
            tally["exchanged"] += 1
            await trio.sleep(0.02)

    async def be_asked(wire: Wire) -> None:
        await trio.sleep(2)

    tally.tell()
    await all_of(
        *(siege(target, tally, f"teller {n}", gossip, source=f"127.0.1.{n}") for n in range(1, 3)),
        siege(target, tally, "tellers", gossip, source="127.0.1.4", renew=True),
        siege(target, tally, "e", be_asked, source="127.0.1.5", renew=True, accepts={service.PROTOCOL: exchange}),
    )


async def _ask(wire: Wire) -> list[bytes]:
    """The victim's table, as it gives it to anybody."""
    stream = await wire.negotiated(service.PROTOCOL)
    await stream.send(asking(msgspec.msgpack.encode(Wanted(CHAIN_ID, b""))))
    records: list[bytes] = []
    while True:
        frame = await stream.receive(int.from_bytes(await stream.receive(4), "big"))
        if frame[0] != 1:
            return records
        records.append(frame[1:])
