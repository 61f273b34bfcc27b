"""What else happens on the demonstration's chain: a session, a dispute that is won and one that is lost.

A visitor with money of its own plays against everybody else. The nodes know nothing of it; the one whom it catches is
a fourth operator, which has a hot key and no engine, and lives in this module.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address

from openlora.contracts import (
    Call,
    Disputes,
    Domain,
    EquivocationProven,
    JobSpec,
    QuestionAsked,
    QuestionKind,
    Receipt,
    Settlement,
    SignedReceipt,
    eip712,
)
from openlora.node import documents
from openlora.node.chain.history import events_of
from openlora.node.chain.types import Block
from openlora.node.content import BlockContent
from openlora.node.demo_nodes import DemoFailed
from openlora.node.devnet import (
    ASK_IN_WEI_PER_K,
    ASK_OUT_WEI_PER_K,
    CHEAT,
    CHEATS_KEY,
    OLRA,
    VISITOR,
    Devnet,
)
from openlora.node.documents import ChatMessage, InputDocument, OutputDocument, Usage
from openlora.node.engine.backends import OWN
from openlora.node.errors import ChainError, NetworkError, Reverted
from openlora.node.market import Market, Offer, SubmittedJob, committed
from openlora.node.network.client import NetworkClient
from openlora.node.sessions.conversation import Conversation, Place
from openlora.node.sessions.deposits import Deposits
from openlora.node.settlement import Signer
from openlora.node.wei import tokens
from openlora.p2p.presence.record import Presence
from openlora.typed_data import sign_digest

T = TypeVar("T")

DEPOSIT_WEI: Final = 5 * OLRA
SESSION_PROMPTS: Final = ("What is a haiku?", "Name three colours.", "Why is snow white?")
SESSION_OUT_TOKENS: Final = 16
CHEATS_PRICE: Final = 0.4  # of what honest nodes ask: the cheat alone takes it
POLL_S: Final = 0.25
PATIENCE_S: Final = 120.0


@dataclass(slots=True)
class Played:
    """What came of it."""

    session_receipts: int = 0
    slashed_wei: int = 0
    published: int = 0  # outputs that a demand brought to light
    refused_proofs: int = 0  # of what an honest node never did
    lost_bond_wei: int = 0  # of the demand that such a node answered

    @property
    def ok(self) -> bool:
        """Whether all of it came out as it should."""
        won = self.slashed_wei and self.published == 2
        lost = self.refused_proofs and self.lost_bond_wei
        return bool(self.session_receipts > 1 and won and lost)


@dataclass(slots=True)
class Scenes:
    """`play` plays them one after another: the visitor sends its transactions itself, so one at a time."""

    net: Devnet
    network: NetworkClient
    chain_of: Market  # anybody's: its connection is used
    told: Callable[[str], None]
    played: Played

    async def play(self, honest_job: Callable[[], Awaitable[int]]) -> None:
        """`honest_job` gives a job that an honest node has just committed, another one each time."""
        await self._lost_dispute(honest_job)
        session = await self._session()
        await self._fraud()
        await self._end_of(session)

    # ---- a session, settled in a batch ----

    async def _session(self) -> bytes:
        visitor = self._as(VISITOR)
        node = min(self.network.nodes(), key=lambda record: record.operator)
        session, deeds = await visitor.desk.open_session(to_checksum_address(node.operator), DEPOSIT_WEI)
        await visitor.carry_out(deeds)
        self.told(f"a visitor deposits {tokens(DEPOSIT_WEI)} OLRA for {self.net.name_of(node.operator)} alone")
        conversation = await self._conversation(visitor, node, session)
        recipe_id = await visitor.recipe(self.net.base_id, ())
        for prompt in SESSION_PROMPTS:
            await self._order(conversation, recipe_id, prompt)
            self.played.session_receipts += 1
        await visitor.carry_out(await visitor.desk.request_close_session(session))
        return session

    async def _conversation(self, visitor: Market, node: Presence, session: bytes) -> Conversation:
        deposits = Deposits(visitor.desk)
        conversation = Conversation(self.network, visitor.key, Place(node, deposits.domain, session))
        await _patiently(lambda: conversation.start(time.time()))
        return conversation

    async def _order(self, conversation: Conversation, recipe_id: int, prompt: str) -> None:
        document = InputDocument(v=1, messages=(ChatMessage("user", prompt),))
        offer = Offer(128, SESSION_OUT_TOKENS, ASK_IN_WEI_PER_K, ASK_OUT_WEI_PER_K)
        _, order = conversation.sign(recipe_id, document, offer, int(time.time()))
        answered = await _patiently(lambda: conversation.answer(order))
        self.told(f"  {prompt} → {' '.join(answered.output.text.split())[:60]}… without a transaction")
        await _patiently(lambda: conversation.pay([answered], time.time()))

    async def _end_of(self, session: bytes) -> None:
        """The node has settled all receipts in one transaction; what is left of the deposit goes back."""
        visitor = self._as(VISITOR)
        deposits = Deposits(visitor.desk)

        async def is_settled() -> bool:
            return (await deposits.read(session)).session.settled > 0

        await _until(is_settled)
        known = (await deposits.read(session)).session
        count = self.played.session_receipts
        self.told(f"the session's {count} receipts are settled by one transaction: {tokens(known.settled)} OLRA in all")
        await self._until_block(lambda head: head.timestamp >= known.close_at)
        await visitor.carry_out(visitor.desk.close_session(session))

    # ---- an output forced out, and two receipts for one job ----

    async def _fraud(self) -> None:
        visitor = self._as(VISITOR)
        job = await self._bargain(visitor)
        output = await self._cheat(job)
        self.told(f"{CHEAT} commits an answer to job {job.job_id} and shows it to nobody: its client demands it")
        receipt, settlement = await committed(visitor.desk, job.job_id)
        await visitor.carry_out(await visitor.desk.demand_output(job.job_id, receipt, settlement))
        cheat = self._as(CHEATS_KEY)
        await cheat.transact(cheat.desk.outputs.publish_output(job.job_id, documents.encode(output)))
        self.played.published += 1
        self.told(f"{CHEAT} publishes it on chain, in time, or the bond of its claim were gone")
        await self._prove(visitor, job, receipt, settlement)
        await self._finalize(visitor, job.job_id, settlement)

    async def _bargain(self, visitor: Market) -> SubmittedJob:
        """A job at a price that only somebody who computes nothing can take."""
        recipe_id = await visitor.recipe(self.net.base_id, ())
        prices = (int(CHEATS_PRICE * ASK_IN_WEI_PER_K), int(CHEATS_PRICE * ASK_OUT_WEI_PER_K))
        document = InputDocument(v=1, messages=(ChatMessage("user", "What is the capital of France?"),))
        return await visitor.submit(recipe_id, document, Offer(128, 32, *prices))

    async def _cheat(self, job: SubmittedJob) -> OutputDocument:
        """Claims, makes an answer up, and commits it."""
        cheat = self._as(CHEATS_KEY)
        claimed = await cheat.transact(cheat.queue.claim(job.job_id, job.spec))
        spec_hash = eip712.spec_digest(self._domain, job.spec)
        seed = eip712.job_seed(spec_hash, claimed.block.hash)
        await self._until_block(lambda head: head.number > claimed.block.number)
        output = OutputDocument(v=1, text="London.", token_ids=(1,), finish_reason="stop", usage=Usage(12, 1))
        signer = Signer(self._domain, self.net.people[CHEAT].address, cheat.key, OWN)
        work_id, head = eip712.work_id(cheat.queue.address, job.job_id), await cheat.chain.block("latest")
        receipt = signer.receipt(job.spec, output, work_id, spec_hash, seed, head.timestamp)
        await cheat.transact(cheat.queue.commit(job.job_id, job.spec, eip712.answer_of(receipt)))
        return output

    async def _prove(self, visitor: Market, job: SubmittedJob, receipt: Receipt, settlement: Settlement) -> None:
        """The cheat has told its client another story, too, and signed it."""
        hot_key = self.net.people[CHEATS_KEY]
        proof = self._contradiction(job.job_id, job.spec, receipt, settlement, hot_key, hot_key.address)
        mined = await visitor.transact(proof)
        (proven,) = (event for event in events_of(mined.logs) if isinstance(event, EquivocationProven))
        self.played.slashed_wei = proven.slashed
        self.told(f"two receipts of {CHEAT} for job {job.job_id} are proven: {tokens(proven.slashed)} OLRA slashed")

    def _contradiction(
        self,
        job_id: int,
        spec: JobSpec,
        receipt: Receipt,
        settlement: Settlement,
        signer: LocalAccount,
        hot_key: ChecksumAddress,
    ) -> Call[None]:
        """What shows that a hot key has signed something else than it committed, if `signer` is that key."""
        other = replace(receipt, output_digest=documents.digest(b"Berlin."))
        signed = SignedReceipt(other, sign_digest(bytes(signer.key), eip712.receipt_digest(self._domain, other)))
        contract = Disputes(self.net.deployment.disputes)
        return contract.prove_contradiction(job_id, spec, settlement, receipt, signed, hot_key)

    async def _finalize(self, visitor: Market, job_id: int, settlement: Settlement) -> None:
        """Anyone may; the cheat does not run a node that would."""
        at_s = (await visitor.job(job_id)).finalizable_at
        await self._until_block(lambda head: head.timestamp > at_s)
        await visitor.transact(visitor.queue.finalize_batch([job_id], [settlement]))

    # ---- a dispute with an honest node ----

    async def _lost_dispute(self, honest_job: Callable[[], Awaitable[int]]) -> None:
        """An honest node is said to withhold its output, with a bond, and to have signed another. It knows of no scene:
        it answers because it is asked, and what the contracts make of that costs the accuser alone."""
        visitor = self._as(VISITOR)
        asked, receipt, settlement = await self._demand_some(visitor, honest_job)
        job_id, name, bond = asked.job_id, self.net.name_of(asked.node), tokens(asked.bond)
        self.told(f"the visitor disputes job {job_id} with a bond of {bond} OLRA:")
        self.told(f"  {name} withholds its output, it says, and has signed another")
        hot_key = (await visitor.chain.call(visitor.nodes.node(receipt.node))).hot_key
        spec = await visitor.spec(job_id)
        try:
            await visitor.transact(self._contradiction(job_id, spec, receipt, settlement, visitor.key, hot_key))
        except Reverted as refusal:
            if refusal.name != "BadSignature":
                raise
            self.told(f"the other receipt is a forgery: {refusal}")
            self.played.refused_proofs += 1

        async def is_answered() -> bool:
            return (await visitor.chain.call(visitor.desk.outputs.question(job_id))).kind is QuestionKind.NONE

        await _until(is_answered)
        self.played.published += 1
        self.played.lost_bond_wei = asked.bond
        self.told(f"{name} has published it on chain: the dispute is lost, and the {bond} OLRA are {name}'s")

    async def _demand_some(
        self, visitor: Market, honest_job: Callable[[], Awaitable[int]]
    ) -> tuple[QuestionAsked, Receipt, Settlement]:
        while True:
            job_id = await honest_job()
            try:
                receipt, settlement = await committed(visitor.desk, job_id)
                mined = await visitor.carry_out(await visitor.desk.demand_output(job_id, receipt, settlement))
            except (Reverted, ChainError):  # its window was over first; there are more
                continue
            (asked,) = (event for event in events_of(mined[-1].logs) if isinstance(event, QuestionAsked))
            return asked, receipt, settlement

    # ---- who acts, and when ----

    async def _until_block(self, condition: Callable[[Block], bool]) -> None:
        async def holds() -> bool:
            return condition(await self.chain_of.chain.block("latest"))

        await _until(holds)

    @property
    def _domain(self) -> Domain:
        return Domain(self.net.chain.chain_id, self.net.deployment.job_queue)

    def _as(self, name: str) -> Market:
        content = BlockContent(self.net.folder / "visitor" / "content")
        return Market(self.chain_of.chain, self.net.deployment, self.net.people[name], content)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Returns once the chain says so. Raises DemoFailed when it does not."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await condition():  # noqa: ASYNC110 - it announces nothing to us
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise DemoFailed(f"what the visitor waited for did not happen in {PATIENCE_S:.0f} s") from None


async def _patiently(talk: Callable[[], Awaitable[T]]) -> T:
    """What a node says once it has a place for this peer, which watches other jobs there; asking again is free."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await talk()
        except NetworkError:
            if time.monotonic() > deadline_s:
                raise
            await asyncio.sleep(POLL_S)
