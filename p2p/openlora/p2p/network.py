"""What the library needs of a network: streams between peers, gossip, and finding who has what.

Two implementations: `host.Libp2pNetwork`, the real one, and `memory.MemoryNetwork`, whole networks inside one process.
Everything here is trio; every read and write may be cancelled, and a cancelled stream can only be reset.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import NewType, Protocol

from openlora.p2p.content.cid import Cid

PeerId = NewType("PeerId", str)  # base58btc: "12D3Koo…"


class Stream(Protocol):
    """One ordered, flow-controlled conversation with one peer. Raises StreamLost when the peer or the path is gone."""

    @property
    def peer(self) -> PeerId: ...

    async def read(self, max_bytes: int) -> bytes:
        """At least one byte and at most `max_bytes`; empty when the peer has closed its side."""
        ...

    async def write(self, data: bytes) -> None:
        """Returns once the peer's window has taken all of it."""
        ...

    async def close(self) -> None:
        """Ends our side; what the peer still says can be read."""
        ...

    async def reset(self) -> None:
        """Gives the stream up at once, in both directions."""
        ...


Handler = Callable[[Stream], Awaitable[None]]
Validator = Callable[[PeerId, bytes], None]  # raises GossipRefused, which it counts: the message goes no further


class Network(Protocol):
    """One peer's place in the network."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def addresses(self) -> Sequence[str]:
        """Where others can dial us: multiaddrs that end in /p2p/<peer id>."""
        ...

    def sign(self, data: bytes) -> bytes:
        """A signature with the key that the peer id is made of."""
        ...

    def connected(self) -> frozenset[PeerId]: ...

    async def connect(self, addresses: Sequence[str]) -> PeerId:
        """Dials the addresses, all of one peer, until one answers. Raises PeerUnreachable."""
        ...

    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> Stream:
        """A new stream that speaks the first of `protocols` the peer knows. Raises PeerUnreachable."""
        ...

    def handle(self, protocol: str, handler: Handler) -> None:
        """Every stream that a peer opens for `protocol` gets a task of its own; it is reset if the handler raises."""
        ...

    def on_connect(self, greet: Callable[[PeerId], Awaitable[None]]) -> None:
        """`greet` runs, in a task of its own, for every peer from now on when it connects."""
        ...

    def subscribe(self, topic: str, validate: Validator) -> None:
        """Joins a topic. `validate` sees each message of others once, before it is relayed, and does the delivery."""
        ...

    async def publish(self, topic: str, data: bytes) -> None: ...

    async def provide(self, cid: Cid) -> None:
        """Tells the DHT that we have `cid`, now and again until the process ends."""
        ...

    async def providers(self, cid: Cid, limit: int) -> Sequence[PeerId]:
        """Peers that say they have `cid`; they can be opened streams to."""
        ...

    def penalise(self, peer: PeerId, reason: str) -> None:
        """Notes a misdeed; a peer with too many is disconnected and banned for a while."""
        ...
