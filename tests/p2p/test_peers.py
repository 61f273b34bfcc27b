"""What the host remembers of peers: bounded for each and in all, and never short of ourselves."""

from hashlib import sha256

from openlora.p2p.host.peers import KnownPeers  # brings libp2p, tamed

# isort: split
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import PublicKey
from libp2p.peer.id import ID
from libp2p.peer.peerstore import create_signed_peer_record
from multiaddr import Multiaddr

STRANGERS = 64
KEYS = create_new_key_pair(bytes(32))
OWN = ID.from_pubkey(KEYS.public_key)


def store() -> KnownPeers:
    known = KnownPeers(STRANGERS)
    known.add_key_pair(OWN, KEYS)
    known.needed = lambda: (OWN,)
    return known


def stranger(number: int) -> ID:
    return ID(b"\x12\x20" + sha256(str(number).encode()).digest())


def address(number: int) -> Multiaddr:
    return Multiaddr(f"/ip4/10.{number >> 16}.{number >> 8 & 255}.{number & 255}/tcp/4001")


def test_a_crowd_pushes_out_neither_us_nor_those_who_are_needed() -> None:
    known = store()
    neighbour = stranger(0)
    known.needed = lambda: (OWN, neighbour)
    for number in range(20 * STRANGERS):
        known.add_addrs(stranger(number), [address(number)], 3600)
    assert known.privkey(OWN) == KEYS.private_key
    assert known.addrs(neighbour) == [address(0)]
    assert len(known.peer_ids()) <= 2 + STRANGERS + STRANGERS // 16


def test_the_first_known_is_forgotten_first() -> None:
    known = store()
    for number in range(2 * STRANGERS):
        known.add_pubkey(*_someone(number))
    assert not known.has_peer(_someone(0)[0])
    assert known.has_peer(_someone(2 * STRANGERS - 1)[0])


def test_of_one_peer_a_few_addresses_and_protocols_are_kept() -> None:
    known = store()
    for _ in range(3):
        known.add_addrs(stranger(1), [address(number) for number in range(1000)], 3600)
        known.add_protocols(stranger(1), [f"/{number}" for number in range(1000)] + ["/" + "x" * 10_000])
    known.add_addrs(stranger(2), [Multiaddr("/dns4/" + ".".join(["long"] * 40) + "/tcp/1")], 3600)
    known.add_protocols(stranger(2), ["/short", "/" + "x" * 10_000])
    assert known.addrs(stranger(1)) == [address(number) for number in range(16)]
    assert len(known.get_protocols(stranger(1))) == 64
    assert known.addrs(stranger(2)) == []
    assert known.get_protocols(stranger(2)) == ["/short"]


def test_signed_records_give_their_addresses_and_are_not_kept() -> None:
    known = store()
    peer, _ = _someone(1)
    keys = create_new_key_pair(sha256(b"1").digest())
    record = create_signed_peer_record(peer, [address(1)], keys.private_key)
    assert known.consume_peer_record(record, 3600)
    assert known.addrs(peer) == [address(1)]
    assert known.get_peer_record(peer) is None


def _someone(number: int) -> tuple[ID, PublicKey]:
    keys = create_new_key_pair(sha256(str(number).encode()).digest())
    return ID.from_pubkey(keys.public_key), keys.public_key
