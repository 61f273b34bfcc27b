"""Every end a job can have, over facts that the test decides, the fake engine, a real journal and real signatures."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from eth_account import Account
from eth_utils.address import to_checksum_address

from openlora.contracts import Call, Gate, JobFlag, JobQueue, Receipt, Recipe, eip712
from openlora.node import documents
from openlora.node.absent import FORGET_S, Absent
from openlora.node.adapters.residency import AdapterResidency
from openlora.node.adapters.store import AdapterStore
from openlora.node.admission import Admission, Funds
from openlora.node.answering import Answerer
from openlora.node.chain.types import TxReceipt
from openlora.node.config import MarketConfig
from openlora.node.content import BlockContent, adapter_cid
from openlora.node.documents import ChatMessage, InputDocument, JobSampling
from openlora.node.engine.backends import OWN
from openlora.node.engine.client import in_process_engine
from openlora.node.errors import (
    AdapterCheckFailed,
    AdapterError,
    ContentError,
    NetworkDown,
    RequestError,
    Reverted,
    RpcDown,
)
from openlora.node.job import BlockRef, JobId, JobState, SkipCode, Wei
from openlora.node.journal import Journal
from openlora.node.private.sealing import Sealed, seal, unseal
from openlora.node.settlement import Settlement, Signer
from openlora.node.streams import JobStreams
from openlora.node.terms import Terms
from openlora.node.turns import Contender, NotYet, Turns
from openlora.node.worker import OUTDATED, Worker
from openlora.typed_data import Domain, signer_of
from tests.node.facts import IDENTITY, OPERATOR, block, open_journal, spec, spec_hash
from tests.node.fake_engine import POISON, REFUSE, FakeEngine
from tests.node.private.keys import KEY, brought, wrapped
from tests.node.tiny_model import tiny_text, write_adapter

JOB = JobId(1)
BASE_ID = b"\x01" * 32
PIRATE, HAIKU = b"\x02" * 32, b"\x03" * 32
QUEUE = JobQueue(to_checksum_address("0x" + "0d" * 20))
GREEDY = JobSampling()
HOT_KEY = Account.from_key(b"\x07" * 32)
NOW_S = int(time.time())
PLENTY = Funds(gas_wei=10**18, gas_price_wei=1, free_stake_wei=100, bond_wei=1, now_s=NOW_S)


@dataclass
class Facts:
    """What the chain says; every test may say otherwise."""

    answer: Recipe = field(default_factory=lambda: Recipe(BASE_ID, (), (), (), 0, Gate.OPEN))
    money: Funds = PLENTY
    open: bool = True
    permitted: bool = True
    meanwhile: Callable[[], None] = lambda: None  # happens while the chain is asked for its time
    lease_left: float | Exception | None = None
    asked: int = 0  # what takes a look at the chain

    async def recipe(self, recipe_id: int) -> Recipe:
        return self.answer

    async def funds(self) -> Funds:
        return self.money

    async def may_use(self, recipe_id: int, client: str) -> bool:
        return self.permitted

    async def now_s(self) -> int:
        self.meanwhile()
        return self.money.now_s

    async def lease_left_s(self, job_id: int) -> float | None:
        if isinstance(self.lease_left, Exception):
            raise self.lease_left
        return self.lease_left

    async def is_open(self, job_id: int) -> bool:
        self.asked += 1
        return self.open


@dataclass
class Transactions:
    """A sender whose every transaction is mined in the next block, or reverts."""

    sent: list[str] = field(default_factory=list)
    reverts: dict[str, str] = field(default_factory=dict)  # deed → the contract's error
    head: int = 10
    meanwhile: Callable[[], object] = lambda: None  # what the follower is told while the claim is under way

    async def send(self, key: str, call: Call[Any]) -> TxReceipt:
        deed = key.split(":")[0]
        if deed == "claim":
            self.meanwhile()
        if deed in self.reverts:
            raise Reverted(self.reverts[deed], f"{call.name}: {self.reverts[deed]}")
        self.sent.append(key)
        self.head += 1
        return TxReceipt(bytes(32), block(self.head), True, 1, Wei(1), None, ())


@dataclass
class Adapters:
    """A fetcher that has every adapter but those it refuses."""

    folder: Path
    refuses: dict[bytes, Exception] = field(default_factory=dict)
    late: set[bytes] = field(default_factory=set)  # these never come

    async def ensure(self, digest: bytes) -> Path:
        if digest in self.late:
            await asyncio.Event().wait()
        if digest in self.refuses:
            raise self.refuses[digest]
        return write_adapter(self.folder / digest.hex())


@dataclass
class Scene:
    """One node about to look at job 1."""

    worker: Worker
    journal: Journal
    engine: FakeEngine
    facts: Facts
    transactions: Transactions
    adapters: Adapters
    content: BlockContent
    rivals: list[Contender]

    def submit(self, prompt: str = "Hello", sampling: JobSampling = GREEDY, **changes: Any) -> None:
        self.submit_bytes(documents.encode(InputDocument(v=1, prompt=prompt, sampling=sampling)), **changes)

    def submit_bytes(self, data: bytes | None, **changes: Any) -> None:
        if data is not None:
            changes.setdefault("input_digest", documents.digest(data))
        self.journal.see(JOB, spec(**changes), spec_hash(JOB), data, block(1))

    def use(self, *digests: bytes) -> None:
        weights = tuple(5_000 for _ in digests)
        self.facts.answer = Recipe(BASE_ID, digests, weights, (), 0, Gate.OPEN)

    async def run(self) -> JobState:
        await self.worker.run_job(JOB)
        return self.journal.job(JOB).state

    def receipt(self) -> Receipt:
        signed = self.journal.signed(JOB)
        assert signed is not None
        return msgspec.json.decode(signed.receipt, type=Receipt)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    engine, facts, transactions = FakeEngine(script=b"Ahoy there"), Facts(), Transactions()
    content = BlockContent(tmp_path / "content")
    store = AdapterStore(tmp_path / "adapters", 1 << 30)
    rivals: list[Contender] = []
    adapters = Adapters(tmp_path / "fetched")
    sender: Any = transactions
    fetcher: Any = adapters
    chain_facts: Any = facts
    with open_journal(tmp_path) as journal:
        journal.advance(block(100))
        async with in_process_engine(engine) as client:
            domain = Domain(IDENTITY.chain_id, QUEUE.address)
            admission = Admission(
                base_id=BASE_ID,
                model=client.info,
                text=tiny_text(tmp_path / "model"),
                content=content,
                fetcher=fetcher,
                terms=Terms(MarketConfig(min_in_price_wei_per_k=5, min_out_price_wei_per_k=5), 1),
                storage_dir=tmp_path,
            )
            residency = AdapterResidency(fetcher, store, client, 1 << 30)
            yield Scene(
                worker=Worker(
                    queue=QUEUE,
                    journal=journal,
                    facts=chain_facts,
                    admission=admission,
                    turns=Turns(
                        lambda: 60.0, lambda: Contender(OPERATOR, (), crowded=False), lambda job, recipe: rivals
                    ),
                    sender=sender,
                    answerer=Answerer(admission, residency, client, JobStreams()),
                    settlement=Settlement(QUEUE, Signer(domain, OPERATOR, HOT_KEY, OWN), journal, sender),
                    keys=brought(),
                    confirmations=1,
                ),
                journal=journal,
                engine=engine,
                facts=facts,
                transactions=transactions,
                adapters=adapters,
                content=content,
                rivals=rivals,
            )


async def test_a_job_is_claimed_answered_signed_and_committed(scene: Scene):
    scene.submit("Hello")
    assert await scene.run() is JobState.COMMITTED
    assert scene.transactions.sent == ["claim:1:aa000000:1", "commit:1"]
    receipt = scene.receipt()
    output = documents.decode_output(await scene.content.get_document(receipt.output_digest))
    assert (output.text, output.finish_reason) == ("Ahoy there", "stop")
    assert (receipt.in_tokens, receipt.out_tokens) == (5, len(output.token_ids)) == (5, 11)
    assert receipt.fee == (5 * 10 + 11 * 30) // 1000
    assert receipt.seed == scene.journal.job(JOB).seed
    signed = scene.journal.signed(JOB)
    assert signed is not None
    assert signed.signature is not None
    domain = Domain(IDENTITY.chain_id, QUEUE.address)
    assert signer_of(eip712.receipt_digest(domain, receipt), signed.signature) == HOT_KEY.address.lower()
    assert "".join([piece async for piece in scene.worker.streams.read(JOB)]) == "Ahoy there"


async def test_an_ensemble_is_loaded_by_content_and_named_with_its_weights(scene: Scene):
    scene.submit()
    scene.use(PIRATE, HAIKU)
    assert await scene.run() is JobState.COMMITTED
    assert set(scene.engine.adapters) == {PIRATE.hex(), HAIKU.hex()}


async def test_stop_text_ends_the_answer_and_is_not_in_it(scene: Scene):
    scene.submit(sampling=JobSampling(stop=("there",)))
    assert await scene.run() is JobState.COMMITTED
    output = documents.decode_output(await scene.content.get_document(scene.receipt().output_digest))
    assert (output.text, output.finish_reason) == ("Ahoy ", "stop")


async def test_the_specs_limit_bounds_the_answer_whatever_the_document_asks(scene: Scene):
    scene.submit(sampling=JobSampling(max_tokens=400), max_out_tokens=4)
    await scene.run()
    assert (scene.receipt().out_tokens, scene.receipt().finish_reason) == (4, 1)


def poor(**changes: int) -> Callable[[Scene], None]:
    return lambda scene: setattr(scene.facts, "money", replace(PLENTY, **changes))


def other_base(scene: Scene) -> None:
    scene.facts.answer = Recipe(b"\x09" * 32, (), (), (), 0, Gate.OPEN)


def only(**allowed: tuple[str, ...]) -> Callable[[Scene], None]:
    def prepare(scene: Scene) -> None:
        terms = scene.worker.admission.terms
        terms.market = msgspec.structs.replace(terms.market, **allowed)

    return prepare


@pytest.mark.parametrize(
    ("code", "prepare", "changes"),
    [
        (SkipCode.MODEL_NOT_SERVED, other_base, {}),
        (SkipCode.PRICE_TOO_LOW, None, {"in_price_per_k": 4}),
        (SkipCode.PRICE_TOO_LOW, None, {"out_price_per_k": 4}),
        (SkipCode.DEADLINE_TOO_NEAR, None, {"deadline": 1}),
        (SkipCode.DEADLINE_TOO_NEAR, None, {"lease_secs": 1}),
        (SkipCode.OVER_CONTEXT, None, {"max_in_tokens": 4}),
        (SkipCode.OVER_CONTEXT, None, {"max_out_tokens": 0}),
        (SkipCode.LOW_GAS, poor(gas_wei=1), {}),
        (SkipCode.NO_STAKE, poor(free_stake_wei=0), {}),
        (SkipCode.CLIENT_NOT_ALLOWED, only(clients=(OPERATOR,)), {}),
        (SkipCode.NOT_PERMITTED, lambda scene: setattr(scene.facts, "permitted", False), {"flags": JobFlag.GUARDED}),
        (SkipCode.UNKNOWN_FLAGS, None, {"flags": 1 << 31}),
        (SkipCode.OUTPUT_TOO_LARGE, None, {"flags": JobFlag.PUBLISH, "max_out_tokens": 5_000}),
        (SkipCode.DRAINING, lambda scene: setattr(scene.worker.admission.terms, "draining", True), {}),
    ],
)
async def test_what_is_not_claimed_has_its_code(scene: Scene, code, prepare, changes):
    scene.submit("Hello", **changes)
    if prepare is not None:
        prepare(scene)
    assert await scene.run() is JobState.SKIPPED
    assert scene.journal.job(JOB).skip is code
    assert scene.transactions.sent == []


async def test_the_chain_is_not_asked_about_a_job_that_pays_too_little(scene: Scene):
    scene.submit(in_price_per_k=4)
    assert await scene.run() is JobState.SKIPPED
    assert not scene.facts.asked


async def test_adapters_that_are_not_allowed_are_a_reason_not_to_claim(scene: Scene):
    scene.submit()
    scene.use(PIRATE)
    only(adapters=(adapter_cid(bytes(32)),))(scene)
    assert await scene.run() is JobState.SKIPPED
    assert scene.journal.job(JOB).skip is SkipCode.ADAPTER_NOT_ALLOWED
    only(adapters=(adapter_cid(PIRATE),))(scene)
    assert await scene.run() is not JobState.SKIPPED


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (ContentError("nobody has it"), SkipCode.ADAPTER_UNAVAILABLE),
        (AdapterCheckFailed("the check was killed"), SkipCode.ADAPTER_UNAVAILABLE),
        (NetworkDown("the network process ended 3 times while it fetched it"), SkipCode.ADAPTER_UNAVAILABLE),
        (AdapterError("its rank is 0"), SkipCode.ADAPTER_REFUSED),
    ],
)
async def test_an_adapter_that_cannot_be_used_is_found_out_before_it_costs_a_bond(scene: Scene, refusal, code):
    scene.submit()
    scene.use(PIRATE)
    scene.adapters.refuses[PIRATE] = refusal
    assert await scene.run() is JobState.SKIPPED
    assert scene.journal.job(JOB).skip is code
    assert scene.transactions.sent == []


async def test_what_nobody_had_is_not_looked_for_again_at_once(scene: Scene):
    now_s = 1_000.0
    absent = Absent(clock=lambda: now_s)
    scene.worker = replace(scene.worker, admission=replace(scene.worker.admission, absent=absent))
    scene.submit()
    scene.use(PIRATE)
    absent.add(PIRATE)
    assert await scene.run() is JobState.SKIPPED
    assert scene.journal.job(JOB).skip is SkipCode.ADAPTER_UNAVAILABLE
    now_s += FORGET_S
    assert await scene.run() is JobState.COMMITTED


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{", SkipCode.BAD_INPUT),
        (b'{"v":1,"prompt_ids":[100000]}', SkipCode.BAD_INPUT),
        (b'{"v":1,"prompt":"\xff"}', SkipCode.BAD_INPUT),
        (b'{"v":1,"prompt_ids":[]}', SkipCode.BAD_INPUT),
        (b'{"v":1,"prompt":""}', SkipCode.BAD_INPUT),
        (b'{"v":1,"prompt":"a","sampling":{"temperature":-1}}', SkipCode.BAD_INPUT),
        (None, SkipCode.INPUT_UNAVAILABLE),
    ],
)
async def test_inputs_that_cannot_be_run_are_not_claimed(scene: Scene, data, code):
    scene.submit_bytes(data, input_digest=b"\x08" * 32)
    assert await scene.run() is JobState.SKIPPED
    assert scene.journal.job(JOB).skip is code


async def test_the_loop_runs_on_while_a_prompt_is_tokenized(scene: Scene):
    ran = threading.Event()

    class Patient:
        def encode(self, text: str) -> list[int]:
            assert ran.wait(timeout=10), "the event loop stands still"
            return [1]

    admission = replace(scene.worker.admission, text=Patient())
    asyncio.get_running_loop().call_soon(ran.set)
    assert await admission.prompt_ids(InputDocument(v=1, prompt="a")) == [1]


async def test_a_claim_that_the_chain_refuses_is_lost(scene: Scene):
    scene.submit()
    scene.transactions.reverts["claim"] = "WrongState"
    assert await scene.run() is JobState.LOST
    assert scene.engine.generated == 0


async def test_a_claim_that_the_chain_shows_is_not_lost_over_a_servers_word(scene: Scene):
    """One that says that its transaction failed: the claim's bond would be lost for it."""
    scene.submit()
    scene.transactions.reverts["claim"] = "WrongState"
    scene.transactions.meanwhile = lambda: scene.journal.move(JOB, JobState.CLAIMED, block=block(5))
    assert await scene.run() is JobState.COMMITTED


@pytest.mark.parametrize("trouble", [ContentError("a block does not match"), NetworkDown("it ended 3 times")])
async def test_an_adapter_that_is_lost_again_gives_the_claim_back(scene: Scene, trouble):
    scene.submit()
    scene.use(PIRATE)
    scene.adapters.refuses[PIRATE] = trouble
    scene.journal.move(JOB, JobState.CLAIMING)
    scene.journal.move(JOB, JobState.CLAIMED, block=block(5))
    assert await scene.run() is JobState.FAILED
    assert scene.transactions.sent == ["release:1:aa000000:1"]
    assert scene.journal.job(JOB).reason == str(trouble)


@pytest.mark.parametrize("order", [REFUSE, POISON])
async def test_what_the_engine_refuses_gives_the_claim_back(scene: Scene, order):
    scene.submit(chr(order))
    assert await scene.run() is JobState.FAILED
    assert scene.transactions.sent[-1] == "release:1:aa000000:1"


async def test_a_fault_of_ours_gives_the_claim_back(scene: Scene):
    scene.submit()
    scene.use(PIRATE)
    scene.adapters.refuses[PIRATE] = ZeroDivisionError()
    scene.journal.move(JOB, JobState.CLAIMING)
    scene.journal.move(JOB, JobState.CLAIMED, block=block(5))
    with pytest.raises(ZeroDivisionError):
        await scene.run()
    assert scene.journal.job(JOB).state is JobState.FAILED
    assert scene.transactions.sent == ["release:1:aa000000:1"]


async def test_a_node_whose_jobs_fail_stops_claiming(scene: Scene):
    for _ in range(3):
        scene.worker.breaker.failed()
    scene.submit()
    assert await scene.run() is JobState.SKIPPED
    assert scene.journal.job(JOB).skip is SkipCode.BREAKER_OPEN
    assert scene.transactions.sent == []


async def test_a_claim_that_cannot_be_given_back_is_not_ours_any_more(scene: Scene):
    scene.submit(chr(REFUSE))
    scene.transactions.reverts["release"] = "LeaseExpired"
    assert await scene.run() is JobState.LOST


async def test_an_adapter_that_does_not_come_gives_the_claim_back_before_the_lease_ends(scene: Scene):
    scene.submit(lease_secs=1)
    scene.use(PIRATE)
    scene.adapters.late.add(PIRATE)
    scene.journal.move(JOB, JobState.CLAIMING)
    claimed = scene.journal.move(JOB, JobState.CLAIMED, block=block(5))
    assert await scene.run() is JobState.FAILED
    assert scene.transactions.sent == ["release:1:aa000000:1"]
    assert scene.journal.job(JOB).reason == "its adapters did not come in time: its lease had 1 s left"
    assert 0.4 < scene.journal.job(JOB).changed_at - claimed.changed_at < 0.9


@pytest.mark.parametrize("behind_s", [3_600, -3_600])
async def test_deadlines_and_answers_go_by_the_chains_clock(scene: Scene, behind_s: int):
    chain_s = NOW_S - behind_s
    scene.facts.money = replace(PLENTY, now_s=chain_s)
    scene.submit(deadline=chain_s + 600)
    assert await scene.run() is JobState.COMMITTED
    assert scene.receipt().finished_at <= chain_s


async def test_a_job_that_took_anothers_place_is_claimed_as_its_own(scene: Scene):
    scene.submit(chr(REFUSE))
    assert await scene.run() is JobState.FAILED
    scene.journal.unwind(0)
    data = documents.encode(InputDocument(v=1, prompt="Hello"))
    scene.journal.see(JOB, spec(input_digest=documents.digest(data)), b"\xbb" * 32, data, block(1))
    scene.journal.advance(block(100))
    assert await scene.run() is JobState.COMMITTED
    first, _, second, _ = scene.transactions.sent
    assert (first, second) == ("claim:1:aa000000:1", "claim:1:bbbbbbbb:1")


async def test_a_claim_learnt_of_late_is_given_back_while_that_is_possible(scene: Scene):
    scene.submit(lease_secs=60)
    scene.use(PIRATE)
    scene.adapters.late.add(PIRATE)
    scene.facts.lease_left = 0.2
    scene.journal.move(JOB, JobState.CLAIMING)
    scene.journal.move(JOB, JobState.CLAIMED, block=block(5))
    assert await scene.run() is JobState.FAILED
    assert scene.transactions.sent == ["release:1:aa000000:1"]


async def test_a_clock_that_is_hours_ahead_after_a_restart_gives_no_claim_back(scene: Scene):
    scene.submit(lease_secs=60)
    scene.facts.lease_left = 50.0
    scene.journal.move(JOB, JobState.CLAIMING)
    scene.journal.now = lambda: time.time() - 7_200
    scene.journal.move(JOB, JobState.CLAIMED, block=block(5))
    assert await scene.run() is JobState.COMMITTED


async def test_a_chain_that_does_not_tell_of_the_lease_delays_nothing(scene: Scene):
    scene.submit()
    scene.facts.lease_left = RpcDown("nobody answers")
    assert await scene.run() is JobState.COMMITTED


async def test_a_job_that_suits_another_node_better_is_left_to_it_for_a_turn(scene: Scene):
    scene.submit()
    scene.use(PIRATE)
    scene.rivals.append(Contender("0x0b", (PIRATE,), crowded=False))
    with pytest.raises(NotYet) as later:
        await scene.run()
    assert 50 < later.value.wait_s <= 60
    assert scene.journal.job(JOB).state is JobState.SEEN
    scene.rivals.clear()
    assert await scene.run() is JobState.COMMITTED


async def test_a_commit_that_the_chain_refuses_is_lost_and_never_signed_again(scene: Scene):
    scene.submit()
    scene.transactions.reverts["commit"] = "LeaseExpired"
    assert await scene.run() is JobState.LOST
    signed = scene.journal.signed(JOB)
    scene.transactions.reverts.clear()
    assert await scene.run() is JobState.SKIPPED
    assert scene.journal.job(JOB).skip is SkipCode.SIGNED_BEFORE
    assert scene.journal.signed(JOB) == signed


@pytest.mark.parametrize("refusal", ["WrongSeed", "ClaimForgotten"])
async def test_a_receipt_that_came_too_late_for_its_seed_gives_the_claim_back(scene: Scene, refusal: str):
    scene.submit()
    scene.transactions.reverts["commit"] = refusal
    assert await scene.run() is JobState.FAILED
    assert scene.transactions.sent == ["claim:1:aa000000:1", "release:1:aa000000:1"]
    assert scene.journal.job(JOB).reason == OUTDATED[refusal]


@pytest.mark.parametrize(
    ("deed", "name"), [("claim", "NotAHotKey"), ("commit", "NotTheNode"), ("release", "NotTheNode")]
)
async def test_a_job_is_not_lost_because_the_operator_has_another_hot_key(scene: Scene, deed: str, name: str):
    scene.submit("Hello" if deed != "release" else chr(REFUSE))
    scene.transactions.reverts[deed] = name
    with pytest.raises(Reverted):
        await scene.run()
    left = {"claim": JobState.CLAIMING, "commit": JobState.COMMITTING, "release": JobState.CLAIMED}
    assert scene.journal.job(JOB).state is left[deed]
    scene.transactions.reverts.clear()
    assert await scene.run() is (JobState.FAILED if deed == "release" else JobState.COMMITTED)


async def test_a_job_that_is_not_open_stays_as_it_is(scene: Scene):
    scene.submit()
    scene.journal.move(JOB, JobState.SKIPPED, skip=SkipCode.TAKEN)
    scene.facts.open = False
    assert await scene.run() is JobState.SKIPPED
    scene.facts.open = True
    assert await scene.run() is JobState.COMMITTED


async def test_a_restart_goes_on_from_a_claim_and_from_an_unsigned_receipt(scene: Scene):
    scene.submit()
    scene.journal.move(JOB, JobState.CLAIMING)
    job = scene.journal.move(JOB, JobState.CLAIMED, block=block(5))
    assert await scene.run() is JobState.COMMITTED
    assert scene.transactions.sent == ["commit:1"]
    assert scene.receipt().seed == job.seed


async def test_a_receipt_recorded_before_a_crash_is_the_one_that_is_signed(scene: Scene):
    scene.submit()
    scene.journal.move(JOB, JobState.CLAIMING)
    job = scene.journal.move(JOB, JobState.CLAIMED, block=block(5))
    output = documents.OutputDocument(
        v=1, text="x", token_ids=(120,), finish_reason="stop", usage=documents.Usage(5, 1)
    )
    receipt = scene.worker.settlement.receipt(job, output, b"\x05" * 32, NOW_S)
    digest = eip712.receipt_digest(scene.worker.settlement.signer.domain, receipt)
    scene.journal.record_receipt(JOB, digest, msgspec.json.encode(receipt))
    assert await scene.run() is JobState.COMMITTED
    assert scene.receipt() == receipt
    assert scene.engine.generated == 0


async def test_a_reorganised_claim_is_answered_anew_with_its_new_seed(scene: Scene):
    scene.engine.script = None  # tokens depend on the seed
    scene.submit()
    scene.engine.gate.clear()
    scene.journal.move(JOB, JobState.CLAIMING)
    first = scene.journal.move(JOB, JobState.CLAIMED, block=block(5))

    class Moved(JobStreams):
        """The claim moves to another block while the first answer streams."""

        def open(self, job_id: int) -> None:
            super().open(job_id)
            if scene.journal.job(JOB).claim == block(5):
                scene.journal.unwind(4)
                scene.journal.advance(block(100))
                scene.journal.move(JOB, JobState.CLAIMED, block=block(6))
            scene.engine.gate.set()

    moved = Moved()
    scene.worker = replace(scene.worker, answerer=replace(scene.worker.answerer, streams=moved))
    assert await scene.run() is JobState.COMMITTED
    assert scene.receipt().seed == scene.journal.job(JOB).seed != first.seed


async def test_a_claim_that_moves_just_before_the_signature_is_answered_anew(scene: Scene):
    scene.submit()
    scene.journal.move(JOB, JobState.CLAIMING)
    scene.journal.move(JOB, JobState.CLAIMED, block=block(5))

    def move() -> None:
        scene.facts.meanwhile = lambda: None
        scene.journal.unwind(4)
        scene.journal.advance(block(100))
        scene.journal.move(JOB, JobState.CLAIMED, block=block(6))

    scene.facts.meanwhile = move
    assert await scene.run() is JobState.COMMITTED
    assert scene.receipt().seed == scene.journal.job(JOB).seed


async def test_no_receipt_is_signed_before_the_claim_is_deep_enough(scene: Scene):
    scene.submit()
    scene.worker = replace(scene.worker, confirmations=3)
    scene.journal.move(JOB, JobState.CLAIMING)
    scene.journal.move(JOB, JobState.CLAIMED, block=block(99))  # two blocks deep at the head, 100
    async with asyncio.TaskGroup() as group:
        running = group.create_task(scene.run())
        pieces = "".join([piece async for piece in _answer(scene)])
        assert pieces == "Ahoy there"
        await asyncio.sleep(0.3)
        assert scene.journal.signed(JOB) is None
        scene.journal.advance(block(101))
    assert running.result() is JobState.COMMITTED


async def test_no_receipt_is_signed_on_a_claim_in_a_block_that_the_follower_has_not_met(scene: Scene):
    """A server's word about the claim's transaction alone: another seed would be another receipt."""
    scene.submit(lease_secs=1)
    scene.journal.advance(block(101))
    scene.journal.advance(block(102))
    scene.journal.move(JOB, JobState.CLAIMING)
    scene.journal.move(JOB, JobState.CLAIMED, block=BlockRef(101, bytes(32)))
    assert await scene.run() is JobState.FAILED
    assert scene.journal.signed(JOB) is None


async def _answer(scene: Scene) -> AsyncIterator[str]:
    """The answer's text, until all of it is there."""
    text = ""
    while text != "Ahoy there":
        await asyncio.sleep(0.01)
        if scene.worker.streams.run_of(JOB) is not None:
            async for piece in scene.worker.streams.read(JOB):
                text += piece
                yield piece
                if text == "Ahoy there":
                    break


# ---- private jobs: nothing is claimed that cannot be read, and nothing is stored that can ----

SECRET = "Xanthippe"
SEALED_INPUT = seal(KEY, documents.encode(InputDocument(v=1, prompt=SECRET)), Sealed.INPUT)


def submit_private(scene: Scene, sealed: bytes = SEALED_INPUT, flags: int = JobFlag.PRIVATE, **changes) -> None:
    scene.submit_bytes(sealed, flags=flags, **changes)


def bring(scene: Scene) -> None:
    scene.worker.keys.bring(scene.journal.job(JOB), wrapped())


async def test_a_job_whose_key_has_come_is_answered_to_its_client_alone(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.DEBUG):
        submit_private(scene)
        bring(scene)
        assert await scene.run() is JobState.COMMITTED
    sealed = await scene.content.get_document(scene.receipt().output_digest)
    assert documents.decode_output(unseal(KEY, sealed, Sealed.OUTPUT)).text == "Ahoy there"
    assert scene.worker.keys.of(scene.journal.job(JOB)) is None
    files = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert "journal.sqlite" in files
    for secret in (SECRET.encode(), b"Ahoy there", KEY):
        assert [name for name, data in files.items() if secret in data] == []
    assert SECRET not in caplog.text
    assert "Ahoy" not in caplog.text


async def test_nothing_is_claimed_before_the_key_has_come(scene: Scene):
    submit_private(scene)
    assert await scene.run() is JobState.SKIPPED
    assert scene.journal.job(JOB).skip is SkipCode.NOT_INVITED
    bring(scene)
    assert await scene.run() is JobState.COMMITTED


@pytest.mark.parametrize(
    ("sealed", "changes", "code"),
    [
        (seal(b"\x99" * 32, b'{"v":1,"prompt":"a"}', Sealed.INPUT), {}, SkipCode.BAD_INPUT),
        (seal(KEY, b'{"v":1,"Xanthippe":"a"}', Sealed.INPUT), {}, SkipCode.BAD_INPUT),
        (seal(KEY, b'{"v":1,"prompt":"a"}', Sealed.OUTPUT), {}, SkipCode.BAD_INPUT),
        (b'{"v":1,"prompt":"a"}', {}, SkipCode.BAD_INPUT),
        (SEALED_INPUT[:40], {}, SkipCode.BAD_INPUT),
        (SEALED_INPUT, {"max_in_tokens": 4}, SkipCode.OVER_CONTEXT),
        (SEALED_INPUT, {"flags": JobFlag.PRIVATE | JobFlag.AUDITABLE}, SkipCode.UNKNOWN_FLAGS),
    ],
    ids=["another key", "no document", "an output", "not sealed", "cut", "too long", "auditable"],
)
async def test_what_cannot_be_run_costs_the_node_nothing(scene: Scene, sealed: bytes, changes: dict, code: SkipCode):
    submit_private(scene, sealed, **changes)
    bring(scene)
    assert await scene.run() is JobState.SKIPPED
    assert scene.journal.job(JOB).skip is code
    assert scene.transactions.sent == []


async def test_a_document_that_is_none_is_not_quoted(scene: Scene):
    role = documents.encode(InputDocument(v=1, messages=(ChatMessage("user", "Hi"),))).replace(b"user", SECRET.encode())
    submit_private(scene, seal(KEY, role, Sealed.INPUT))
    job = scene.journal.job(JOB)
    with pytest.raises(RequestError) as caught:
        await scene.worker.admission.input(job.spec, job.input, KEY)
    assert SECRET not in str(caught.value)


async def test_an_answer_that_is_to_be_published_is_sealed_too(scene: Scene):
    submit_private(scene, flags=JobFlag.PRIVATE | JobFlag.PUBLISH)
    bring(scene)
    assert await scene.run() is JobState.COMMITTED
    assert unseal(KEY, await scene.content.get_document(scene.receipt().output_digest), Sealed.OUTPUT)


def claimed_before_a_restart(scene: Scene, lease_secs: int) -> None:
    submit_private(scene, lease_secs=lease_secs)
    scene.journal.move(JOB, JobState.CLAIMING)
    scene.journal.move(JOB, JobState.CLAIMED, block=block(5))


async def test_after_a_restart_the_client_brings_the_key_again(scene: Scene):
    claimed_before_a_restart(scene, lease_secs=60)
    running = asyncio.ensure_future(scene.run())
    await asyncio.sleep(0.02)
    assert not running.done()
    bring(scene)
    assert await running is JobState.COMMITTED
    assert scene.transactions.sent == ["commit:1"]


async def test_after_a_restart_a_claim_whose_client_has_left_is_given_back(scene: Scene):
    claimed_before_a_restart(scene, lease_secs=1)
    assert await scene.run() is JobState.FAILED
    assert scene.transactions.sent == ["release:1:aa000000:1"]
    assert "did not bring its key again" in str(scene.journal.job(JOB).reason)
