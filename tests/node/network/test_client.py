"""What the agent asks of the network comes back to whoever asked, through restarts of the network process."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any

import pytest
from msgspec.structs import replace

from openlora.node.errors import (
    AdapterError,
    ContentError,
    ContentNotFound,
    FrameMalformed,
    NetworkDown,
    NetworkError,
    PeerRefused,
)
from openlora.node.network.messages import (
    VERSION,
    Announce,
    Answer,
    AnswerEnd,
    Ask,
    Asked,
    AskGone,
    Cancel,
    Connect,
    Connected,
    ConnectFailed,
    Failed,
    Fetch,
    Fetched,
    FetchFailed,
    GetStats,
    Gone,
    Provide,
    Ready,
    Reply,
    ReplyEnd,
    Seen,
    Stats,
    Taken,
    Trust,
)
from openlora.node.network.window import MAX_REPLY_BYTES, WINDOW_BYTES
from tests.node.network.fake_network import OPERATORS, READY, FakeLife, FakeNetwork, announcement, record

INFER = "/openlora/1/infer"
STATS = Stats(
    id=0,
    peers=3,
    bytes_in=10,
    bytes_out=20,
    blocks_fetched=1,
    block_bytes_fetched=2,
    blocks_served=3,
    block_bytes_served=4,
    refused={"forged": 5},
)


async def replies_of(network: FakeNetwork, body: bytes = b"?") -> list[bytes]:
    return [data async for data in network.client.ask("peer", INFER, body)]


async def test_answers_come_to_whoever_asked_in_whatever_order() -> None:
    network = FakeNetwork()
    async with network.life() as life, asyncio.TaskGroup() as group:
        await life.hears(Trust)
        first = group.create_task(network.client.fetch("a", max_bytes=1))
        one = await life.hears(Fetch)
        second = group.create_task(network.client.fetch("b", max_bytes=2, whole=True, hints=["p"]))
        two = await life.hears(Fetch)
        assert two == Fetch(id=two.id, cid="b", max_bytes=2, whole=True, hints=("p",))
        connecting = group.create_task(network.client.connect(["/ip4/127.0.0.1/tcp/1"]))
        connect = await life.hears(Connect)
        asking = group.create_task(network.client.stats())
        stats = await life.hears(GetStats)
        life.say(
            replace(STATS, id=stats.id),
            Connected(id=connect.id, peer="p"),
            Fetched(id=two.id, blocks=2, bytes=20),
            Fetched(id=one.id, blocks=1, bytes=10),
        )
        assert (await first).blocks == 1
        assert (await second).blocks == 2
        assert await connecting == "p"
        assert (await asking).refused == {"forged": 5}


@pytest.mark.parametrize(
    ("code", "kind"), [("missing", ContentNotFound), ("refused", ContentError), ("budget", ContentError)]
)
async def test_a_fetch_fails_by_name(code: str, kind: type[Exception]) -> None:
    network = FakeNetwork()
    async with network.life() as life, asyncio.TaskGroup() as group:
        await life.hears(Trust)
        fetching = group.create_task(_outcome(network.client.fetch("a", max_bytes=1)))
        number = (await life.hears(Fetch)).id
        life.say(FetchFailed(id=number, code=code, message="nobody has a"))
        outcome = await fetching
    assert type(outcome) is kind
    assert str(outcome) == "nobody has a"


async def test_a_peer_that_is_not_reached_is_a_sentence() -> None:
    network = FakeNetwork()
    async with network.life() as life, asyncio.TaskGroup() as group:
        await life.hears(Trust)
        connecting = group.create_task(_outcome(network.client.connect(["/ip4/127.0.0.1/tcp/1"])))
        life.say(ConnectFailed(id=(await life.hears(Connect)).id, message="nobody answers"))
        assert type(await connecting) is NetworkError


async def test_replies_stream_and_end() -> None:
    network = FakeNetwork()
    async with network.life() as life, asyncio.TaskGroup() as group:
        await life.hears(Trust)
        asking = group.create_task(replies_of(network, b"tell me"))
        ask = await life.hears(Ask)
        assert (ask.peer, ask.protocol, ask.body) == ("peer", INFER, b"tell me")
        life.say(Reply(id=ask.id, data=b"one"), Reply(id=ask.id, data=b""), ReplyEnd(id=ask.id, outcome="done"))
        assert await asking == [b"one", b""]


@pytest.mark.parametrize(("outcome", "kind"), [("refused", PeerRefused), ("failed", NetworkError)])
async def test_replies_that_end_badly_are_kept_up_to_there(outcome: str, kind: type[Exception]) -> None:
    network = FakeNetwork()
    async with network.life() as life:
        await life.hears(Trust)
        replies = network.client.ask("peer", INFER, b"")
        first = asyncio.ensure_future(anext(replies))
        number = (await life.hears(Ask)).id
        life.say(Reply(id=number, data=b"one"), ReplyEnd(id=number, outcome=outcome, message="no"))
        assert await first == b"one"
        with pytest.raises(NetworkError, match=r"^no$") as error:
            await anext(replies)
        assert type(error.value) is kind


async def test_an_asker_who_stops_reading_ends_the_request() -> None:
    network = FakeNetwork()
    async with network.life() as life:
        await life.hears(Trust)
        async with aclosing(network.client.ask("peer", INFER, b"")) as replies:
            first = asyncio.ensure_future(anext(replies))
            number = (await life.hears(Ask)).id
            life.say(Reply(id=number, data=b"one"))
            await first
        assert (await life.hears(Cancel)).id == number
        life.say(Reply(id=number, data=b"late"), ReplyEnd(id=number, outcome="done"))
        await _in_step(network, life)


async def test_a_fetch_that_is_given_up_is_cancelled() -> None:
    network = FakeNetwork()
    async with network.life() as life:
        await life.hears(Trust)
        fetching = asyncio.ensure_future(network.client.fetch("a", max_bytes=1))
        number = (await life.hears(Fetch)).id
        fetching.cancel()
        assert (await life.hears(Cancel)).id == number
        life.say(Fetched(id=number, blocks=1, bytes=1))
        await _in_step(network, life)


async def test_a_slow_asker_says_what_it_has_taken() -> None:
    network = FakeNetwork()
    piece = bytes(MAX_REPLY_BYTES)
    async with network.life() as life, aclosing(network.client.ask("peer", INFER, b"")) as replies:
        await life.hears(Trust)
        first = asyncio.ensure_future(anext(replies))
        number = (await life.hears(Ask)).id
        life.say(*(Reply(id=number, data=piece) for _ in range(4)))
        assert await first == piece
        assert await life.hears(Taken) == Taken(id=number, bytes=MAX_REPLY_BYTES + 64)


async def test_more_than_the_window_breaks_the_connection() -> None:
    network = FakeNetwork()
    async with network.life() as life, aclosing(network.client.ask("peer", INFER, b"")) as replies:
        await life.hears(Trust)
        first = asyncio.ensure_future(anext(replies))
        number = (await life.hears(Ask)).id
        life.say(*(Reply(id=number, data=bytes(MAX_REPLY_BYTES)) for _ in range(8)))
        await first
        await _broken(network)
        with pytest.raises(NetworkDown, match="more of a reply than was agreed"):
            _ = [data async for data in replies]


# ---- answering ------------------------------------------------------------------------------------------------------


async def test_a_peer_is_answered_by_the_handler_of_its_protocol() -> None:
    network = FakeNetwork()

    async def echo(peer: str, body: bytes) -> AsyncIterator[bytes]:
        yield peer.encode()
        yield body

    network.client.handle(INFER, echo)
    async with network.life() as life:
        await life.hears(Trust)
        life.say(Asked(id=7, peer="them", protocol=INFER, body=b"body"))
        assert [(await life.hears(Answer)).data for _ in range(2)] == [b"them", b"body"]
        assert await life.hears(AnswerEnd) == AnswerEnd(id=7, refusal=None)


async def test_a_handler_refuses_with_its_sentence_and_its_faults_stay_at_home() -> None:
    network = FakeNetwork()

    async def refuse(peer: str, body: bytes) -> AsyncIterator[bytes]:
        yield b"first"
        raise (AdapterError("no such adapter") if body else ValueError("a secret"))

    network.client.handle(INFER, refuse)
    async with network.life() as life:
        await life.hears(Trust)
        for number, body, sentence in ((1, b"x", "no such adapter"), (2, b"", "the node failed to answer")):
            life.say(Asked(id=number, peer="them", protocol=INFER, body=body))
            await life.hears(Answer)
            assert await life.hears(AnswerEnd) == AnswerEnd(id=number, refusal=sentence)
        life.say(Asked(id=3, peer="them", protocol="/openlora/1/control", body=b""))
        assert (await life.hears(AnswerEnd)).refusal == "this node does not answer /openlora/1/control"


async def test_a_peer_that_leaves_stops_the_handler() -> None:
    network, stopped = FakeNetwork(), asyncio.Event()

    async def wait(peer: str, body: bytes) -> AsyncIterator[bytes]:
        try:
            yield b"here"
            await asyncio.Event().wait()
        finally:
            stopped.set()

    network.client.handle(INFER, wait)
    async with network.life() as life:
        await life.hears(Trust)
        life.say(Asked(id=1, peer="them", protocol=INFER, body=b""))
        await life.hears(Answer)
        life.say(AskGone(id=1))
        async with asyncio.timeout(5):
            await stopped.wait()
        await _in_step(network, life)


async def test_a_handler_waits_for_a_peer_that_reads_slowly() -> None:
    network, given = FakeNetwork(), 0

    async def pour(peer: str, body: bytes) -> AsyncIterator[bytes]:
        nonlocal given
        while given < 20:
            given += 1
            yield bytes(MAX_REPLY_BYTES)

    network.client.handle(INFER, pour)
    async with network.life() as life:
        await life.hears(Trust)
        life.say(Asked(id=1, peer="them", protocol=INFER, body=b""))
        for _ in range(4):
            await life.hears(Answer)
        await _in_step(network, life)
        assert given == 5  # the fifth waits: four are a window
        for _ in range(16):
            life.say(Taken(id=1, bytes=MAX_REPLY_BYTES + 64))
            await life.hears(Answer)
        assert (await life.hears(AnswerEnd)).refusal is None
    assert WINDOW_BYTES == 4 * MAX_REPLY_BYTES


async def test_a_flood_that_the_network_process_should_have_refused_ends_it() -> None:
    network = FakeNetwork()

    async def wait(peer: str, body: bytes) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    network.client.handle(INFER, wait)
    async with network.life() as life:
        life.say(*(Asked(id=number, peer="them", protocol=INFER, body=b"") for number in range(65)))
        await _broken(network)


def test_only_application_protocols_are_handled() -> None:
    async def never(peer: str, body: bytes) -> AsyncIterator[bytes]:
        yield b""

    with pytest.raises(ValueError, match="is none of"):
        FakeNetwork().client.handle("/ipfs/bitswap/1.2.0", never)


# ---- restarts -------------------------------------------------------------------------------------------------------


async def test_the_next_process_is_told_what_the_last_one_knew() -> None:
    network = FakeNetwork()
    async with network.life() as life:
        await life.hears(Trust)
        await network.client.trust({"0xhot": OPERATORS[0]})
        await network.client.announce(announcement())
        await network.client.provide(["a", "b"])
        await network.client.provide(["b", "c"])
        assert (await life.hears(Trust)).operators == {"0xhot": OPERATORS[0]}
        await life.hears(Announce)
        assert [(await life.hears(Provide)).cids for _ in range(2)] == [("a", "b"), ("c",)]
    await network.client.announce(announcement(queued=3))  # nobody hears it now
    moved = Ready(version=VERSION, peer_id=READY.peer_id, addresses=("/elsewhere",))
    async with network.life(moved) as life:
        assert (await life.hears(Trust)).operators == {"0xhot": OPERATORS[0]}
        assert (await life.hears(Announce)).status.load.queued == 3
        assert (await life.hears(Provide)).cids == ("a", "b", "c")
        assert network.client.addresses == ("/elsewhere",)


async def test_a_fetch_goes_on_in_the_next_process_and_a_request_to_a_peer_fails() -> None:
    network = FakeNetwork()
    async with asyncio.TaskGroup() as group:
        async with network.life() as life:
            await life.hears(Trust)
            fetching = group.create_task(network.client.fetch("a", max_bytes=1))
            await life.hears(Fetch)
            asking = group.create_task(_outcome(replies_of(network)))
            await life.hears(Ask)
        outcome = await asking
        assert isinstance(outcome, NetworkDown)
        assert str(outcome) == "the network process ended while this was in flight; try it again"
        async with network.life() as life:
            await life.hears(Trust)
            fetch = await life.hears(Fetch)
            life.say(Fetched(id=fetch.id, blocks=1, bytes=10))
            assert (await fetching).bytes == 10


async def test_a_fetch_that_ends_every_process_is_given_up() -> None:
    network = FakeNetwork()
    fetching = asyncio.ensure_future(_outcome(network.client.fetch("a", max_bytes=1)))
    for _ in range(16):
        async with network.life() as life:
            await life.hears(Trust)
            await life.hears(Fetch)
    assert "ended 16 times" in str(await fetching)


async def test_calls_fail_by_name_while_there_is_no_process() -> None:
    network = FakeNetwork()
    with pytest.raises(NetworkDown, match="is restarting"):
        await network.client.fetch("a", max_bytes=1)
    assert not network.client.alive


@pytest.mark.parametrize(
    ("event", "kind", "sentence"),
    [
        (Failed(message="the port is taken"), NetworkError, "the port is taken"),
        (Ready(version=0, peer_id="", addresses=()), NetworkDown, "speaks version 0"),
        (Gone(operator="x"), FrameMalformed, "began with Gone"),
    ],
)
async def test_a_process_that_cannot_serve_is_one_sentence(event: Ready, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        async with FakeNetwork().life(event):
            pass


# ---- nodes ----------------------------------------------------------------------------------------------------------


async def test_the_table_follows_what_is_seen_and_outlives_the_process() -> None:
    network = FakeNetwork()
    await network.client.trust(dict(zip(OPERATORS, OPERATORS, strict=True)))
    async with network.life() as life:
        await life.hears(Trust)
        life.say(*(Seen(record=record(f"n{number}", OPERATORS[number])) for number in range(4)))
        life.say(Seen(record=record("n0", OPERATORS[0], sequence=2)), Gone(operator=OPERATORS[1]))
        life.say(Seen(record=record("n2", OPERATORS[2], expires_at=1000)))
        await _in_step(network, life)
        assert {(node.operator, node.sequence) for node in network.client.nodes()} == {
            (OPERATORS[0], 2),
            (OPERATORS[3], 1),
        }
    assert len(network.client.nodes()) == 2
    await network.client.trust({OPERATORS[3]: OPERATORS[3]})
    assert [node.operator for node in network.client.nodes()] == [OPERATORS[3]]


async def _outcome(call: Coroutine[Any, Any, object]) -> object:
    try:
        return await call
    except Exception as error:
        return error


async def _broken(network: FakeNetwork) -> None:
    async with asyncio.timeout(5):
        while network.client.alive:  # noqa: ASYNC110 - the connection tells nobody
            await asyncio.sleep(0)


async def _in_step(network: FakeNetwork, life: FakeLife) -> None:
    """Returns once both have read all that was said so far."""
    asking = asyncio.ensure_future(network.client.stats())
    number = (await life.hears(GetStats)).id
    life.say(replace(STATS, id=number))
    await asking
