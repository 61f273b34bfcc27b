"""The network process: libp2p and everything that reads strangers' bytes, apart from the agent and its keys.

It connects to the agent's Unix socket, joins the network, and lives no longer than the agent. Its memory is capped:
should strangers find a way to make it grow, it fails, and is started anew.
"""

import argparse
import os
import resource
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import trio

from openlora.node.children import die_with_parent
from openlora.node.errors import OpenLoraError
from openlora.node.joining import connected
from openlora.node.logs import set_up
from openlora.node.network.binding import authoriser
from openlora.node.network.fetching import Fetching
from openlora.node.network.messages import Command, Failed
from openlora.node.network.options import NetworkOptions
from openlora.node.network.service import NetworkService, Peer, Wire
from openlora.node.network.trio_frames import TrioFrames
from openlora.node.secrecy import leave_no_core
from openlora.p2p.bitswap.service import Bitswap
from openlora.p2p.content.blockstore import BlockStore
from openlora.p2p.errors import P2PError
from openlora.p2p.host.network import HostOptions, open_network
from openlora.p2p.identity import Identity
from openlora.p2p.network import Network
from openlora.p2p.presence.announcer import Announcer
from openlora.p2p.presence.book import PresenceBook
from openlora.p2p.presence.sequence import SequenceCounter
from openlora.p2p.presence.service import PresenceService
from openlora.typed_data import Domain

_CANNOT_JOIN: Final = 2  # exit code


@dataclass(frozen=True, slots=True)
class Arguments:
    """The child's command line."""

    socket: str  # see `openlora.node.joining.connected`
    state: Path
    options: NetworkOptions


def main(argv: Sequence[str]) -> int:
    """Join, serve. A network that cannot be joined is one `Failed` sentence to the agent and exit code 2."""
    die_with_parent()
    leave_no_core()
    arguments = _parse(argv)
    set_up(arguments.options.log, os.environ)
    _limit_memory(arguments.options.memory_bytes)
    return trio.run(_serve_agent, arguments)


async def _serve_agent(arguments: Arguments) -> int:
    agent = trio.socket.from_stdlib_socket(connected(arguments.socket))
    async with trio.SocketStream(agent) as stream, AsyncExitStack() as stack:
        frames = TrioFrames[Command](stream, Command)
        try:
            peer = await _join(stack, arguments)
        except (OpenLoraError, P2PError, OSError) as error:
            await frames.send(Failed(message=f"the peer-to-peer network cannot be joined: {error}"))
            return _CANNOT_JOIN
        await NetworkService(frames, peer).run()
    return 0


async def _join(stack: AsyncExitStack, arguments: Arguments) -> Peer:
    """A place in the network, for as long as `stack` is open. Raises P2PError, OSError."""
    options = arguments.options
    identity = Identity.load_or_create(arguments.state / "libp2p.key")
    blocks = BlockStore(Path(options.content_dir), max_bytes=options.max_content_bytes)
    sequence = SequenceCounter(arguments.state / "presence.sequence")
    host = HostOptions(
        listen=options.listen,
        bootstrap=options.bootstrap,
        announce=options.announce,
        mdns=options.mdns,
        nat=options.nat,
    )
    network = await stack.enter_async_context(open_network(identity, host))
    registry = Domain(options.chain_id, options.registry)

    def wire() -> Wire:
        traffic = network.traffic().values()
        bytes_in, bytes_out = sum(each.bytes_in for each in traffic), sum(each.bytes_out for each in traffic)
        return Wire(bytes_in, bytes_out, network.refusals)

    return make_peer(network, blocks, sequence, registry, wire)


def make_peer(
    network: Network,
    blocks: BlockStore,
    sequence: SequenceCounter,
    registry: Domain,
    wire: Callable[[], Wire] = Wire,
) -> Peer:
    """What runs on top of a network. `registry` is the domain that operators sign their bindings for."""
    trusted: dict[str, str] = {}
    announcer = Announcer(network, registry.chain_id, sequence)
    book = PresenceBook(registry.chain_id, authoriser(registry, trusted), own=network.peer_id, made=announcer.made)
    bitswap = Bitswap(network, blocks)
    return Peer(
        network=network,
        bitswap=bitswap,
        fetching=Fetching(bitswap),
        trusted=trusted,
        book=book,
        presence=PresenceService(network, book, announcer),
        announcer=announcer,
        wire=wire,
    )


def _limit_memory(data_bytes: int) -> None:
    """Private memory only (RLIMIT_DATA, since Linux 4.7 with anonymous maps): files that are mapped cost nothing."""
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))


def _parse(argv: Sequence[str]) -> Arguments:
    parser = argparse.ArgumentParser(prog="openlora.node.network")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--options", type=lambda text: msgspec.json.decode(text, type=NetworkOptions), required=True)
    return Arguments(**vars(parser.parse_args(argv)))
