"""Attacks on the exchange of blocks: trees that expand without end, storms of wants, and answers that are lies."""

import itertools
import os
from collections.abc import AsyncIterator

import trio

from openlora.p2p.bitswap.messages import PROTOCOLS, Message, Want, decode_message, encode_message
from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.content.dag_pb import Link, Node, encode_fields, encode_node
from tests.p2p.hostile.siege import Tally, all_of, siege
from tests.p2p.hostile.wire import Stream, Target, Wire, framed

_BITSWAP = PROTOCOLS[0]
_LINKS, _LEVELS = 174, 8


# ---- bombs ----------------------------------------------------------------------------------------------------------


def bombs() -> dict[str, tuple[Cid, dict[Cid, bytes]]]:
    """By name: a root, and the few blocks below it."""
    return {
        "174^8 parts": _expanding(folder=False),
        "174^8 entries": _expanding(folder=True),
        "declared size": _declared(2**60),
        "sizes that lie": _declared(1000),
        "a chain": _chain(40),
        "two MiB and a byte": _large(),
    }


def _expanding(*, folder: bool) -> tuple[Cid, dict[Cid, bytes]]:
    """Each level names the one below 174 times: nine blocks, 8·10¹⁷ leaves."""
    leaf = b"x" * 64
    cid, size, total = Cid.of(Codec.RAW, leaf), len(leaf), len(leaf)
    blocks = {cid: leaf}
    for _ in range(_LEVELS):
        total = min(_LINKS * total, 2**63)
        if folder:
            links = tuple(Link(cid, f"{number:03}", total) for number in range(_LINKS))
            block = encode_node(Node(links, encode_fields([(1, 1)])))
        else:
            data = encode_fields([(1, 2), (3, _LINKS * size), *((4, size) for _ in range(_LINKS))])
            block = encode_node(Node(tuple(Link(cid, "", total) for _ in range(_LINKS)), data))
        size *= _LINKS
        cid = Cid.of(Codec.DAG_PB, block)
        blocks[cid] = block
    return cid, blocks


def _declared(size: int) -> tuple[Cid, dict[Cid, bytes]]:
    """A file of one small leaf, of which its node says that it has `size` bytes."""
    leaf = b"y" * 64
    cid = Cid.of(Codec.RAW, leaf)
    block = encode_node(Node((Link(cid, "", size),), encode_fields([(1, 2), (3, size), (4, size)])))
    return Cid.of(Codec.DAG_PB, block), {cid: leaf, Cid.of(Codec.DAG_PB, block): block}


def _chain(depth: int) -> tuple[Cid, dict[Cid, bytes]]:
    cid, blocks = Cid.of(Codec.RAW, b"z"), {Cid.of(Codec.RAW, b"z"): b"z"}
    for _ in range(depth):
        block = encode_node(Node((Link(cid, "deeper", 1),), encode_fields([(1, 1)])))
        cid = Cid.of(Codec.DAG_PB, block)
        blocks[cid] = block
    return cid, blocks


def _large() -> tuple[Cid, dict[Cid, bytes]]:
    block = bytes(2 * 1024 * 1024 + 1)
    return Cid.of(Codec.RAW, block), {Cid.of(Codec.RAW, block): block}


async def tree_bombs(target: Target, tally: Tally) -> None:
    """Serves trees that the stage makes the victim fetch."""
    blocks = {cid: block for _, parts in bombs().values() for cid, block in parts.items()}
    identity = tally.identity("bomber")

    async def stay(wire: Wire) -> None:
        async def serve(stream: Stream) -> None:
            async for want in _wants(stream):
                block = blocks.get(want.cid)
                if block is None:
                    await _send(wire, Message(presences=((want.cid, False),)))
                elif want.only_presence:
                    await _send(wire, Message(presences=((want.cid, True),)))
                else:
                    tally["blocks"] += 1
                    await _send(wire, Message(blocks=((want.cid, block),)))

        wire.accept(dict.fromkeys(PROTOCOLS, serve))
        tally.tell(peer=identity.peer_id)
        await trio.sleep_forever()

    await siege(target, tally, "bomber", stay)


# ---- storms ---------------------------------------------------------------------------------------------------------


async def wantlist_flood(target: Target, tally: Tally) -> None:
    """A hundred thousand wants, and all of them again; nobody reads the answers."""

    def wants(count: int, *, presence: bool) -> bytes:
        cids = (Cid(Codec.RAW, os.urandom(32)) for _ in range(count))
        return encode_message(Message(tuple(Want(cid, only_presence=presence, say_missing=True) for cid in cids)))

    async def storm(wire: Wire) -> None:
        stream = await wire.open(_BITSWAP)
        for number in itertools.count():
            await stream.send(wants(4000, presence=bool(number % 2)))
            tally["wants"] += 4000
            await trio.lowlevel.checkpoint()

    async def replace(wire: Wire) -> None:
        """The same few wants, cancelled and renewed, as full lists."""
        stream = await wire.open(_BITSWAP)
        cids = [Cid(Codec.RAW, os.urandom(32)) for _ in range(500)]
        while True:
            full = Message(tuple(Want(cid, only_presence=True, say_missing=True) for cid in cids), full=True)
            await stream.send(encode_message(full))
            await stream.send(encode_message(Message(tuple(Want(cid, cancel=True) for cid in cids))))
            tally["wants"] += 1000

    tally.tell()
    await all_of(
        siege(target, tally, "storm", storm, deaf=True),
        siege(target, tally, "storms", storm, source="127.0.1.2", renew=True, deaf=True),
        siege(target, tally, "listening", storm, source="127.0.1.3", renew=True),
        siege(target, tally, "replacing", replace, source="127.0.1.4"),
    )


# ---- lies -----------------------------------------------------------------------------------------------------------


async def lying_provider(target: Target, tally: Tally) -> None:
    """Six neighbours that have every block they are asked for, and then send another, nothing, or half of one."""

    async def lie(wire: Wire) -> None:
        async def serve(stream: Stream) -> None:
            async for want in _wants(stream):
                if want.only_presence:
                    tally["have"] += 1
                    await _send(wire, Message(presences=((want.cid, True),)))
                else:
                    tally["lies"] += 1
                    await _send(wire, Message(blocks=((want.cid, os.urandom(1000)),)))

        wire.accept(dict.fromkeys(PROTOCOLS, serve))
        await trio.sleep_forever()

    async def stall(wire: Wire) -> None:
        async def serve(stream: Stream) -> None:
            async for want in _wants(stream):
                if want.only_presence:
                    await _send(wire, Message(presences=((want.cid, True),)))
                else:
                    tally["stalled"] += 1
                    answer = await wire.open(_BITSWAP)
                    await answer.send(framed(bytes(100_000))[:50_000])

        wire.accept(dict.fromkeys(PROTOCOLS, serve))
        await trio.sleep_forever()

    async def deny(wire: Wire) -> None:
        async def serve(stream: Stream) -> None:
            async for want in _wants(stream):
                tally["denied"] += 1
                await _send(wire, Message(presences=((want.cid, want.only_presence),)))

        wire.accept(dict.fromkeys(PROTOCOLS, serve))
        await trio.sleep_forever()

    async def push(wire: Wire) -> None:
        while True:
            block = os.urandom(100_000)
            await _send(wire, Message(blocks=((Cid.of(Codec.RAW, block), block),)))
            tally["pushed"] += 1
            await trio.sleep(0.05)

    tally.tell()
    await all_of(
        *(siege(target, tally, f"{lie.__name__} {n}", lie, source=f"127.0.1.{n}", renew=True) for n in range(1, 3)),
        *(siege(target, tally, f"stall {n}", stall, source=f"127.0.1.{n}") for n in range(3, 5)),
        *(siege(target, tally, f"deny {n}", deny, source=f"127.0.1.{n}") for n in range(5, 7)),
        siege(target, tally, "push", push, source="127.0.1.7"),
        siege(target, tally, "pushes", push, source="127.0.1.8", renew=True),
    )


async def _wants(stream: Stream) -> AsyncIterator[Want]:
    """What the victim asks for on a stream of its own."""
    while True:
        for want in decode_message(await stream.message()).wants:
            if not want.cancel:
                yield want


async def _send(wire: Wire, message: Message) -> None:
    stream = await wire.open(_BITSWAP)
    await stream.send(encode_message(message))
    await wire.finish(stream)
