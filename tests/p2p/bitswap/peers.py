"""Peers of a memory network: honest ones with a store, and ones that say what a test tells them to."""

import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import trio

from openlora.p2p.bitswap.limits import BitswapLimits
from openlora.p2p.bitswap.messages import PROTOCOLS, Message, MessageReader, decode_message, encode_message
from openlora.p2p.bitswap.service import Bitswap
from openlora.p2p.content.blockstore import BlockStore
from openlora.p2p.content.cid import Cid
from openlora.p2p.content.unixfs import add_directory, add_file
from openlora.p2p.memory import MemoryHub, MemoryNetwork
from openlora.p2p.network import PeerId, Stream

DEADLINE_S = 20.0
PATIENT = BitswapLimits(patience_s=5.0)  # nobody is asked twice because a disk pauses
# who stalls is soon found out, but what a pausing disk holds up is waited for
LIMITS = BitswapLimits(
    unasked_bytes=float(1 << 20),
    block_timeout_s=0.3,
    patience_s=0.2,
    again_s=0.1,
    bench_s=5.0,
    retry_s=0.1,
)
HASTY = replace(LIMITS, have_timeout_s=0.3, missing_timeout_s=0.3)  # for what nobody has


@dataclass(frozen=True, slots=True)
class Peer:
    network: MemoryNetwork
    store: BlockStore
    bitswap: Bitswap

    async def fetch_whole(self, root: Cid, max_bytes: int = 1 << 30) -> None:
        await self.bitswap.fetch(root, max_bytes=max_bytes, whole=True)


class World:
    """A hub and the folder that its peers' stores lie in."""

    def __init__(self, hub: MemoryHub, folder: Path) -> None:
        self.hub, self._folder = hub, folder

    def peer(self, name: str, limits: BitswapLimits = LIMITS, *, max_bytes: int | None = None) -> Peer:
        network = self.hub.network(name)
        store = BlockStore(self._folder / name, max_bytes=max_bytes)
        bitswap = Bitswap(network, store, limits)
        self.hub.nursery.start_soon(bitswap.run)
        return Peer(network, store, bitswap)

    def scripted(self, name: str, answer: "Answer") -> MemoryNetwork:
        """A peer that gives every message it hears to `answer`."""
        network = self.hub.network(name)

        async def converse(stream: Stream) -> None:
            async for message in messages(stream):
                await answer(network, stream.peer, message)

        for protocol in PROTOCOLS:
            network.handle(protocol, converse)
        return network


Answer = Callable[[MemoryNetwork, PeerId, Message], Awaitable[None]]


@asynccontextmanager
async def world(folder: Path) -> AsyncGenerator[World]:
    with trio.fail_after(DEADLINE_S):
        async with MemoryHub() as hub:
            yield World(hub, folder)


async def until(condition: Callable[[], object]) -> None:
    while True:
        if condition():
            return
        await trio.sleep(0.001)


async def meet(*networks: MemoryNetwork) -> None:
    """The first is connected to all the others."""
    for other in networks[1:]:
        await networks[0].connect(other.addresses)


async def messages(stream: Stream) -> AsyncGenerator[Message]:
    reader = MessageReader(stream)
    while (length := await reader.length()) is not None:
        yield decode_message(await reader.body(length))


async def say(network: MemoryNetwork, peer: PeerId, *said: Message) -> None:
    stream = await network.open_stream(peer, PROTOCOLS)
    for message in said:
        await stream.write(encode_message(message))
    await stream.close()


def add_random_file(store: BlockStore, size: int, seed: int = 0) -> Cid:
    return add_file(BytesIO(random.Random(seed).randbytes(size)), store.put)


def add_random_folder(store: BlockStore, folder: Path, sizes: dict[str, int], seed: int = 0) -> Cid:
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(f"{seed} {name}").randbytes(size))
    return add_directory(folder, store.put)
