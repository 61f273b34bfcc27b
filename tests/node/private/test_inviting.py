"""Which nodes are asked to take a private job, and that nothing is in escrow where there is none."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from openlora.node.errors import NetworkError
from openlora.node.market import Offer
from openlora.node.private import inviting
from openlora.node.private.inviting import able, meet
from openlora.p2p.presence.record import Ask, Presence
from tests.node.network.fake_peers import BASE_ID, FakePeers

BASE = bytes.fromhex(BASE_ID)
OFFER = Offer(100, 50, 10, 30, private=True)


@pytest.fixture
def peers(tmp_path: Path) -> FakePeers:
    return FakePeers(tmp_path)


def node(peers: FakePeers, name: str, in_price: int, out_price: int, base_id: str = BASE_ID) -> Presence:
    peers.peer(name, base_id=base_id)
    status = msgspec.structs.replace(peers.records[-1].status, ask=Ask(str(in_price), str(out_price)))
    peers.records[-1] = msgspec.structs.replace(peers.records[-1], status=status)
    return peers.records[-1]


def test_those_that_serve_the_base_for_the_bid_are_asked_the_cheapest_first(peers: FakePeers):
    dear, cheap = node(peers, "dear", 10, 30), node(peers, "cheap", 1, 2)
    node(peers, "asks more for input", 11, 1)
    node(peers, "asks more for output", 1, 31)
    node(peers, "another base", 1, 1, base_id="02" * 32)
    assert able(peers.records, BASE, (10, 30), None) == [cheap, dear]
    assert able(peers.records, BASE, (10, 30), dear.operator) == [dear]


def market(encryption_key: bytes) -> Any:
    async def call(value: Any) -> Any:
        return value

    known = SimpleNamespace(encryption_key=encryption_key)
    return SimpleNamespace(chain=SimpleNamespace(call=call), nodes=SimpleNamespace(node=lambda operator: known))


async def test_a_node_that_could_be_asked_is_met(peers: FakePeers):
    node(peers, "one", 1, 1)
    await meet(market(b"\x01" * 32), peers.peer("client", staked=False), BASE, OFFER)


async def test_where_none_takes_private_jobs_nothing_is_submitted(peers: FakePeers, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inviting, "MEET_S", 0.2)
    client = peers.peer("client", staked=False)
    with pytest.raises(NetworkError, match="no node that takes private jobs of this base at this price"):
        await meet(market(b"\x01" * 32), client, BASE, OFFER)
    node(peers, "one", 1, 1)
    with pytest.raises(NetworkError, match="no node that takes private jobs"):
        await meet(market(bytes(32)), client, BASE, OFFER)
