"""The network inside one process: links that stall, lose gossip and break. Its contract: test_network_contract.py."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from openlora.p2p.errors import PeerUnreachable, StreamLost
from openlora.p2p.identity import verify
from openlora.p2p.memory import MemoryHub
from openlora.p2p.network import PeerId, Stream

PROTOCOL = "/openlora/1/test"
TOPIC = "/openlora/1/31337/test"


def run(scenario: Callable[[MemoryHub], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(5):
            async with MemoryHub(window_bytes=1024) as hub:
                await scenario(hub)

    trio.run(main)


async def _echo(stream: Stream) -> None:
    while piece := await stream.read(64):
        await stream.write(piece)
    await stream.close()


def test_peer_ids_follow_from_names_and_are_keys() -> None:
    async def scenario(hub: MemoryHub) -> None:
        a = hub.network("a")
        assert a.peer_id.startswith("12D3Koo")
        assert verify(a.peer_id, b"said", a.sign(b"said"))
        assert a.peer_id == MemoryHub().network("a").peer_id != hub.network("b").peer_id

    run(scenario)


def test_a_stalled_link_delivers_when_it_flows_again() -> None:
    async def scenario(hub: MemoryHub) -> None:
        a, b = hub.network("a"), hub.network("b")
        b.handle(PROTOCOL, _echo)
        stream = await a.open_stream(b.peer_id, [PROTOCOL])
        await stream.write(b"one")
        assert await stream.read(64) == b"one"
        hub.stall(a, b)
        await stream.write(b"two")
        with trio.move_on_after(0.02) as waiting:
            await stream.read(64)
        assert waiting.cancelled_caught
        hub.stall(a, b, stalled=False)
        assert await stream.read(64) == b"two"

    run(scenario)


def test_cutting_a_link_breaks_its_streams_and_it_can_be_dialled_again() -> None:
    async def scenario(hub: MemoryHub) -> None:
        a, b = hub.network("a"), hub.network("b")
        b.handle(PROTOCOL, _echo)
        stream = await a.open_stream(b.peer_id, [PROTOCOL])
        hub.stall(a, b)
        hub.cut(a, b)
        with pytest.raises(StreamLost):
            await stream.read(1)
        with pytest.raises(StreamLost):
            await stream.write(b"more")
        assert b.peer_id not in a.connected()
        await a.open_stream(b.peer_id, [PROTOCOL])
        hub.cut(a, b, forbidden=True)
        with pytest.raises(PeerUnreachable):
            await a.open_stream(b.peer_id, [PROTOCOL])

    run(scenario)


def test_lost_gossip_takes_the_other_way_round() -> None:
    async def scenario(hub: MemoryHub) -> None:
        a, b, c = (hub.network(name) for name in "abc")
        heard: list[tuple[PeerId, bytes]] = []
        arrived = trio.Event()

        def deliver(peer: PeerId, data: bytes) -> None:
            heard.append((peer, data))
            arrived.set()

        b.subscribe(TOPIC, deliver)
        c.subscribe(TOPIC, lambda _peer, _data: None)
        await a.connect(b.addresses)
        await a.connect(c.addresses)
        await b.connect(c.addresses)
        hub.lose(a, b)
        await a.publish(TOPIC, b"hello")
        await arrived.wait()
        assert heard == [(c.peer_id, b"hello")]

    run(scenario)


def test_a_killed_peer_is_gone() -> None:
    async def scenario(hub: MemoryHub) -> None:
        a, b = hub.network("a"), hub.network("b")
        await a.connect(b.addresses)
        hub.kill(b)
        assert a.connected() == frozenset()
        with pytest.raises(PeerUnreachable):
            await a.connect(b.addresses)

    run(scenario)
