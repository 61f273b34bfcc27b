"""What every Network promises, held against both implementations."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from hashlib import sha256

import pytest
import trio

from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.errors import GossipRefused, PeerUnreachable, StreamLost
from openlora.p2p.host import HostOptions, open_network
from openlora.p2p.identity import Identity, verify
from openlora.p2p.limits import Limits
from openlora.p2p.memory import MemoryHub
from openlora.p2p.network import Network, PeerId, Stream

PROTOCOL = "/openlora/1/test"
TOPIC = "/openlora/1/31337/test"
LIMITS = Limits(strikes=3, streams_per_handler=2)
NOBODY = Identity(sha256(b"nobody").digest()).peer_id

World = Callable[[int], AbstractAsyncContextManager[Sequence[Network]]]


@asynccontextmanager
async def memory_world(count: int) -> AsyncIterator[Sequence[Network]]:
    async with MemoryHub(limits=LIMITS) as hub:
        yield [hub.network(f"peer {index}") for index in range(count)]


@asynccontextmanager
async def libp2p_world(count: int) -> AsyncIterator[Sequence[Network]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                open_network(
                    Identity(sha256(f"peer {index}".encode()).digest()),
                    HostOptions(listen=["/ip4/127.0.0.1/tcp/0"]),
                    LIMITS,
                )
            )
            for index in range(count)
        ]


@pytest.fixture(params=[memory_world, libp2p_world], ids=["memory", "libp2p"])
def world(request: pytest.FixtureRequest) -> World:
    chosen: World = request.param
    return chosen


def run(world: World, count: int, scenario: Callable[..., Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(10):
            async with world(count) as networks:
                await scenario(*networks)

    trio.run(main)


async def until(true: Callable[[], bool]) -> None:
    """For what a network offers no event for."""
    while not true():  # noqa: ASYNC110
        await trio.sleep(0.01)


async def _echo(stream: Stream) -> None:
    while piece := await stream.read(1000):
        await stream.write(piece)
    await stream.close()


async def _read_all(stream: Stream) -> bytes:
    data = b""
    while piece := await stream.read(100_000):
        data += piece
    return data


def test_a_stream_carries_bytes_both_ways_and_closes_one_side_at_a_time(world: World) -> None:
    async def scenario(a: Network, b: Network) -> None:
        b.handle(PROTOCOL, _echo)
        assert await a.connect(b.addresses) == b.peer_id
        stream = await a.open_stream(b.peer_id, ["/unknown", PROTOCOL])
        assert stream.peer == b.peer_id
        await stream.write(b"hello")
        assert await stream.read(2) == b"he"
        await stream.write(b"")
        await stream.write(b", world")
        await stream.close()
        assert await _read_all(stream) == b"llo, world"
        assert await stream.read(1) == b""

    run(world, 2, scenario)


def test_the_handler_learns_who_calls(world: World) -> None:
    async def scenario(a: Network, b: Network) -> None:
        called = trio.Event()

        async def handler(stream: Stream) -> None:
            assert stream.peer == a.peer_id
            called.set()

        b.handle(PROTOCOL, handler)
        await a.connect(b.addresses)
        await a.open_stream(b.peer_id, [PROTOCOL])
        await called.wait()

    run(world, 2, scenario)


def test_more_than_a_window_flows_while_it_is_read(world: World) -> None:
    async def scenario(a: Network, b: Network) -> None:
        data = bytes(range(256)) * 12_000  # 3 MB
        heard: list[bytes] = []

        async def handler(stream: Stream) -> None:
            heard.append(await _read_all(stream))
            await stream.write(b"done")
            await stream.close()

        b.handle(PROTOCOL, handler)
        await a.connect(b.addresses)
        stream = await a.open_stream(b.peer_id, [PROTOCOL])
        await stream.write(data)
        await stream.close()
        assert await _read_all(stream) == b"done"
        assert heard == [data]

    run(world, 2, scenario)


def test_a_writer_waits_for_a_reader_that_does_not_read(world: World) -> None:
    async def scenario(a: Network, b: Network) -> None:
        proceed = trio.Event()

        async def handler(stream: Stream) -> None:
            await proceed.wait()
            await stream.write(str(len(await _read_all(stream))).encode())
            await stream.close()

        b.handle(PROTOCOL, handler)
        await a.connect(b.addresses)
        stream = await a.open_stream(b.peer_id, [PROTOCOL])
        written = 0
        with trio.move_on_after(0.3):
            while True:
                await stream.write(bytes(10_000))
                written += 10_000
        assert 100_000 < written < 2_000_000
        proceed.set()
        await stream.close()
        assert int(await _read_all(stream)) >= written

    run(world, 2, scenario)


def test_a_stream_is_reset_when_its_handler_raises(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(a: Network, b: Network) -> None:
        async def handler(stream: Stream) -> None:
            raise ZeroDivisionError

        b.handle(PROTOCOL, handler)
        await a.connect(b.addresses)
        stream = await a.open_stream(b.peer_id, [PROTOCOL])
        with pytest.raises(StreamLost):
            await stream.read(1)
        b.handle(PROTOCOL, _echo)
        await (await a.open_stream(b.peer_id, [PROTOCOL])).write(b"all else goes on")

    run(world, 2, scenario)
    assert "failed" in caplog.text


def test_a_reset_is_seen_on_both_sides(world: World) -> None:
    async def scenario(a: Network, b: Network) -> None:
        lost = trio.Event()

        async def handler(stream: Stream) -> None:
            try:
                await _read_all(stream)
            except StreamLost:
                lost.set()

        b.handle(PROTOCOL, handler)
        await a.connect(b.addresses)
        stream = await a.open_stream(b.peer_id, [PROTOCOL])
        await stream.write(b"half")
        await stream.reset()
        await lost.wait()
        with pytest.raises(StreamLost):
            await stream.write(b"more")
        with pytest.raises(StreamLost):
            await stream.read(1)

    run(world, 2, scenario)


def test_streams_of_one_protocol_are_capped_for_each_peer(world: World) -> None:
    async def scenario(a: Network, b: Network) -> None:
        async def handler(stream: Stream) -> None:
            await stream.write(b"served")
            await _read_all(stream)

        b.handle(PROTOCOL, handler)
        await a.connect(b.addresses)
        first = await a.open_stream(b.peer_id, [PROTOCOL])
        second = await a.open_stream(b.peer_id, [PROTOCOL])
        assert await first.read(6) == await second.read(6) == b"served"
        third = await a.open_stream(b.peer_id, [PROTOCOL])
        with pytest.raises(StreamLost):
            await third.read(6)
        await first.close()
        while True:  # until b has noticed
            with trio.move_on_after(1):
                again = await a.open_stream(b.peer_id, [PROTOCOL])
            try:
                assert await again.read(6) == b"served"
                return
            except StreamLost:
                continue

    run(world, 2, scenario)


def test_nobody_and_unknown_protocols_are_unreachable(world: World) -> None:
    async def scenario(a: Network, b: Network) -> None:
        await a.connect(b.addresses)
        with pytest.raises(PeerUnreachable):
            await a.open_stream(b.peer_id, ["/unknown"])
        with pytest.raises(PeerUnreachable):
            await a.open_stream(NOBODY, [PROTOCOL])
        with pytest.raises(PeerUnreachable):
            await a.connect([f"/ip4/127.0.0.1/tcp/1/p2p/{NOBODY}"])

    run(world, 2, scenario)


def test_both_sides_greet_and_see_each_other(world: World) -> None:
    async def scenario(a: Network, b: Network) -> None:
        met: list[tuple[PeerId, PeerId]] = []
        both = trio.Event()

        def greeter(us: Network) -> Callable[[PeerId], Awaitable[None]]:
            async def greet(peer: PeerId) -> None:
                met.append((us.peer_id, peer))
                if len(met) == 2:
                    both.set()

            return greet

        a.on_connect(greeter(a))
        b.on_connect(greeter(b))
        await a.connect(b.addresses)
        await both.wait()
        assert sorted(met) == sorted([(a.peer_id, b.peer_id), (b.peer_id, a.peer_id)])
        assert a.connected() == {b.peer_id}
        assert b.connected() == {a.peer_id}

    run(world, 2, scenario)


def test_signatures_are_of_the_peer_id(world: World) -> None:
    async def scenario(a: Network) -> None:
        await trio.lowlevel.checkpoint()
        assert verify(a.peer_id, b"data", a.sign(b"data"))

    run(world, 1, scenario)


async def _gossip_until_heard(network: Network, data: bytes, heard: trio.Event) -> None:
    """Meshes take a second to form, and what is said before is said to nobody."""
    number = 0
    while not heard.is_set():
        await network.publish(TOPIC, data + b" %d" % number)
        number += 1
        with trio.move_on_after(0.2):
            await heard.wait()


def test_gossip_goes_round_corners_and_invalid_messages_do_not(world: World) -> None:
    async def scenario(a: Network, b: Network, c: Network) -> None:
        at_b: list[bytes] = []
        at_c: list[bytes] = []
        heard = trio.Event()

        def relay(peer: PeerId, data: bytes) -> None:
            assert peer == a.peer_id
            at_b.append(data)
            if data.startswith(b"bad"):
                raise GossipRefused("test-bad", "a bad message")

        def receive(peer: PeerId, data: bytes) -> None:
            assert peer == b.peer_id
            at_c.append(data)
            heard.set()

        a.subscribe(TOPIC, lambda _peer, _data: pytest.fail("one's own message came back"))
        b.subscribe(TOPIC, relay)
        c.subscribe(TOPIC, receive)
        for _ in range(Limits().strikes):
            a.penalise(c.peer_id, "kept apart")  # else they find each other, and there is no corner
        await a.connect(b.addresses)
        await b.connect(c.addresses)
        await _gossip_until_heard(a, b"good", heard)
        await a.publish(TOPIC, b"bad")
        await a.publish(TOPIC, b"last")
        await until(lambda: b"last" in at_c)
        assert b"bad" in at_b
        assert b"bad" not in at_c
        assert len(at_b) == len(set(at_b))

    run(world, 3, scenario)


def test_gossip_that_is_too_large_is_refused_at_the_source(world: World) -> None:
    async def scenario(a: Network) -> None:
        with pytest.raises(GossipRefused) as refusal:
            await a.publish(TOPIC, bytes(LIMITS.gossip_message_bytes + 1))
        assert refusal.value.code == "gossip-too-large"

    run(world, 1, scenario)


def test_providers_are_found_through_others_and_can_be_opened_streams_to(world: World) -> None:
    async def scenario(a: Network, b: Network, c: Network) -> None:
        cid = Cid.of(Codec.RAW, b"adapter")
        a.handle(PROTOCOL, _echo)
        await a.connect(b.addresses)
        await c.connect(b.addresses)
        await a.provide(cid)
        assert await c.providers(cid, 5) == [a.peer_id]
        assert a.peer_id not in await a.providers(cid, 5)
        assert await c.providers(Cid.of(Codec.RAW, b"another"), 5) == []
        stream = await c.open_stream(a.peer_id, [PROTOCOL])
        await stream.write(b"hello")
        assert await stream.read(5) == b"hello"

    run(world, 3, scenario)


def test_too_many_misdeeds_are_a_ban(world: World) -> None:
    async def scenario(a: Network, b: Network) -> None:
        b.handle(PROTOCOL, _echo)
        await a.connect(b.addresses)
        stream = await a.open_stream(b.peer_id, [PROTOCOL])
        await stream.write(b"x")
        assert await stream.read(1) == b"x"
        b.penalise(a.peer_id, "test-misdeed")
        b.penalise(a.peer_id, "test-misdeed")
        assert a.peer_id in b.connected()
        b.penalise(a.peer_id, "test-misdeed")
        with pytest.raises(StreamLost):
            await stream.read(1)
        await until(lambda: a.peer_id not in b.connected() and b.peer_id not in a.connected())
        with pytest.raises((PeerUnreachable, StreamLost)):
            await (await a.open_stream(b.peer_id, [PROTOCOL])).read(1)
        with pytest.raises(PeerUnreachable):
            await b.connect(a.addresses)

    run(world, 2, scenario)
