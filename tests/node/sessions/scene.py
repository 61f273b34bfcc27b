"""A node's signed lane and a client of it, over facts that the test decides and networks within one process."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from eth_account import Account as Keys
from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address

from openlora.contracts import (
    Call,
    Domain,
    Gate,
    InvalidSignature,
    JobSpec,
    Recipe,
    Session,
    Sessions,
    SessionState,
    eip712,
)
from openlora.node.adapters.residency import AdapterResidency
from openlora.node.adapters.store import AdapterStore
from openlora.node.admission import Admission
from openlora.node.answering import Answerer
from openlora.node.chain.types import TxReceipt
from openlora.node.config import MarketConfig, SessionsConfig
from openlora.node.content import BlockContent
from openlora.node.documents import InputDocument, JobSampling
from openlora.node.engine.backends import OWN
from openlora.node.engine.client import in_process_engine
from openlora.node.errors import Reverted
from openlora.node.job import Wei
from openlora.node.journal import Journal
from openlora.node.market import Offer
from openlora.node.network.showing import INFER
from openlora.node.sessions.cashier import Cashier, Checks
from openlora.node.sessions.conversation import Answered, Conversation, Place
from openlora.node.sessions.lane import SessionLane
from openlora.node.sessions.ledger import SessionLedger
from openlora.node.sessions.messages import Order, packed
from openlora.node.sessions.settling import Settler
from openlora.node.settlement import Signer
from openlora.node.streams import JobStreams
from openlora.node.tasks import running
from openlora.node.terms import Terms
from openlora.typed_data import sign_digest, signer_of
from tests.node.facts import IDENTITY, OPERATOR, block, open_journal
from tests.node.fake_engine import FakeEngine
from tests.node.network.fake_peers import FakePeer, FakePeers, presence
from tests.node.tiny_model import tiny_text

BASE_ID = b"\x01" * 32
CONTRACT = Sessions(to_checksum_address("0x" + "5e" * 20))
DOMAIN = Domain(IDENTITY.chain_id, CONTRACT.address)
CLIENT: LocalAccount = Keys.from_key(b"\x0c" * 32)
STRANGER: LocalAccount = Keys.from_key(b"\x0d" * 32)
HOT_KEY: LocalAccount = Keys.from_key(b"\x07" * 32)
SESSION = eip712.session_id(DOMAIN, CLIENT.address, OPERATOR, 1)
RECIPE = Recipe(BASE_ID, (), (), (), 0, Gate.OPEN)
OFFER = Offer(100, 50, 1_000, 3_000)  # escrow 250 wei
DEPOSIT = 1_000
CONFIG = SessionsConfig(settle_at_wei=10**18)


@dataclass
class Facts:
    """What the chain says; every test may say otherwise."""

    known: dict[bytes, Session] = field(default_factory=dict)
    contracts: dict[str, Any] = field(default_factory=dict)  # address → whether it stands by (digest, signature)
    guarded: set[int] = field(default_factory=set)  # recipes whose owners serve nobody
    paid_per_use: set[int] = field(default_factory=set)
    recipes: dict[int, Recipe] = field(default_factory=lambda: dict.fromkeys(range(1, 41), RECIPE))

    async def session(self, session_id: bytes) -> Session:
        none = Session(OPERATOR, OPERATOR, 0, 0, 0, SessionState.NONE)
        return self.known.get(session_id, none)

    confirmed = session

    async def has_signed(self, client: ChecksumAddress, digest: bytes, signature: bytes) -> bool:
        try:
            if signer_of(digest, signature) == client.lower():
                return True
        except InvalidSignature:
            pass
        return client in self.contracts and bool(self.contracts[client](digest, signature))

    async def may_use(self, recipe_id: int, client: ChecksumAddress) -> bool:
        return recipe_id not in self.guarded

    async def is_pay_per_use(self, recipe_id: int) -> bool:
        return recipe_id in self.paid_per_use

    async def recipe(self, recipe_id: int) -> Recipe:
        await asyncio.sleep(0)  # others go on while the chain is asked
        if recipe_id not in self.recipes:
            raise Reverted("UnknownRecipe", "no such recipe")
        return self.recipes[recipe_id]


@dataclass
class Transactions:
    """A sender that settles vouchers on the chain of `Facts`, or reverts."""

    facts: Facts
    sent: list[str] = field(default_factory=list)
    reverts: dict[str, str] = field(default_factory=dict)  # deed → the contract's error

    async def send(self, key: str, call: Call[Any]) -> TxReceipt:
        deed, session, settled = key.split(":")
        if deed in self.reverts:
            raise Reverted(self.reverts[deed], f"{call.name}: {self.reverts[deed]}")
        self.sent.append(key)
        id_ = bytes.fromhex(session)
        self.facts.known[id_] = replace(self.facts.known[id_], settled=int(settled))
        return TxReceipt(bytes(32), block(1), True, 1, Wei(1), None, ())


@dataclass
class Scene:
    lane: SessionLane
    settler: Settler
    ledger: SessionLedger
    facts: Facts
    transactions: Transactions
    engine: FakeEngine
    peers: FakePeers
    node: FakePeer
    hot_key: LocalAccount = HOT_KEY
    now_s: float = 1_000_000_000.0

    def conversation(self, key: LocalAccount = CLIENT, session: bytes = SESSION) -> Conversation:
        network: Any = self.peers.peer("client", staked=False)
        record = msgspec.structs.replace(
            presence(self.node.peer_id, OPERATOR.lower(), BASE_ID.hex()), hot_key=self.hot_key.address.lower()
        )
        return Conversation(network, key, Place(record, DOMAIN, session))

    def change(self, **changes: Any) -> None:
        """The chain says otherwise of the session."""
        self.facts.known[SESSION] = replace(self.facts.known[SESSION], **changes)


def prompt(text: str = "Hello", **sampling: Any) -> InputDocument:
    return InputDocument(v=1, prompt=text, sampling=JobSampling(**sampling))


def signed(
    conversation: Conversation, now_s: float, text: str = "Hello", recipe: int = 1, **changes: Any
) -> tuple[JobSpec, Order]:
    """The session's next order; `changes` are signed, too."""
    spec, order = conversation.sign(recipe, prompt(text), OFFER, int(now_s))
    if not changes:
        return spec, order
    spec = replace(spec, **changes)
    signature = sign_digest(bytes(conversation.key.key), eip712.spec_digest(DOMAIN, spec))
    return spec, msgspec.structs.replace(order, spec=packed(spec), signature=signature)


async def answer(conversation: Conversation, order: Order) -> tuple[list[str], Answered]:
    """Everything streamed, and what it came to."""
    texts: list[str] = []
    async with asyncio.timeout(10):
        async for reply in conversation.ask(order):
            if isinstance(reply, Answered):
                return texts, reply
            texts.append(reply)
    raise AssertionError("it ends with what it came to")


async def paid_order(conversation: Conversation, now_s: float, text: str = "Hello", recipe: int = 1) -> Answered:
    _, order = signed(conversation, now_s, text, recipe)
    _, answered = await answer(conversation, order)
    await conversation.pay([answered], now_s)
    return answered


@asynccontextmanager
async def opened(
    folder: Path,
    journal: Journal,
    config: SessionsConfig = CONFIG,
    script: Sequence[int] | None = b"Ahoy there",
    hot_key: LocalAccount = HOT_KEY,
) -> AsyncIterator[Scene]:
    """A node with this journal, which may be an earlier one's. The client's session with it is open."""
    facts, engine = Facts(), FakeEngine(script=script)
    facts.known[SESSION] = Session(CLIENT.address, OPERATOR, DEPOSIT, 0, 0, SessionState.OPEN)
    transactions = Transactions(facts)
    content = BlockContent(folder / "content")
    store = AdapterStore(folder / "adapters", 1 << 30)
    no_fetcher: Any = None
    any_facts: Any = facts
    sender: Any = transactions
    peers = FakePeers(folder / "peers")
    async with in_process_engine(engine) as client:
        admission = Admission(
            base_id=BASE_ID,
            model=client.info,
            text=tiny_text(folder / "model"),
            content=content,
            fetcher=no_fetcher,
            terms=Terms(MarketConfig(min_in_price_wei_per_k=5, min_out_price_wei_per_k=5), 1),
            storage_dir=folder,
        )
        answerer = Answerer(admission, AdapterResidency(no_fetcher, store, client, 1 << 30), client, JobStreams())
        signer = Signer(DOMAIN, OPERATOR, hot_key, OWN)
        ledger = SessionLedger(journal)
        settler = Settler(CONTRACT, any_facts, ledger, sender, config)
        cashier = Cashier(ledger, Checks(any_facts), signer, config, settler.wake)
        lane = SessionLane(ledger, cashier, any_facts, admission, answerer, signer, config)
        node = peers.peer("node", OPERATOR)
        node.handle(INFER, lane.answer)
        async with running(lane.run(), "lane"):
            await asyncio.sleep(0)  # the lane's group is there
            yield Scene(lane, settler, ledger, facts, transactions, engine, peers, node, hot_key)


@asynccontextmanager
async def new_scene(folder: Path, config: SessionsConfig = CONFIG) -> AsyncIterator[Scene]:
    with open_journal(folder) as journal:
        async with opened(folder, journal, config) as scene:
            yield scene
