"""What is asked of a node on chain is answered, in time, once, whatever happens meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from openlora.contracts import Call, Outputs, Question, QuestionAsked, QuestionKind
from openlora.node.content import BlockContent
from openlora.node.errors import Reverted, RpcDown
from openlora.node.job import JobId, JobState
from openlora.node.journal import Journal
from openlora.node.questions import Questions
from openlora.node.tasks import running
from tests.node.facts import CLIENT, OPERATOR, RIVAL, block, committed, open_journal, spec, spec_hash

JOB = JobId(1)
CONTRACT = Outputs(RIVAL)
OUTPUT = b'{"v":1,"text":"Ahoy"}'
NOBODY = Question(bytes(32), CLIENT, 0, OPERATOR, 0, 0, QuestionKind.NONE, 0)


@dataclass
class Chain:
    """The questions that are open."""

    questions: dict[int, Question] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)  # of the next readings
    answers_held: asyncio.Event | None = None  # until when an answer, read already, is under way

    lagging: bool = False  # the newest block that is shown is one before the question

    async def call(self, call: Call[Any], *, block: int | str = "latest") -> Question:
        if self.failures:
            raise self.failures.pop(0)
        if self.lagging and block == "latest":
            return NOBODY
        answer = self.questions.get(int.from_bytes(call.data[4:36], "big"), NOBODY)
        if self.answers_held is not None:
            await self.answers_held.wait()
        return answer


@dataclass
class Transactions:
    chain: Chain
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    reverts: list[str] = field(default_factory=list)  # of the next sends

    async def send(self, key: str, call: Call[Any]) -> None:
        if self.reverts:
            raise Reverted(self.reverts.pop(0), "refused")
        self.sent.append((key, call.data))
        del self.chain.questions[int(key.split(":")[1])]


@dataclass
class Scene:
    questions: Questions
    chain: Chain
    transactions: Transactions
    content: BlockContent
    journal: Journal

    async def ask(self, kind: QuestionKind = QuestionKind.OUTPUT, node: str = OPERATOR, *, told: bool = True) -> None:
        digest = await self.content.put_document(OUTPUT)
        self.chain.questions[JOB] = Question(digest, CLIENT, 5, node, 1_000, 1_010, kind, 0)
        if told:
            self.questions.apply(QuestionAsked(JOB, node, CLIENT, kind, 0, 1_010, 5))

    async def answered(self) -> None:
        async with asyncio.timeout(5):
            while self.questions.pending:  # noqa: ASYNC110 - it announces nothing
                await asyncio.sleep(0.005)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Scene]:
    chain = Chain()
    transactions, content = Transactions(chain), BlockContent(folder / "content")
    any_chain: Any = chain
    sender: Any = transactions
    with open_journal(folder) as journal:
        questions = Questions(CONTRACT, any_chain, journal, sender, content, OPERATOR, retry_s=0.005)
        yield Scene(questions, chain, transactions, content, journal)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with opened(tmp_path) as made:
        yield made


@pytest.mark.parametrize("kind", [QuestionKind.OUTPUT, QuestionKind.PUBLICATION])
async def test_an_output_that_is_asked_for_is_published(scene: Scene, kind: QuestionKind):
    async with running(scene.questions.run(), "questions"):
        await scene.ask(kind)
        assert scene.questions.pending, "nothing is claimed meanwhile"
        await scene.answered()
    assert scene.transactions.sent == [("publish:1:1000", CONTRACT.publish_output(JOB, OUTPUT).data)]


async def test_a_server_that_lags_hides_no_question(scene: Scene):
    scene.journal.advance(block(7))
    scene.chain.lagging = True
    async with running(scene.questions.run(), "questions"):
        await scene.ask()
        await scene.answered()
    assert len(scene.transactions.sent) == 1


async def test_what_is_asked_while_an_older_view_is_under_way_is_answered(scene: Scene):
    scene.chain.answers_held = asyncio.Event()
    scene.questions.apply(QuestionAsked(JOB, OPERATOR, CLIENT, QuestionKind.OUTPUT, 0, 1_010, 5))  # and gone already
    async with running(scene.questions.run(), "questions"):
        await asyncio.sleep(0.01)
        await scene.ask()
        scene.chain.answers_held.set()
        await scene.answered()
    assert len(scene.transactions.sent) == 1


async def test_a_restart_finds_what_was_asked_meanwhile(scene: Scene):
    scene.journal.see(JOB, spec(), spec_hash(JOB), None, block(1))
    scene.journal.move(JOB, JobState.CLAIMING)
    scene.journal.move(JOB, JobState.CLAIMED, block=block(2))
    scene.journal.record_receipt(JOB, committed(JOB).receipt_hash, b"{}")
    scene.journal.move(JOB, JobState.COMMITTED, block=block(3))
    await scene.ask(told=False)
    async with running(scene.questions.run(), "questions"):
        await asyncio.sleep(0)
        await scene.answered()
    assert len(scene.transactions.sent) == 1


async def test_trouble_with_the_chain_delays_it_only(scene: Scene):
    scene.chain.failures = [RpcDown("nobody answers"), RpcDown("still nobody")]
    scene.transactions.reverts = ["NotEnoughGas"]
    async with running(scene.questions.run(), "questions"):
        await scene.ask()
        await scene.answered()
    assert len(scene.transactions.sent) == 1


async def test_an_output_that_is_not_there_yet_is_looked_for_again(scene: Scene):
    async with running(scene.questions.run(), "questions"):
        await scene.ask()
        missing = scene.chain.questions[JOB]
        scene.chain.questions[JOB] = Question(b"\x01" * 32, *missing.to_abi()[1:6], missing.kind, 0)
        await asyncio.sleep(0.05)
        assert scene.questions.pending
        scene.chain.questions[JOB] = missing
        await scene.answered()
    assert len(scene.transactions.sent) == 1


@pytest.mark.parametrize("refusal", ["TooLate", "NoQuestion"])
async def test_what_is_over_is_let_go(scene: Scene, refusal: str):
    scene.transactions.reverts = [refusal]
    async with running(scene.questions.run(), "questions"):
        await scene.ask()
        await scene.answered()
    assert scene.transactions.sent == []


async def test_questions_to_others_are_theirs(scene: Scene):
    await scene.ask(node=RIVAL)
    assert not scene.questions.pending
    scene.questions.apply(QuestionAsked(JOB, OPERATOR, CLIENT, QuestionKind.OUTPUT, 0, 1_010, 5))  # an RPC that lies
    async with running(scene.questions.run(), "questions"):
        await scene.answered()
    assert scene.transactions.sent == []
