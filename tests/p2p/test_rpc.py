"""One request, a stream of replies: whatever the other side does, each side's cost is bounded and it learns why."""

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import pytest
import trio

from openlora.p2p.errors import PeerUnreachable, StreamLost, StreamRefused
from openlora.p2p.memory import MemoryHub, MemoryNetwork
from openlora.p2p.network import PeerId, Stream
from openlora.p2p.rpc import RpcLimits, ask, read_exactly, serve

PROTOCOL = "/openlora/1/test"
LIMITS = RpcLimits(request_bytes=1000, reply_bytes=1000, request_timeout_s=0.1, write_timeout_s=0.1)


def run(scenario: Callable[[MemoryNetwork, MemoryNetwork], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(5):
            async with MemoryHub(window_bytes=4096) as hub:
                await scenario(hub.network("asker"), hub.network("responder"))

    trio.run(main)


async def _replies(asker: MemoryNetwork, responder: MemoryNetwork, request: bytes) -> list[bytes]:
    return [body async for body in ask(asker, responder.peer_id, PROTOCOL, request, timeout_s=1.0, limits=LIMITS)]


async def _letters(_peer: PeerId, request: bytes) -> AsyncIterator[bytes]:
    for letter in request:
        yield bytes((letter,))


def test_replies_come_in_order_and_end() -> None:
    async def scenario(asker: MemoryNetwork, responder: MemoryNetwork) -> None:
        serve(responder, PROTOCOL, _letters, LIMITS)
        assert await _replies(asker, responder, b"abc") == [b"a", b"b", b"c"]
        assert await _replies(asker, responder, b"") == []

    run(scenario)


def test_the_responder_learns_who_asks() -> None:
    async def scenario(asker: MemoryNetwork, responder: MemoryNetwork) -> None:
        async def answer(peer: PeerId, _request: bytes) -> AsyncIterator[bytes]:
            yield peer.encode()

        serve(responder, PROTOCOL, answer, LIMITS)
        assert await _replies(asker, responder, b"who?") == [asker.peer_id.encode()]

    run(scenario)


def test_replies_are_seen_while_the_responder_still_works() -> None:
    async def scenario(asker: MemoryNetwork, responder: MemoryNetwork) -> None:
        proceed = trio.Event()

        async def answer(_peer: PeerId, _request: bytes) -> AsyncIterator[bytes]:
            yield b"first"
            await proceed.wait()
            yield b"second"

        serve(responder, PROTOCOL, answer, LIMITS)
        async with aclosing(ask(asker, responder.peer_id, PROTOCOL, b"", timeout_s=1.0)) as replies:
            assert await anext(replies) == b"first"
            proceed.set()
            assert await anext(replies) == b"second"

    run(scenario)


@pytest.mark.parametrize("after", [0, 2])
def test_a_refusal_reaches_the_asker_with_its_reason(after: int) -> None:
    async def scenario(asker: MemoryNetwork, responder: MemoryNetwork) -> None:
        async def answer(_peer: PeerId, _request: bytes) -> AsyncIterator[bytes]:
            for _ in range(after):
                yield b"reply"
            raise StreamRefused("the queue is full\x1b[2J")

        serve(responder, PROTOCOL, answer, LIMITS)
        with pytest.raises(StreamRefused, match=r"^the queue is full\?\[2J$"):
            await _replies(asker, responder, b"")

    run(scenario)


def test_an_answer_that_fails_resets_the_stream(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(asker: MemoryNetwork, responder: MemoryNetwork) -> None:
        async def answer(_peer: PeerId, _request: bytes) -> AsyncIterator[bytes]:
            yield b"reply"
            raise ZeroDivisionError

        serve(responder, PROTOCOL, answer, LIMITS)
        with pytest.raises(StreamLost):
            await _replies(asker, responder, b"")

    run(scenario)
    assert "failed" in caplog.text


def test_an_asker_that_hangs_up_stops_the_work() -> None:
    async def scenario(asker: MemoryNetwork, responder: MemoryNetwork) -> None:
        stopped = trio.Event()

        async def answer(_peer: PeerId, _request: bytes) -> AsyncIterator[bytes]:
            try:
                yield b"reply"
                await trio.sleep_forever()
            finally:
                stopped.set()

        serve(responder, PROTOCOL, answer, LIMITS)
        async with aclosing(ask(asker, responder.peer_id, PROTOCOL, b"", timeout_s=1.0)) as replies:
            await anext(replies)
        await stopped.wait()

    run(scenario)


def test_a_reader_that_takes_nothing_is_dropped() -> None:
    async def scenario(asker: MemoryNetwork, responder: MemoryNetwork) -> None:
        stopped = trio.Event()

        async def answer(_peer: PeerId, _request: bytes) -> AsyncIterator[bytes]:
            try:
                while True:
                    yield bytes(1000)
            finally:
                stopped.set()

        serve(responder, PROTOCOL, answer, LIMITS)
        stream = await asker.open_stream(responder.peer_id, [PROTOCOL])
        await stream.write(struct.pack("!IB", 1, 0))
        await stopped.wait()
        with pytest.raises(StreamLost):
            await read_exactly(stream, 1_000_000)

    run(scenario)


@pytest.mark.parametrize(
    ("sent", "misdeeds"),
    [
        pytest.param(b"", 0, id="nothing"),
        pytest.param(struct.pack("!IB", 100, 0) + b"half", 0, id="half a request"),
        pytest.param(struct.pack("!IB", 1002, 0), 1, id="a request that is too large"),
        pytest.param(struct.pack("!I", 0), 1, id="an empty frame"),
        pytest.param(struct.pack("!IB", 1, 77), 1, id="an unknown kind"),
        pytest.param(struct.pack("!IB", 1, 3), 1, id="an end"),
    ],
)
def test_whoever_does_not_ask_properly_is_cut_off(sent: bytes, misdeeds: int) -> None:
    async def scenario(asker: MemoryNetwork, responder: MemoryNetwork) -> None:
        async def answer(_peer: PeerId, _request: bytes) -> AsyncIterator[bytes]:
            raise AssertionError("this must not be answered")
            yield b""

        serve(responder, PROTOCOL, answer, LIMITS)
        stream = await asker.open_stream(responder.peer_id, [PROTOCOL])
        await stream.write(sent)
        with pytest.raises(StreamLost):
            await stream.read(1)
        assert responder.refusals["request-malformed"] == misdeeds

    run(scenario)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        pytest.param(struct.pack("!IB", 1002, 1), "1002 bytes; the limit is 1001", id="a reply that is too large"),
        pytest.param(struct.pack("!IB", 10, 1) + b"half", "ended after", id="half a reply"),
        pytest.param(struct.pack("!IB", 1, 77), "unknown kind 77", id="an unknown kind"),
        pytest.param(struct.pack("!IB", 1, 0), "with a request", id="a request"),
        pytest.param(b"", "ended after 0", id="no end"),
    ],
)
def test_a_responder_that_breaks_the_format_is_found_out(sent: bytes, reason: str) -> None:
    async def scenario(asker: MemoryNetwork, responder: MemoryNetwork) -> None:
        async def speak(stream: Stream) -> None:
            await stream.write(sent)
            await stream.close()

        responder.handle(PROTOCOL, speak)
        with pytest.raises(StreamLost, match=reason):
            await _replies(asker, responder, b"")

    run(scenario)


def test_a_responder_that_falls_silent_is_left() -> None:
    async def scenario(asker: MemoryNetwork, responder: MemoryNetwork) -> None:
        async def sulk(_stream: Stream) -> None:
            await trio.sleep_forever()

        responder.handle(PROTOCOL, sulk)
        with pytest.raises(StreamLost, match=r"silent for 0\.05 s"):
            await anext(ask(asker, responder.peer_id, PROTOCOL, b"", timeout_s=0.05))

    run(scenario)


def test_a_request_that_is_too_large_is_never_sent() -> None:
    async def scenario(asker: MemoryNetwork, responder: MemoryNetwork) -> None:
        with pytest.raises(StreamRefused, match="1001 bytes; the limit is 1000"):
            await _replies(asker, responder, bytes(1001))
        with pytest.raises(PeerUnreachable):
            await _replies(asker, responder, bytes(1000))

    run(scenario)
