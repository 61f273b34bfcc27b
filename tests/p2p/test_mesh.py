"""Gossip among real hosts: meshes that are mutual and reach everybody, and few bytes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from openlora.p2p.host import HostOptions, Libp2pNetwork, open_network  # first: it imports libp2p without its warnings

# isort: split
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from openlora.p2p.host.guard import Guard
from openlora.p2p.host.mesh import Router
from openlora.p2p.identity import Identity
from openlora.p2p.limits import Limits
from openlora.p2p.network import PeerId

TOPIC = "/test/mesh"


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            await scenario()

    trio.run(main)


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - a network offers no event for this
        await trio.sleep(0.02)


class Listener:
    """A host that notes what it hears of the topic."""

    def __init__(self, network: Libp2pNetwork) -> None:
        self.network = network
        self.heard: list[bytes] = []
        network.subscribe(TOPIC, self.hear)

    def hear(self, _neighbour: PeerId, data: bytes) -> None:
        self.heard.append(data)

    @property
    def mesh(self) -> set[str]:
        return {str(peer) for peer in self.network._gossip.gossipsub.mesh.get(TOPIC, ())}

    @property
    def subscribed(self) -> int:
        return len(self.network._gossip.peer_topics.get(TOPIC, ()))

    def sent_bytes(self) -> int:
        return sum(traffic.bytes_out for traffic in self.network.traffic().values())


@asynccontextmanager
async def hosts(count: int) -> AsyncIterator[list[Listener]]:
    """All know the first."""
    async with AsyncExitStack() as stack:
        listeners: list[Listener] = []
        for number in range(count):
            known = listeners[0].network.addresses if listeners else ()
            options = HostOptions(listen=("/ip4/127.0.0.1/tcp/0",), bootstrap=known)
            identity = Identity(bytes([number + 1]) * 32)
            listeners.append(Listener(await stack.enter_async_context(open_network(identity, options))))
        yield listeners


def test_ten_hosts_meshes_are_mutual_and_bring_each_message_once() -> None:
    async def scenario() -> None:
        async with hosts(10) as listeners:
            await until(lambda: all(listener.subscribed >= 8 for listener in listeners))
            await until(lambda: all(len(listener.mesh) >= 4 for listener in listeners))
            await trio.sleep(1.1)  # a heartbeat, which might have pruned
            for listener in listeners:
                inside = {str(other.network.peer_id) for other in listeners if listener.network.peer_id in other.mesh}
                assert inside == listener.mesh
            sent = sum(listener.sent_bytes() for listener in listeners)
            said = [bytes([number]) * 10_000 for number in range(10)]
            for listener, data in zip(listeners, said, strict=True):
                await listener.network.publish(TOPIC, data)
            await until(lambda: all(len(listener.heard) == 9 for listener in listeners))
            await trio.sleep(1.5)  # relays and a heartbeat
            sent = sum(listener.sent_bytes() for listener in listeners) - sent
            assert sent < 2.5 * 90 * 10_000  # 90 deliveries once each, and what hosts say at a start

    run(scenario)


def test_a_message_reaches_those_who_do_not_know_its_author() -> None:
    async def scenario() -> None:
        async with hosts(3) as (middle, left, right):
            for _ in range(Limits().strikes):
                left.network.penalise(right.network.peer_id, "kept apart by this test")
            await until(lambda: middle.subscribed == 2 and left.subscribed == right.subscribed == 1)
            await left.network.publish(TOPIC, b"news")
            with trio.fail_after(1.5):
                await until(lambda: right.heard == [b"news"])
            assert middle.heard == [b"news"]
            assert left.heard == []

    run(scenario)


def test_what_neighbours_say_of_messages_takes_bounded_memory() -> None:
    async def scenario() -> None:
        router, peer = Router(Guard(Limits())), ID(b"a peer")
        for number in range(200):
            msg_ids = [number.to_bytes(2, "big") + bytes([entry]) for entry in range(100)]
            await router.handle_idontwant(rpc_pb2.ControlIDontWant(messageIDs=[*msg_ids, bytes(10_000)]), peer)
        assert len(router._holders) == 1024
        router._prune_idontwant_entries()
        router._prune_idontwant_entries()
        assert not router._holds(peer, bytes(3))

    run(scenario)
