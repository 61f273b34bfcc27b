"""An answer as it comes over the network: who may see it, and how a client follows it from node to node."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from eth_account import Account
from eth_utils.address import to_checksum_address

from openlora.contracts import Domain, Job, JobFlag, JobSpec
from openlora.contracts import JobState as ChainState
from openlora.node.cli.job import show_answer
from openlora.node.cli.output import Output
from openlora.node.errors import ContentNotFound, NetworkError, PeerRefused, RequestError
from openlora.node.job import JobId, JobState
from openlora.node.journal import Journal
from openlora.node.network import watching
from openlora.node.network.rates import RateLimits
from openlora.node.network.showing import INFER, Showing, ShowingLimits, Watch, signed_watch
from openlora.node.network.watching import follow_answer, watch
from openlora.node.private.brought import BroughtKeys
from openlora.node.private.kept import KeptKey
from openlora.node.private.sealing import public_key
from openlora.node.streams import JobStreams
from tests.node.facts import block, open_journal, receipt, spec, spec_hash
from tests.node.network.fake_peers import BASE_ID, FakePeer, FakePeers
from tests.node.private.keys import HOT_KEY, KEY, brought, wrapped

JOB = JobId(1)
CLIENT = Account.from_key(b"\x0c" * 32)
STRANGER = Account.from_key(b"\x0d" * 32)
QUEUE = to_checksum_address("0x" + "0d" * 20)
DOMAIN = Domain(31337, QUEUE)
ALICE = to_checksum_address("0x" + "a1" * 20)
DEFAULTS = ShowingLimits()
BOB = to_checksum_address("0x" + "b0" * 20)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLL_S", 0.02)
    monkeypatch.setattr("openlora.node.progress.POLL_S", 0.005)


@dataclass
class Node:
    """A node that knows of job 1, and tells of it."""

    network: FakePeer
    journal: Journal
    streams: JobStreams
    showing: Showing
    keys: BroughtKeys

    def claim(self) -> None:
        self.journal.move(JOB, JobState.CLAIMING)
        self.journal.move(JOB, JobState.CLAIMED, block=block(2))

    def generate(self, *pieces: str) -> None:
        if self.streams.run_of(JOB) is None:
            self.streams.open(JOB)
        for piece in pieces:
            self.streams.publish(JOB, piece)

    def commit(self) -> None:
        self.streams.end(JOB)
        self.journal.record_receipt(JOB, b"\x0f" * 32, msgspec.json.encode(receipt(JOB)))
        self.journal.move(JOB, JobState.COMMITTED, block=block(3))


@pytest.fixture
def peers(tmp_path: Path) -> FakePeers:
    return FakePeers(tmp_path / "peers")


@pytest.fixture
def node_of(peers: FakePeers, tmp_path: Path) -> Any:
    journals = []

    def make(operator: str, limits: ShowingLimits = DEFAULTS) -> Node:
        folder = tmp_path / operator
        folder.mkdir()
        journal, streams = open_journal(folder), JobStreams()
        journals.append(journal)
        journal.see(JOB, spec(client=CLIENT.address), spec_hash(JOB), None, block(1))
        network = peers.peer(operator, operator)
        keys = brought(operator)
        showing = Showing(journal, streams, DOMAIN, keys, limits)
        network.handle(INFER, showing.answer)
        return Node(network, journal, streams, showing, keys)

    yield make
    for journal in journals:
        journal.close()


@pytest.fixture
def client(peers: FakePeers) -> FakePeer:
    return peers.peer("client", staked=False)


def steps_of(client: FakePeer, node: Node, key=CLIENT) -> Any:
    (record,) = (record for record in client.nodes() if record.peer == node.network.peer_id)
    return watch(client, record, DOMAIN, JOB, key)


async def seen(steps: AsyncIterator[tuple[str, str]], wanted: Callable[[tuple[str, str]], bool]) -> tuple[str, str]:
    """The first step that is wanted."""
    async with asyncio.timeout(5):
        async for step in steps:
            if wanted(step):
                return step
    raise AssertionError("it ended without")


# ---- one node ----


async def test_an_answer_comes_as_it_is_generated(client: FakePeer, node_of) -> None:
    node = node_of(ALICE)
    steps = steps_of(client, node)
    assert await anext(steps) == ("seen", "")
    node.claim()
    assert await anext(steps) == ("claimed", "")
    node.generate("Ahoy")
    assert await anext(steps) == ("claimed", "Ahoy")
    node.generate(" there")
    assert await anext(steps) == ("claimed", "Ahoy there")
    node.commit()
    assert [step async for step in steps] == [("committed", "Ahoy there")]
    assert node.showing._watchers == []


async def test_an_answer_that_begins_anew_begins_anew_here(client: FakePeer, node_of) -> None:
    node = node_of(ALICE)
    node.claim()
    node.generate("Aho")
    steps = steps_of(client, node)
    assert await anext(steps) == ("claimed", "Aho")
    node.streams.open(JOB)
    node.generate("Ahoy")
    assert await anext(steps) == ("claimed", "")
    assert await anext(steps) == ("claimed", "Ahoy")
    await steps.aclose()


async def test_a_long_answer_comes_in_pieces_that_fit(client: FakePeer, node_of) -> None:
    node = node_of(ALICE)
    node.claim()
    text = "ä€😀" * 20_000
    node.generate(text)
    request = msgspec.msgpack.encode(signed_watch(DOMAIN, JOB, client.peer_id, CLIENT))
    replies = node.showing.answer(client.peer_id, request)
    assert len(await anext(replies)) <= 64 << 10
    await replies.aclose()
    node.commit()
    assert [step async for step in steps_of(client, node)][-1] == ("committed", text)


async def test_a_reader_that_leaves_is_forgotten(client: FakePeer, node_of) -> None:
    node = node_of(ALICE)
    steps = steps_of(client, node)
    await anext(steps)
    assert node.showing._watchers == [(client.peer_id, JOB)]
    await steps.aclose()
    assert node.showing._watchers == []


async def test_only_the_jobs_client_may_watch_and_only_at_its_own_peer(peers: FakePeers, client, node_of) -> None:
    node = node_of(ALICE)
    with pytest.raises(PeerRefused, match="job 1 is not yours"):
        await anext(steps_of(client, node, STRANGER))
    stolen = msgspec.msgpack.encode(signed_watch(DOMAIN, JOB, client.peer_id, CLIENT))
    thief = peers.peer("thief", staked=False)
    with pytest.raises(PeerRefused, match="job 1 is not yours"):
        await anext(thief.ask(node.network.peer_id, INFER, stolen))
    elsewhere = msgspec.msgpack.encode(signed_watch(replace(DOMAIN, chain_id=1), JOB, client.peer_id, CLIENT))
    with pytest.raises(PeerRefused, match="job 1 is not yours"):
        await anext(client.ask(node.network.peer_id, INFER, elsewhere))
    with pytest.raises(PeerRefused, match="job 1 is not yours"):
        await anext(client.ask(node.network.peer_id, INFER, msgspec.msgpack.encode(Watch(JOB, b"\xff" * 65))))


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        (b"", "no request"),
        (b"\xc1", "no request"),
        (b"\x81\xa4type\xa1\xff", "no request"),
        (msgspec.msgpack.encode({"type": "watch", "job_id": 1, "signature": bytes(64)}), "no request"),
        (msgspec.msgpack.encode({"type": "watch", "job_id": -1, "signature": bytes(65)}), "no request"),
        (msgspec.msgpack.encode(Watch((1 << 63) - 1, bytes(65))), "does not know job"),
    ],
)
async def test_what_cannot_be_watched(client: FakePeer, node_of, body: bytes, refusal: str) -> None:
    with pytest.raises(PeerRefused, match=refusal):
        await anext(client.ask(node_of(ALICE).network.peer_id, INFER, body))


@pytest.mark.parametrize("limit", ["watchers", "watchers_per_peer", "watchers_per_job"])
async def test_watchers_are_bounded(client: FakePeer, node_of, limit: str) -> None:
    node = node_of(ALICE, ShowingLimits(**{limit: 1}))
    first = steps_of(client, node)
    await anext(first)
    with pytest.raises(PeerRefused, match="as many answers as it can"):
        await anext(steps_of(client, node))
    await first.aclose()
    await anext(again := steps_of(client, node))
    await again.aclose()


async def test_a_peer_that_asks_too_often(client: FakePeer, node_of) -> None:
    node = node_of(ALICE, ShowingLimits(rates=RateLimits(per_s=0.001, burst=1)))
    for refusal in ("not yours", "too often"):
        with pytest.raises(PeerRefused, match=refusal):
            await anext(steps_of(client, node, STRANGER))


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (b"\xc1", "another language"),
        (b"\x82\xa5state\xa1\xff\xa4text\xc0", "another language"),
        (msgspec.msgpack.encode({"state": "drunk", "text": ""}), "another language"),
        (msgspec.msgpack.encode({"state": "claimed", "text": "x" * 60_000}), "more than an answer can hold"),
    ],
)
async def test_a_node_that_talks_nonsense_or_without_end(peers, client, node_of, reply: bytes, sentence: str) -> None:
    async def talk(peer: str, body: bytes):
        while True:
            yield reply

    node = node_of(ALICE)
    node.network.handle(INFER, talk)
    with pytest.raises(NetworkError, match=sentence):
        async for _ in steps_of(client, node):
            pass


# ---- a private job's key ----


def private(node: Node) -> None:
    """Job 1 is private, as this node knows it."""
    node.journal.see(JOB, spec(client=CLIENT.address, flags=JobFlag.PRIVATE), b"\xab" * 32, None, block(1))


def steps_with_key(client: FakePeer, node: Node, wrapped_key: bytes, key=CLIENT) -> Any:
    (record,) = (record for record in client.nodes() if record.peer == node.network.peer_id)
    return watch(client, record, DOMAIN, JOB, key, wrapped_key)


async def test_the_client_alone_brings_the_key(client: FakePeer, node_of) -> None:
    node = node_of(ALICE)
    private(node)
    with pytest.raises(PeerRefused, match="job 1 is not yours"):
        await anext(steps_with_key(client, node, wrapped(JOB, ALICE), STRANGER))
    assert node.keys.of(node.journal.job(JOB)) is None
    steps = steps_with_key(client, node, wrapped(JOB, ALICE))
    assert await anext(steps) == ("seen", "")
    assert node.keys.of(node.journal.job(JOB)) == KEY
    await steps.aclose()


@pytest.mark.parametrize(
    ("wrapped_key", "refusal"),
    [
        (wrapped(JOB, BOB), "not wrapped for this node and this job"),
        (wrapped(2, ALICE), "not wrapped for this node and this job"),
        (bytes(80), "not wrapped for this node and this job"),
        (wrapped(JOB, ALICE)[:-1], "no request"),
        (wrapped(JOB, ALICE) + b"\0", "no request"),
        (b"", "no request"),
        (bytes(10_000), "no request"),
    ],
    ids=["another node's", "another job's", "nonsense", "cut", "longer", "empty", "large"],
)
async def test_keys_that_are_none_are_refused(client: FakePeer, node_of, wrapped_key: bytes, refusal: str) -> None:
    node = node_of(ALICE)
    private(node)
    with pytest.raises(PeerRefused, match=refusal):
        await anext(steps_with_key(client, node, wrapped_key))
    assert node.showing._watchers == []


async def test_a_public_job_takes_no_key(client: FakePeer, node_of) -> None:
    with pytest.raises(PeerRefused, match="job 1 is not private"):
        await anext(steps_with_key(client, node_of(ALICE), wrapped(JOB, ALICE)))


# ---- from node to node ----


@dataclass
class FakeMarket:
    """What the chain says of job 1."""

    key: Any = CLIENT
    submitted: JobSpec = field(default_factory=lambda: spec(client=CLIENT.address))
    now: Job = field(default_factory=lambda: chain_job(ChainState.OPEN))
    answer: str | None = None
    timestamp: int = 0
    encryption_keys: dict[str, bytes] = field(default_factory=dict)  # by operator; HOT_KEY's where none is named
    only_node: str | None = None

    @property
    def queue(self) -> Any:
        return SimpleNamespace(address=QUEUE)

    @property
    def chain(self) -> Any:
        async def head(tag: str) -> Any:
            return SimpleNamespace(timestamp=self.timestamp)

        async def call(value: Any) -> Any:
            return value

        return SimpleNamespace(chain_id=31337, block=head, call=call)

    @property
    def registry(self) -> Any:
        return SimpleNamespace(recipe=lambda recipe_id: SimpleNamespace(base_id=bytes.fromhex(BASE_ID)))

    @property
    def nodes(self) -> Any:
        ours = public_key(HOT_KEY)
        return SimpleNamespace(node=lambda name: SimpleNamespace(encryption_key=self.encryption_keys.get(name, ours)))

    def kept_key(self, input_digest: bytes) -> KeptKey:
        return KeptKey(key=KEY, node=self.only_node)

    async def spec(self, job_id: int) -> JobSpec:
        return self.submitted

    async def job(self, job_id: int) -> Job:
        return self.now

    async def output(self, job_id: int) -> Any:
        if self.answer is None:
            raise ContentNotFound("nobody has it")
        return SimpleNamespace(text=self.answer)


def chain_job(state: ChainState, node: str = "0x" + "00" * 20, claim_block: int = 0) -> Job:
    return Job(spec_hash(JOB), bytes(32), to_checksum_address(node), state, 1, 0, 0, claim_block, 0)


async def test_a_job_is_followed_from_the_queue_to_its_commit(client: FakePeer, node_of) -> None:
    market, node = FakeMarket(), node_of(ALICE)
    steps = follow_answer(market, client, JOB)
    assert await anext(steps) == ("waiting", "")
    node.claim()
    market.now = chain_job(ChainState.CLAIMED, ALICE, 2)
    assert await anext(steps) == ("claimed", "")
    node.generate("Ahoy", " there")
    assert await anext(steps) == ("claimed", "Ahoy there")
    market.answer = "Ahoy there!"  # what the digest on chain names
    market.now = chain_job(ChainState.COMMITTED, ALICE, 2)
    node.commit()
    assert [step async for step in steps] == [("committed", "Ahoy there"), ("committed", "Ahoy there!")]


async def test_a_job_that_nobody_claims_is_not_waited_for_without_a_word(client: FakePeer, capsys) -> None:
    person: Any = SimpleNamespace(market=FakeMarket(), network=client)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await show_answer(person, JOB, Output(as_json=False), patience_s=0.01)
    assert capsys.readouterr().out.count("no node has claimed it yet") == 1


async def test_a_node_that_dies_is_followed_by_the_next(client: FakePeer, node_of) -> None:
    market, alice, bob = FakeMarket(), node_of(ALICE), node_of(BOB)
    alice.claim()
    alice.generate("Arr")
    market.now = chain_job(ChainState.CLAIMED, ALICE, 2)
    steps = follow_answer(market, client, JOB)
    assert await seen(steps, lambda step: step[1] == "Arr") == ("claimed", "Arr")
    alice.network.died.set()
    market.now = chain_job(ChainState.OPEN)
    assert await anext(steps) == ("waiting", "")
    bob.claim()
    bob.generate("Ahoy")
    market.now = chain_job(ChainState.CLAIMED, BOB, 9)
    assert await anext(steps) == ("claimed", "")
    assert await anext(steps) == ("claimed", "Ahoy")
    market.now = chain_job(ChainState.FINALIZED, BOB, 9)
    bob.commit()
    assert [step async for step in steps][-1] == ("finalized", "Ahoy")


async def test_a_node_that_goes_on_after_it_lost_the_job_is_left(client: FakePeer, node_of) -> None:
    market, alice, bob = FakeMarket(), node_of(ALICE), node_of(BOB)
    alice.claim()
    alice.generate("Arr")
    bob.claim()
    bob.generate("Ahoy")
    market.now = chain_job(ChainState.CLAIMED, ALICE, 2)
    steps = follow_answer(market, client, JOB)
    await seen(steps, lambda step: step[1] == "Arr")
    market.now = chain_job(ChainState.CLAIMED, BOB, 9)
    assert await anext(steps) == ("claimed", "")
    assert await anext(steps) == ("claimed", "Ahoy")
    assert alice.showing._watchers == []
    await steps.aclose()
    assert bob.showing._watchers == []


async def test_a_node_that_never_ends_a_committed_answer_is_left(client: FakePeer, node_of, monkeypatch) -> None:
    monkeypatch.setattr(watching, "DRAIN_S", 0.05)
    market, node = FakeMarket(answer="Ahoy"), node_of(ALICE)
    node.claim()
    node.generate("Arr")
    market.now = chain_job(ChainState.CLAIMED, ALICE, 2)
    steps = follow_answer(market, client, JOB)
    await seen(steps, lambda step: step[1] == "Arr")
    market.now = chain_job(ChainState.COMMITTED, ALICE, 2)
    assert await anext(steps) == ("committed", "Ahoy")


async def test_a_node_that_comes_back_is_watched_again(peers: FakePeers, client: FakePeer, node_of) -> None:
    market, node = FakeMarket(), node_of(ALICE)
    node.claim()
    node.generate("Arr")
    market.now = chain_job(ChainState.CLAIMED, ALICE, 2)
    steps = follow_answer(market, client, JOB)
    await seen(steps, lambda step: step[1] == "Arr")
    node.network.died.set()
    coming = asyncio.ensure_future(anext(steps))
    await asyncio.sleep(0.1)
    assert not coming.done()
    node.network.died.clear()
    node.generate(" matey")
    assert await coming == ("claimed", "Arr matey")
    await steps.aclose()


async def test_a_holder_that_nobody_sees(client: FakePeer) -> None:
    market = FakeMarket(now=chain_job(ChainState.CLAIMED, ALICE, 2))
    steps = follow_answer(market, client, JOB)
    assert await anext(steps) == ("claimed", "")
    market.now, market.answer = chain_job(ChainState.COMMITTED, ALICE, 2), "Ahoy"
    assert [step async for step in steps] == [("committed", "Ahoy")]


@pytest.mark.parametrize("state", [ChainState.CANCELLED, ChainState.EXPIRED])
async def test_a_job_that_ends_unanswered(client: FakePeer, state: ChainState) -> None:
    market = FakeMarket(now=chain_job(state))
    assert [step async for step in follow_answer(market, client, JOB)] == [(state.name.lower(), "")]


async def test_a_job_that_nobody_may_claim_any_more(client: FakePeer) -> None:
    market = FakeMarket(submitted=spec(client=CLIENT.address, deadline=10), timestamp=9)
    steps = follow_answer(market, client, JOB)
    assert await anext(steps) == ("waiting", "")
    market.timestamp = 11
    assert [step async for step in steps] == [("expired", "")]


async def test_somebody_elses_job(client: FakePeer) -> None:
    with pytest.raises(RequestError, match="who alone may watch it"):
        await anext(follow_answer(FakeMarket(key=STRANGER), client, JOB))


# ---- from node to node, in private ----


def private_market(**changes: Any) -> FakeMarket:
    return FakeMarket(submitted=spec(client=CLIENT.address, flags=JobFlag.PRIVATE), **changes)


def key_of(node: Node) -> bytes | None:
    return node.keys.of(node.journal.job(JOB))


async def until_true(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for belongs to the code under test
            await asyncio.sleep(0.005)


async def test_a_private_job_is_told_to_one_node_after_another_until_one_claims(client: FakePeer, node_of) -> None:
    market, alice, bob = private_market(), node_of(ALICE), node_of(BOB)
    private(alice)
    private(bob)
    steps = follow_answer(market, client, JOB)
    assert await anext(steps) == ("waiting", "")
    following = asyncio.ensure_future(seen(steps, lambda step: step[1] == "Ahoy"))
    await until_true(lambda: key_of(alice))
    assert key_of(bob) is None
    alice.claim()
    market.now = chain_job(ChainState.CLAIMED, ALICE, 2)
    alice.generate("Ahoy")
    assert await following == ("claimed", "Ahoy")
    assert key_of(bob) is None, "nobody is told who need not be"
    await steps.aclose()


async def test_a_node_that_does_not_claim_in_time_is_followed_by_the_next(client, node_of, monkeypatch) -> None:
    monkeypatch.setattr(watching, "INVITED_S", 0.05)
    alice, bob = node_of(ALICE), node_of(BOB)
    private(alice)
    private(bob)
    following = asyncio.ensure_future(seen(follow_answer(private_market(), client, JOB), lambda step: False))
    await until_true(lambda: key_of(alice) and key_of(bob))
    following.cancel()
    assert client.asked[:2] == [alice.network.peer_id, bob.network.peer_id]


async def test_only_the_node_that_is_named_is_told(client: FakePeer, node_of, monkeypatch) -> None:
    monkeypatch.setattr(watching, "INVITED_S", 0.02)
    alice, bob = node_of(ALICE), node_of(BOB)
    private(alice)
    private(bob)
    market = private_market(only_node=BOB.lower())
    following = asyncio.ensure_future(seen(follow_answer(market, client, JOB), lambda step: False))
    await until_true(lambda: client.asked.count(bob.network.peer_id) > 1)
    market.now = chain_job(ChainState.CLAIMED, ALICE, 2)  # who was not asked
    await until_true(lambda: alice.network.peer_id in client.asked)
    following.cancel()
    assert key_of(alice) is None


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31)], ids=["none", "of low order"])
async def test_a_node_without_a_key_on_chain_is_not_told(client: FakePeer, node_of, key: bytes) -> None:
    alice, bob = node_of(ALICE), node_of(BOB)
    private(alice)
    private(bob)
    market = private_market(encryption_keys={ALICE: key})
    following = asyncio.ensure_future(seen(follow_answer(market, client, JOB), lambda step: False))
    await until_true(lambda: key_of(bob))
    following.cancel()
    assert alice.network.peer_id not in client.asked


async def test_a_node_that_ends_without_a_word_is_left(client: FakePeer, node_of) -> None:
    async def silence(peer: str, body: bytes):
        return
        yield b""

    alice, bob = node_of(ALICE), node_of(BOB)
    private(bob)
    alice.network.handle(INFER, silence)
    following = asyncio.ensure_future(seen(follow_answer(private_market(), client, JOB), lambda step: False))
    await until_true(lambda: key_of(bob))
    following.cancel()


async def test_a_node_that_was_restarted_is_brought_the_key_again(client: FakePeer, node_of) -> None:
    market, node = private_market(now=chain_job(ChainState.CLAIMED, ALICE, 2)), node_of(ALICE)
    private(node)
    node.claim()
    node.generate("Arr")
    steps = follow_answer(market, client, JOB)
    await seen(steps, lambda step: step[1] == "Arr")
    node.keys.forget(node.journal.job(JOB))
    node.network.died.set()
    coming = asyncio.ensure_future(anext(steps))
    await asyncio.sleep(0.05)
    node.network.died.clear()
    await until_true(lambda: key_of(node))
    node.generate(" matey")
    assert await coming == ("claimed", "Arr matey")
    await steps.aclose()
