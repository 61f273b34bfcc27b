"""Attacks on the multiplexer, and on whoever waits for a stream's next byte."""

import itertools
import random

import trio

from tests.p2p.hostile.siege import Tally, all_of, siege
from tests.p2p.hostile.wire import DATA, GO_AWAY, PING, SYN, WINDOW_BYTES, WINDOW_UPDATE, Target, Wire

PROTOCOLS = (
    "/meshsub/1.2.0",
    "/meshsub/1.1.0",
    "/openlora/kad/1.0.0",
    "/ipfs/bitswap/1.2.0",
    "/ipfs/bitswap/1.1.0",
    "/ipfs/id/1.0.0",
    "/ipfs/id/push/1.0.0",
    "/ipfs/ping/1.0.0",
    "/openlora/1/presence",
    "/openlora/1/infer",
    "/openlora/1/control",
)


async def slow_streams(target: Target, tally: Tally) -> None:
    """On every protocol half a length, and then one byte a second; forty streams that do not even name theirs."""

    async def crawl(wire: Wire) -> None:
        streams = [await wire.open(protocol) for protocol in PROTOCOLS for _ in range(3)]
        for stream in streams:
            await stream.send(b"\x81")
        streams += [await wire.open(None) for _ in range(40)]
        tally["streams"] += len(streams)
        while True:
            await trio.sleep(1)
            for stream in streams:
                if not stream.ended:
                    await stream.send(b"\x81" if stream.number % 4 == 1 else b"\x00")

    async def pile(wire: Wire) -> None:
        for _ in range(100):
            stream = await wire.open("/ipfs/bitswap/1.2.0")
            await stream.send(b"\xff")
            tally["streams"] += 1
        await trio.sleep_forever()

    tally.tell()
    await all_of(
        *(siege(target, tally, f"crawler {n}", crawl, source=f"127.0.1.{n}") for n in range(1, 4)),
        siege(target, tally, "piler", pile, source="127.0.1.9"),
    )


async def stream_storm(target: Target, tally: Tally) -> None:
    """Ten thousand streams at once, again and again, by one that is banned for it and one that changes its name."""

    async def storm(wire: Wire) -> None:
        for first in range(0, 10_000, 100):
            opened = [_frame(WINDOW_UPDATE, SYN, 2 * number + 1, 0) for number in range(first, first + 100)]
            await wire.raw(b"".join(opened))
            tally["streams"] += 100

    async def storm_with_words(wire: Wire) -> None:
        for number in itertools.count():
            await wire.open(PROTOCOLS[number % len(PROTOCOLS)])
            tally["streams"] += 1

    tally.tell()
    await all_of(
        siege(target, tally, "storm", storm),
        siege(target, tally, "storms", storm, source="127.0.1.2", renew=True),
        siege(target, tally, "deaf storms", storm, source="127.0.1.3", renew=True, deaf=True),
        siege(target, tally, "talkative storms", storm_with_words, source="127.0.1.4", renew=True),
    )


async def frame_abuse(target: Target, tally: Tally) -> None:
    """Frames that overrun the window, say nonsense, or ask for answers that nobody reads."""

    async def overrun(wire: Wire) -> None:
        stream = await wire.negotiated("/ipfs/bitswap/1.2.0")
        await stream.send(b"\xff\xff\xff\x00" + bytes(4 * WINDOW_BYTES), rude=True)
        await trio.sleep(1)

    async def overrun_many(wire: Wire) -> None:
        """Within each window, and over all that a connection may have unread."""
        for _ in range(60):
            stream = await wire.open("/openlora/1/infer")
            await stream.send(b"\x00\x00\x40\x00\x00" + bytes(WINDOW_BYTES - 200))
        await trio.sleep(1)

    async def giant(wire: Wire) -> None:
        await wire.frame(DATA, SYN, 1, 1 << 30, bytes(60_000))
        while True:
            await wire.raw(bytes(60_000))

    async def senseless(wire: Wire) -> None:
        frames = (
            _frame(9, 0, 1, 0),
            _frame(PING, 0xFF, 0, 0),
            _frame(DATA, SYN, 2, 0),
            _frame(DATA, SYN, 0, 0),
            _frame(WINDOW_UPDATE, SYN, 1, 0xFFFFFFFF) + _frame(WINDOW_UPDATE, 0, 1, 0xFFFFFFFF),
            _frame(WINDOW_UPDATE, SYN, 1, 0) + _frame(WINDOW_UPDATE, SYN, 1, 0),
            b"\xff" * 4096,
            _frame(GO_AWAY, 0, 0, 0xFFFF),
        )
        for nonsense in random.sample(frames, k=len(frames)):
            await wire.raw(nonsense)
            await trio.sleep(0.01)

    async def pings(wire: Wire) -> None:
        while True:
            await wire.raw(_frame(PING, SYN, 0, 7) * 2000)
            tally["pings"] += 2000

    async def to_nobody(wire: Wire) -> None:
        while True:
            await wire.raw((_frame(DATA, 0, 99, 512) + bytes(512)) * 50)

    tally.tell()
    bodies = (overrun, overrun_many, giant, senseless, to_nobody)
    await all_of(
        *(
            siege(target, tally, body.__name__, body, source=f"127.0.1.{number}", renew=True)
            for number, body in enumerate(bodies, 1)
        ),
        siege(target, tally, "pings", pings, source="127.0.1.8"),
        siege(target, tally, "deaf pings", pings, source="127.0.1.9", renew=True, deaf=True),
    )


def _frame(kind: int, flags: int, stream: int, length: int) -> bytes:
    return bytes((0, kind)) + flags.to_bytes(2, "big") + stream.to_bytes(4, "big") + length.to_bytes(4, "big")
