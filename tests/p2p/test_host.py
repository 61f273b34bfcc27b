"""Real hosts in one loop: finding each other, coming back, and leaving nothing behind."""

import logging
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from hashlib import sha256

import pytest
import trio

from openlora.p2p.errors import P2PError
from openlora.p2p.host import HostOptions, Libp2pNetwork, open_network
from openlora.p2p.identity import Identity
from openlora.p2p.network import PeerId, Stream

PROTOCOL = "/openlora/1/test"
TOPIC = "/openlora/1/31337/test"


def identity(name: str) -> Identity:
    return Identity(sha256(name.encode()).digest())


def options(*bootstrap: str, port: int = 0) -> HostOptions:
    return HostOptions(listen=[f"/ip4/127.0.0.1/tcp/{port}"], bootstrap=bootstrap)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            await scenario()

    trio.run(main)


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - a network offers no event for this
        await trio.sleep(0.02)


async def _echo(stream: Stream) -> None:
    while piece := await stream.read(1000):
        await stream.write(piece)
    await stream.close()


def test_nodes_that_know_one_meet_all_the_others() -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(open_network(identity("first"), options()))
            others = [
                await stack.enter_async_context(open_network(identity(f"{n}"), options(*first.addresses)))
                for n in range(3)
            ]
            nodes: list[Libp2pNetwork] = [first, *others]
            await until(lambda: all(len(node.connected()) == 3 for node in nodes))
            assert all(node.refusals == {} for node in nodes)

    run(scenario)


def test_a_bootstrap_peer_that_comes_later_or_again_is_found() -> None:
    async def scenario() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{identity('late').peer_id}"
        async with open_network(identity("early"), options(address)) as early:
            for _ in range(2):
                async with open_network(identity("late"), options(port=port)) as late:
                    await until(lambda: late.peer_id in early.connected())
                await until(lambda: not early.connected())

    run(scenario)


def test_gossip_of_a_restarted_node_is_not_taken_for_old() -> None:
    async def scenario() -> None:
        heard: set[bytes] = set()

        def deliver(_peer: PeerId, data: bytes) -> None:
            heard.add(data)

        async with open_network(identity("listener"), options()) as listener:
            listener.subscribe(TOPIC, deliver)
            for life in range(2):
                async with open_network(identity("speaker"), options()) as speaker:
                    speaker.subscribe(TOPIC, lambda _peer, _data: None)
                    await speaker.connect(listener.addresses)
                    await until(lambda: bool(speaker._gossip.peer_topics.get(TOPIC)))
                    said = {b"life %d, message %d" % (life, number) for number in range(50)}
                    for message in said:
                        await speaker.publish(TOPIC, message)
                    await until(lambda said=said: said <= heard)

    run(scenario)


def test_streams_leave_nothing_behind() -> None:
    async def scenario() -> None:
        async with (
            open_network(identity("a"), options()) as a,
            open_network(identity("b"), options()) as b,
        ):
            a.handle(PROTOCOL, _echo)
            await b.connect(a.addresses)
            for number in range(200):
                stream = await b.open_stream(a.peer_id, [PROTOCOL])
                await stream.write(b"x")
                assert await stream.read(1) == b"x"
                if number % 2:
                    await stream.close()
                    assert await stream.read(1) == b""
                else:
                    await stream.reset()
            connections = [
                connection for node in (a, b) for several in node._swarm.connections.values() for connection in several
            ]
            await until(lambda: all(len(connection.get_streams()) < 10 for connection in connections))
            assert a._guard.buffered_bytes == b._guard.buffered_bytes == 0

    run(scenario)


def test_a_port_that_is_taken_is_said() -> None:
    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(P2PError, match="cannot listen on"):
                async with open_network(identity("a"), options(port=int(taken.getsockname()[1]))):
                    pass

    run(scenario)


def test_a_port_of_another_node_of_the_same_user_is_taken() -> None:
    async def scenario() -> None:
        async with open_network(identity("a"), options()) as a:
            port = int(a.addresses[0].split("/")[4])
            with pytest.raises(P2PError, match="the port is taken"):
                async with open_network(identity("b"), options(port=port)):
                    pass

    run(scenario)


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/127.0.0.1/tcp/4001/p2p/nonsense",
        "/ip4/999.0.0.1/tcp/4001/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp",
    ],
)
def test_addresses_that_are_none_are_said(bad: str) -> None:
    async def scenario() -> None:
        with pytest.raises(P2PError):
            async with open_network(identity("a"), options(bad)):
                pass
        async with open_network(identity("a"), options()) as a:
            with pytest.raises(P2PError):
                await a.connect([bad])
            with pytest.raises(P2PError):
                await a.connect(a.addresses)

    run(scenario)


def test_importing_and_running_it_leaves_logging_alone() -> None:
    program = """
import logging, os, trio
from openlora.p2p.host import HostOptions, open_network
from openlora.p2p.identity import Identity
async def main():
    options = HostOptions(listen=["/ip4/127.0.0.1/tcp/0"])
    a, b = (open_network(Identity(os.urandom(32)), options) for _ in range(2))
    async with a as a, b as b:
        await a.connect(b.addresses)
trio.run(main)
assert logging.getLogger().handlers == [], logging.getLogger().handlers
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert logging.getLogger("libp2p").propagate is False
