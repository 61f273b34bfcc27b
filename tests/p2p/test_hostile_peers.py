"""Attacks on the host itself: each is refused with a counted reason, costs little, and honest peers do not notice."""

import gc
import logging
import resource
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from os import urandom
from pathlib import Path

import pytest
import trio

from openlora.p2p.content.dag_pb import encode_fields
from openlora.p2p.host import HostOptions, Libp2pNetwork, open_network
from openlora.p2p.identity import Identity
from openlora.p2p.limits import Limits
from openlora.p2p.network import PeerId, Stream
from tests.p2p.attacker import (
    DATA,
    FIN,
    GO_AWAY,
    HUNG_UP,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    Attacker,
    address_of,
    attacker,
    delimited,
    frame,
)

PROTOCOL = "/openlora/1/test"
TOPIC = "/openlora/1/31337/test"
MIB = 1024 * 1024
TO_NOISE = delimited("/multistream/1.0.0") + delimited("/noise")
LIMITS = Limits(
    handshake_timeout_s=1.0,
    negotiation_timeout_s=1.0,
    handshake_burst_per_ip=200.0,
    inbound_per_ip=16,
    handshakes=50,
)


@dataclass(frozen=True, slots=True)
class Scene:
    victim: Libp2pNetwork
    friend: Libp2pNetwork  # honest, connected before the attack begins

    async def is_well(self) -> None:
        """Honest traffic goes on: an old neighbour's stream is served."""
        with trio.fail_after(10):
            stream = await self.friend.open_stream(self.victim.peer_id, [PROTOCOL])
            await stream.write(b"still there?")
            assert await stream.read(100) == b"still there?"
            await stream.close()
            assert await stream.read(1) == b""

    async def until_refused(self, code: str, count: int = 1) -> None:
        while self.victim.refusals[code] < count:  # noqa: ASYNC110 - a counter offers no event
            await trio.sleep(0.01)


async def _echo(stream: Stream) -> None:
    while piece := await stream.read(64 * 1024):
        await stream.write(piece)
    await stream.close()


@asynccontextmanager
async def scene(limits: Limits) -> AsyncIterator[Scene]:
    listen = HostOptions(listen=["/ip4/127.0.0.1/tcp/0"])
    async with (
        open_network(Identity(sha256(b"victim").digest()), listen, limits) as victim,
        open_network(Identity(sha256(b"friend").digest()), listen) as friend,
    ):
        victim.handle(PROTOCOL, _echo)
        await friend.connect(victim.addresses)
        yield Scene(victim, friend)


def run(attack: Callable[[Scene], Awaitable[None]], limits: Limits = LIMITS, growth_bytes: int = 32 * MIB) -> None:
    """Memory is that of both sides and everything the attack itself prepares, all in this process."""

    async def main() -> None:
        with trio.fail_after(60):
            async with scene(limits) as here:
                await here.is_well()
                before = _resident_bytes()
                await attack(here)
                await here.is_well()
                assert here.friend.peer_id in here.victim.connected()
                assert _resident_bytes() - before < growth_bytes

    trio.run(main)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def _objects_left() -> int:
    """Of the network's own kinds, once what was going on has ended."""
    counts = [1, 0]
    while counts[-2] != counts[-1]:
        await trio.sleep(0.5)
        gc.collect()
        ours = ("libp2p", "openlora", "multiaddr")
        counts.append(sum(str(type(each).__module__).startswith(ours) for each in gc.get_objects()))
    return counts[-1]


async def is_served(peer: Attacker, stream_id: int) -> None:
    """The attacker itself, once it behaves."""
    await peer.open_stream(stream_id, PROTOCOL)
    await peer.send(frame(DATA, 0, stream_id, 4, b"fine"))
    heard = b""
    while b"fine" not in heard:
        heard += await peer.receive()


async def _send_until_cut(send: Callable[[bytes], Awaitable[None]], data: bytes, times: int) -> None:
    with suppress(*HUNG_UP):
        for _ in range(times):
            await send(data)


def test_ten_thousand_streams_at_once() -> None:
    async def attack(here: Scene) -> None:
        async with attacker(here.victim.addresses[0]) as peer:
            opened = b"".join(frame(WINDOW_UPDATE, SYN, 2 * number + 1, 0) for number in range(10_000))
            await _send_until_cut(peer.send, opened, 1)
            await peer.hears_the_end()
        assert here.victim.refusals["streams"] == LIMITS.refused_streams
        assert here.victim.refusals["streams-flood"] == 1

    run(attack)


def test_streams_that_never_name_a_protocol_are_let_go() -> None:
    async def attack(here: Scene) -> None:
        async with attacker(here.victim.addresses[0]) as peer:
            await peer.send(b"".join(frame(WINDOW_UPDATE, SYN, 2 * number + 1, 0) for number in range(100)))
            await here.until_refused("negotiation", 100)
            await is_served(peer, 1001)

    run(attack)


def test_streams_that_are_reset_before_anybody_takes_them_count_too() -> None:
    async def attack(here: Scene) -> None:
        async with attacker(here.victim.addresses[0]) as peer:
            numbers = range(1, 401, 2)
            await peer.send(
                b"".join(
                    frame(WINDOW_UPDATE, SYN, number, 0) + frame(WINDOW_UPDATE, RST, number, 0) for number in numbers
                )
            )
            await here.until_refused("streams", len(numbers) - LIMITS.inbound_streams - 1)  # one is taken at once
            await is_served(peer, 1001)

    run(attack)


def test_garbage_on_a_stream_costs_that_stream() -> None:
    garbage = {
        "noise": urandom(1000),
        "another protocol": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "a line of 4 GB": b"\xff\xff\xff\xff\x0f" + bytes(60_000),
        "a number without end": b"\xff" * 1000,
        "no text": b"\x03\xff\xfe\n",
        "a protocol that is no text": delimited("/multistream/1.0.0") + b"\x02\xff\n",
        "ls without end": delimited("/multistream/1.0.0") + delimited("ls") * 3000,
    }

    async def attack(here: Scene) -> None:
        async with attacker(here.victim.addresses[0]) as peer:
            for number, said in enumerate(garbage.values()):
                stream_id = 2 * number + 1
                await peer.send(frame(WINDOW_UPDATE, SYN, stream_id, 0) + frame(DATA, 0, stream_id, len(said), said))
            await is_served(peer, 1001)
            too_long = 2
            await here.until_refused("negotiation-bytes", too_long)
            await here.until_refused("negotiation", len(garbage) - too_long)

    run(attack)


@pytest.mark.parametrize("protocol", ["/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", "/meshsub/1.1.0", "/openlora/kad/1.0.0"])
def test_garbage_on_every_protocol(protocol: str) -> None:
    async def attack(here: Scene) -> None:
        async with attacker(here.victim.addresses[0]) as peer:
            for number in range(9):  # one more misdeed would be a ban
                stream_id = 2 * number + 1
                said = (urandom(2000), b"\xff" * 2000, b"\xff\xff\xff\x7f" + bytes(2000))[number % 3]
                await peer.open_stream(stream_id, protocol)
                await peer.send(frame(DATA, FIN, stream_id, len(said), said))
            await is_served(peer, 1001)

    run(attack)


@pytest.mark.parametrize(
    ("protocol", "code"),
    [
        ("/ipfs/id/push/1.0.0", "identify-too-large"),
        ("/meshsub/1.2.0", "gossip-too-large"),
        ("/meshsub/1.1.0", "gossip-too-large"),
        ("/openlora/kad/1.0.0", "dht-too-large"),
    ],
)
def test_lengths_that_cannot_be_are_refused_by_name(protocol: str, code: str) -> None:
    gibibyte = b"\x80\x80\x80\x80\x04"

    async def attack(here: Scene) -> None:
        async with attacker(here.victim.addresses[0]) as peer:
            await peer.open_stream(1, protocol)
            await peer.send(frame(DATA, 0, 1, len(gibibyte), gibibyte))
            await here.until_refused(code)
            await is_served(peer, 1001)

    run(attack)


@pytest.fixture
def _no_log_is_kept() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_log_is_kept")
def test_whoever_has_gone_is_forgotten() -> None:
    """Under ever new names; what is remembered of the last few dozen is bounded, and of those before them nothing."""
    names = 50
    said = encode_fields([(2, bytes.fromhex("040a000001060fa1")), (3, b"/meshsub/1.2.0"), (3, b"/openlora/kad/1.0.0")])
    about_me = bytes((len(said),)) + said
    limits = replace(
        LIMITS, remembered_peers=32, known_peers=32, handshakes_per_ip_per_s=1e6, handshake_burst_per_ip=1e6
    )

    async def come_and_go(here: Scene, count: int) -> int:
        for _ in range(count):
            async with attacker(here.victim.addresses[0]) as peer:
                await peer.open_stream(1, "/ipfs/id/push/1.0.0")
                await peer.send(frame(DATA, FIN, 1, len(about_me), about_me))
                await is_served(peer, 1001)
        return await _objects_left()

    async def attack(here: Scene) -> None:
        before = await come_and_go(here, names)
        assert await come_and_go(here, names) - before < names

    run(attack, limits)


def test_whoever_breaks_the_protocol_is_cut() -> None:
    broken = {
        "a frame of 17 MB": frame(DATA, 0, 1, 17 * MIB),
        "a frame of 4 GB": frame(DATA, 0, 1, 0xFFFFFFFF),
        "an unknown type": frame(7, 0, 1, 0),
        "an unknown version": frame(DATA, 0, 1, 0, version=1),
        "an unknown flag": frame(DATA, 0x10, 1, 0),
        "one of our stream ids": frame(WINDOW_UPDATE, SYN, 2, 0),
        "stream 0": frame(WINDOW_UPDATE, SYN, 0, 0),
        "the same stream twice": 2 * frame(WINDOW_UPDATE, SYN, 5, 0),
        "a window that overflows": frame(WINDOW_UPDATE, SYN, 5, 1) + frame(WINDOW_UPDATE, 0, 5, 0xFFFFFFFF),
        "data after the end": frame(DATA, SYN | FIN, 5, 1, b"x") + frame(DATA, 0, 5, 1, b"x"),
    }

    async def attack(here: Scene) -> None:
        for said in broken.values():
            async with attacker(here.victim.addresses[0]) as peer:
                await peer.send(said)
                await peer.hears_the_end()
        assert here.victim.refusals == {"window-overrun": 2, "yamux-protocol": len(broken) - 2}

    run(attack)


def test_data_beyond_the_window_is_not_kept() -> None:
    async def attack(here: Scene) -> None:
        never = trio.Event()

        async def deaf(_stream: Stream) -> None:
            await never.wait()

        here.victim.handle("/deaf", deaf)
        async with attacker(here.victim.addresses[0]) as peer:
            await peer.open_stream(1, "/deaf")
            piece = bytes(60_000)
            await _send_until_cut(peer.send, frame(DATA, 0, 1, len(piece), piece), 1000)
            await peer.hears_the_end()
        assert here.victim.refusals == {"window-overrun": 1}

    run(attack, growth_bytes=8 * MIB)


def test_many_streams_within_their_windows_are_too_much_together() -> None:
    async def attack(here: Scene) -> None:
        never = trio.Event()

        async def deaf(_stream: Stream) -> None:
            await never.wait()

        here.victim.handle("/deaf", deaf)
        async with attacker(here.victim.addresses[0]) as peer:
            piece = bytes(60_000)
            with suppress(*HUNG_UP):
                for number in range(30):
                    await peer.open_stream(2 * number + 1, "/deaf")
                    for _ in range(4):
                        await peer.send(frame(DATA, 0, 2 * number + 1, len(piece), piece))
            await peer.hears_the_end()
        assert here.victim.refusals["buffered-bytes"] == 1

    run(attack, growth_bytes=16 * MIB)


def test_a_crowd_fills_the_common_buffer_and_the_greediest_goes() -> None:
    async def attack(here: Scene) -> None:
        never = trio.Event()

        async def deaf(_stream: Stream) -> None:
            await never.wait()

        here.victim.handle("/deaf", deaf)
        async with AsyncExitStack() as crowd:
            for _ in range(6):
                peer = await crowd.enter_async_context(attacker(here.victim.addresses[0]))
                piece = bytes(60_000)
                with suppress(*HUNG_UP):
                    for number in range(6):
                        await peer.open_stream(2 * number + 1, "/deaf")
                        for _ in range(4):
                            await peer.send(frame(DATA, 0, 2 * number + 1, len(piece), piece))
            await here.until_refused("buffered-bytes", 1)

    run(attack, Limits(buffered_bytes=4 * MIB, buffered_bytes_per_connection=2 * MIB))


@pytest.mark.slow
@pytest.mark.parametrize(
    "tiny",
    [
        pytest.param(frame(PING, SYN, 0, 7), id="pings"),
        pytest.param(frame(WINDOW_UPDATE, 0, 99, 0), id="window updates for nothing"),
        pytest.param(frame(DATA, 0, 99, 0), id="empty data"),
    ],
)
def test_a_flood_of_tiny_frames_is_slowed_down(tiny: bytes) -> None:
    async def attack(here: Scene) -> None:
        async with attacker(here.victim.addresses[0]) as peer, trio.open_nursery() as nursery:
            nursery.start_soon(peer.hears_the_end)
            began_s = trio.current_time()
            with trio.move_on_after(0.5), suppress(*HUNG_UP):
                while True:
                    await peer.send(tiny * 1000)
                    await here.is_well()
            lasted_s = trio.current_time() - began_s
            nursery.cancel_scope.cancel()
        read = here.victim.traffic()[peer.peer_id].bytes_in / len(tiny)
        paid = (LIMITS.burst_bytes + lasted_s * LIMITS.bytes_per_s) / LIMITS.frame_cost_bytes
        waiting = 2 * 64 * 1024 / len(tiny)  # in the socket's buffer and in noise's, not looked at
        assert read < paid + waiting

    run(attack)


def test_whoever_asks_for_pongs_and_reads_none_is_cut() -> None:
    async def attack(here: Scene) -> None:
        async with attacker(here.victim.addresses[0]) as peer:
            with trio.move_on_after(10):
                await _send_until_cut(peer.send, frame(PING, SYN, 0, 7) * 1000, 1000)
        assert here.victim.refusals["unread-replies"] + here.victim.refusals["reads-nothing"] == 1

    run(attack, Limits(write_timeout_s=0.3, frame_cost_bytes=0, unsent_replies=512))


def test_half_open_handshakes_time_out_and_keep_nobody_out() -> None:
    async def attack(here: Scene) -> None:
        async with AsyncExitStack() as crowd:
            for said in (b"", b"\x13", b"\x13/multistream/1.0.0\n", b"\x13/multistream/1.0.0\n\x07/noise\n\x00"):
                for _ in range(3):
                    socket = await crowd.enter_async_context(
                        await trio.open_tcp_stream(*address_of(here.victim.addresses[0]))
                    )
                    if said:
                        await socket.send_all(said)
            await here.is_well()
            async with attacker(here.victim.addresses[0]) as peer:  # someone else still gets in
                await is_served(peer, 1)
            await here.until_refused("handshake", 12)

    run(attack)


def test_garbage_instead_of_a_handshake() -> None:
    garbage = {
        "noise": urandom(100_000),
        "another protocol": b"GET / HTTP/1.1\r\n\r\n",
        "a line of 4 GB": b"\xff\xff\xff\xff\x0f" + bytes(100_000),
        "a long handshake": TO_NOISE + struct.pack("!H", 65535) + bytes(70_000),
        "plaintext": delimited("/multistream/1.0.0") + delimited("/plaintext/2.0.0"),
    }

    async def attack(here: Scene) -> None:
        async with AsyncExitStack() as crowd:
            for said in garbage.values():
                address = address_of(here.victim.addresses[0])
                socket = await crowd.enter_async_context(await trio.open_tcp_stream(*address))
                with suppress(trio.BrokenResourceError):
                    await socket.send_all(said)
            await here.until_refused("handshake", len(garbage))

    run(attack)


def test_a_flood_of_connections_from_one_address() -> None:
    async def attack(here: Scene) -> None:
        async with AsyncExitStack() as crowd:
            for _ in range(50):
                await crowd.enter_async_context(await trio.open_tcp_stream(*address_of(here.victim.addresses[0])))
            await here.until_refused("connections-per-address", 50 + 1 - LIMITS.inbound_per_ip)
        await here.until_refused("handshake", LIMITS.inbound_per_ip - 1)
        async with attacker(here.victim.addresses[0]) as peer:  # and when it is over, all is as before
            await is_served(peer, 1)

    run(attack)


def test_places_for_connections_are_given_back() -> None:
    """The library holds one for each inbound connection until the host ends."""

    async def attack(here: Scene) -> None:
        for _ in range(3 * LIMITS.inbound_per_ip):
            async with attacker(here.victim.addresses[0]) as peer:
                await peer.send(frame(GO_AWAY, 0, 0, 0))
                await peer.hears_the_end()
        assert here.victim.refusals == {}

    run(attack)


def test_a_third_connection_replaces_a_peers_first() -> None:
    async def attack(here: Scene) -> None:
        identity = Identity(urandom(32))
        async with (
            attacker(here.victim.addresses[0], identity) as first,
            attacker(here.victim.addresses[0], identity),
            attacker(here.victim.addresses[0], identity) as third,
        ):
            await first.hears_the_end()
            await is_served(third, 1)
        assert here.victim.refusals == {"connections-per-peer": 1}

    run(attack, Limits(connections_per_peer=2))


def test_whoever_is_banned_does_not_get_in_again() -> None:
    async def attack(here: Scene) -> None:
        identity = Identity(urandom(32))
        here_limits = 3
        for _ in range(here_limits):
            async with attacker(here.victim.addresses[0], identity) as peer:
                await peer.send(frame(7, 0, 0, 0))
                await peer.hears_the_end()
        async with attacker(here.victim.addresses[0], identity) as peer:
            await peer.hears_the_end()
        assert here.victim.refusals["yamux-protocol"] == 3
        assert here.victim.refusals["banned"] >= 1

    run(attack, Limits(strikes=3))


def test_oversized_gossip_ends_that_stream_alone() -> None:
    async def attack(here: Scene) -> None:
        heard: list[bytes] = []

        def deliver(_peer: PeerId, data: bytes) -> None:
            heard.append(data)

        here.victim.subscribe(TOPIC, deliver)
        here.friend.subscribe(TOPIC, lambda _peer, _data: None)
        async with attacker(here.victim.addresses[0]) as peer:
            await peer.open_stream(1, "/meshsub/1.1.0")
            with suppress(*HUNG_UP):
                await peer.send(frame(DATA, 0, 1, 50_004, b"\xff\xff\xff\x7f" + bytes(50_000)))
            number = 0
            while not heard:
                await here.friend.publish(TOPIC, b"honest %d" % number)
                number += 1
                await trio.sleep(0.2)

    run(attack)
