"""One peer as a process of its own. Every line on its standard input is a command; it answers each with a line of JSON.

peer_process.py STATE [liar|staller]
connect ADDRESS      fetch CID [PEER…]      counters
"""

import json
import sys
import time
from pathlib import Path

import trio

from openlora.p2p.bitswap.limits import BitswapLimits
from openlora.p2p.bitswap.messages import PROTOCOLS, Message
from openlora.p2p.bitswap.service import Bitswap
from openlora.p2p.content.blockstore import BlockStore
from openlora.p2p.content.cid import Cid
from openlora.p2p.errors import P2PError
from openlora.p2p.host import HostOptions, Libp2pNetwork, open_network
from openlora.p2p.identity import Identity
from openlora.p2p.network import PeerId, Stream
from tests.p2p.bitswap.peers import messages, say

PLENTY = 1 << 40
LIMITS = BitswapLimits(window_step_s=0.5)  # a busy machine is no long path


def answer_badly(network: Libp2pNetwork, manner: str) -> None:
    """Says that it has everything; then lies, or falls silent."""

    async def converse(stream: Stream) -> None:
        async for message in messages(stream):
            haves = tuple((want.cid, True) for want in message.wants if want.only_presence)
            asked = [want.cid for want in message.wants if not want.cancel and not want.only_presence]
            await say(network, stream.peer, Message(presences=haves))
            if manner == "liar":
                await say(network, stream.peer, Message(blocks=tuple((cid, b"a lie") for cid in asked)))

    for protocol in PROTOCOLS:
        network.handle(protocol, converse)


async def obey(network: Libp2pNetwork, bitswap: Bitswap, words: list[str]) -> dict[str, object]:
    match words:
        case ["connect", address]:
            return {"peer": await network.connect([address])}
        case ["fetch", cid, *hints]:
            started = time.perf_counter()
            fetched = await bitswap.fetch(
                Cid.parse(cid), max_bytes=PLENTY, whole=True, hints=[PeerId(hint) for hint in hints]
            )
            return {"blocks": fetched.blocks, "bytes": fetched.bytes, "seconds": time.perf_counter() - started}
        case ["counters"]:
            counters = bitswap.counters
            return {"served": counters.served_blocks, "fetched": counters.fetched_blocks, "refused": counters.refused}
    raise ValueError(f"unknown command {words}")


async def main(state: Path, manner: str = "honest") -> None:
    state.mkdir(parents=True, exist_ok=True)
    identity = Identity.load_or_create(state / "identity")
    bitswap_store = BlockStore(state / "blocks")
    async with open_network(identity, HostOptions(listen=["/ip4/127.0.0.1/tcp/0"])) as network:
        bitswap = Bitswap(network, bitswap_store, LIMITS)
        async with trio.open_nursery() as nursery:
            if manner == "honest":
                nursery.start_soon(bitswap.run)
            else:
                answer_badly(network, manner)
            print(json.dumps({"address": network.addresses[0], "peer": network.peer_id}), flush=True)
            while line := await trio.to_thread.run_sync(sys.stdin.readline):
                try:
                    answer = await obey(network, bitswap, line.split())
                except P2PError as error:
                    answer = {"error": str(error)}
                print(json.dumps(answer), flush=True)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), *sys.argv[2:])
