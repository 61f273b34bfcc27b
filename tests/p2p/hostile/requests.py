"""Attacks on the application protocols, whose requests the agent answers."""

import trio

from openlora.node.network.messages import APPLICATION_PROTOCOLS
from tests.p2p.hostile.siege import Tally, all_of, siege
from tests.p2p.hostile.wire import Stream, Target, Wire

_SLOW = b"slow"  # the stage's answer to it takes a second


def asking(body: bytes) -> bytes:
    return (1 + len(body)).to_bytes(4, "big") + b"\x00" + body


async def request_flood(target: Target, tally: Tally) -> None:
    """Requests from many, more than may be under way, half of them given up at once."""

    async def ask(wire: Wire) -> None:
        while True:
            for number in range(32):
                stream = await wire.open(APPLICATION_PROTOCOLS[number % 2])
                await stream.send(asking(_SLOW))
                tally["requests"] += 1
                if number % 2:
                    await stream.reset()
            await trio.sleep(1)

    async def hang_up(wire: Wire) -> None:
        """Asks for as much as one may, gives all of it up, and asks again in the same breath."""
        streams: list[Stream] = []
        while True:
            for stream in streams:
                await stream.reset()
            streams = [await wire.open(protocol) for protocol in 2 * APPLICATION_PROTOCOLS]
            for stream in streams:
                await stream.send(asking(_SLOW))
            tally["given up"] += 4
            await trio.sleep(0.3)

    async def never_read(wire: Wire) -> None:
        for _ in range(30):
            stream = await wire.open(APPLICATION_PROTOCOLS[0])
            await stream.send(asking(b"much"))
            tally["unread"] += 1
        await trio.sleep_forever()

    tally.tell()
    await all_of(
        *(siege(target, tally, f"asker {n}", ask, source=f"127.0.1.{n}") for n in range(1, 5)),
        *(siege(target, tally, f"leaver {n}", hang_up, source=f"127.0.2.{n}") for n in range(1, 21)),
        *(siege(target, tally, f"unread {n}", never_read, source=f"127.0.3.{n}", deaf=True) for n in range(1, 5)),
    )
