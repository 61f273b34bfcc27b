"""What the host remembers of peers: little of each, and of few who are not here.

py-libp2p's store keeps every address and protocol that a peer names of itself (some 2 MiB for one message of identify),
of 1,000 peers. When there are more, it drops those without an address first: our own entry, with our key, is one.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from libp2p.crypto.keys import PublicKey
from libp2p.peer.envelope import Envelope
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from multiaddr import Multiaddr

_ADDRESSES: Final = 16  # of one peer
_ADDRESS_BYTES: Final = 128
_PROTOCOLS: Final = 64
_PROTOCOL_CHARACTERS: Final = 64


class KnownPeers(PeerStore):
    """Remembers `strangers` peers besides those that are `needed`, by default nobody; the first known go first."""

    def __init__(self, strangers: int) -> None:
        super().__init__()
        self._strangers = strangers
        self.needed: Callable[[], Iterable[ID]] = tuple

    def add_pubkey(self, peer_id: ID, pubkey: PublicKey) -> None:
        super().add_pubkey(peer_id, pubkey)
        self._enforce_peer_limit()

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        known = self.peer_data_map[peer_id].get_addrs() if peer_id in self.peer_data_map else []
        new = [each for each in addrs[:_ADDRESSES] if each not in known and len(each.to_bytes()) <= _ADDRESS_BYTES]
        super().add_addrs(peer_id, new[: max(0, _ADDRESSES - len(known))], ttl)
        self._enforce_peer_limit()

    def add_protocols(self, peer_id: ID, protocols: Sequence[str]) -> None:
        """In the place of what was known: whoever tells us of protocols tells us of all."""
        self.set_protocols(peer_id, protocols)

    def set_protocols(self, peer_id: ID, protocols: Sequence[str]) -> None:
        short = [each for each in protocols[:_PROTOCOLS] if len(each) <= _PROTOCOL_CHARACTERS]
        super().set_protocols(peer_id, short)
        self._enforce_peer_limit()

    def consume_peer_record(self, envelope: Envelope, ttl: int) -> bool:
        """Takes the addresses. The record would only make our answers in the DHT longer."""
        taken = super().consume_peer_record(envelope, ttl)
        self.peer_record_map.clear()
        return taken

    def _enforce_peer_limit(self) -> None:
        """Called by the library, too, when it cleans up. Goes through all of them for one newcomer in sixteen."""
        slack = self._strangers // 16
        if len(self.peer_data_map) <= self._strangers + slack:
            return
        needed = frozenset(self.needed())
        strangers = [peer for peer in self.peer_data_map if peer not in needed]
        for peer in strangers[: max(0, len(strangers) - self._strangers)]:
            self.clear_peerdata(peer)
