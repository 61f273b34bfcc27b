"""Gossip among real hosts: meshes that are mutual and reach everybody, and few bytes."""

import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
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
        with trio.fail_after(60):
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


def sent_bytes(listeners: Sequence[Listener]) -> int:
    return sum(each.bytes_out for listener in listeners for each in listener.network.traffic().values())


async def quiet(listeners: Sequence[Listener]) -> None:
    """Returns when a second, with a heartbeat, has passed in which hosts had hardly anything to say."""
    before, now = -1_000_000, sent_bytes(listeners)
    while now - before > 10_000:
        await trio.sleep(1)
        before, now = now, sent_bytes(listeners)


@pytest.mark.slow
def test_ten_hosts_meshes_are_mutual_and_bring_each_message_once() -> None:
    async def scenario() -> None:
        async with hosts(10) as listeners:
            await until(lambda: all(listener.subscribed >= 8 for listener in listeners))
            await until(lambda: all(len(listener.mesh) >= 4 for listener in listeners))
            await quiet(listeners)
            for listener in listeners:
                inside = {str(other.network.peer_id) for other in listeners if listener.network.peer_id in other.mesh}
                assert inside == listener.mesh
            costs = []
            for number, listener in enumerate(listeners, 1):
                sent = sent_bytes(listeners)
                await listener.network.publish(TOPIC, listener.network.peer_id.encode() * 200)  # 10 KB
                await until(lambda number=number: sum(len(each.heard) for each in listeners) == 9 * number)
                await trio.sleep(1)  # relays and a heartbeat
                costs.append(sent_bytes(listeners) - sent)
            # Each of 9 deliveries once, and who has what; the median, for relays go out when a machine stalls.
            assert statistics.median(costs) < 1.5 * 9 * 10_000

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
