"""The demonstration: three nodes, twenty-four jobs, one murder, one fraud, and an account of every wei.

Nothing is staged: each node is the same `openlora run` that an operator starts, in a process of its own; jobs reach the
nodes through the chain alone, adapters and answers travel over libp2p, and the books are read from the chain's events.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from openlora.contracts import (
    Access,
    ForfeitPaid,
    JobCancelled,
    JobClaimed,
    JobCommitted,
    JobFinalized,
    JobHeld,
    JobReleased,
    JobResumed,
    LeaseLapsed,
    Role,
)
from openlora.node.audit import VaultAudit, audit_vault
from openlora.node.base_model import pull
from openlora.node.books import Books
from openlora.node.chain.history import market_events
from openlora.node.config import EngineConfig
from openlora.node.config_files import ENGINE
from openlora.node.content import BlockContent, adapter_cid
from openlora.node.demo_data import DEMO_ADAPTERS, DEMO_PROMPTS
from openlora.node.demo_nodes import DemoFailed, NodeProcess, node_processes
from openlora.node.demo_scenes import Played, Scenes
from openlora.node.devnet import (
    ASK_IN_WEI_PER_K,
    ASK_OUT_WEI_PER_K,
    BARGAIN,
    DEVELOPERS,
    MODEL_NAME,
    OLRA,
    OPERATORS,
    Devnet,
    devnet,
)
from openlora.node.documents import ChatMessage, InputDocument
from openlora.node.market import Market, Offer, SubmittedJob, Term
from openlora.node.network.client import NetworkClient
from openlora.node.network.participant import Participant, participant
from openlora.node.network.replication import replicate
from openlora.node.network.watching import follow_answer
from openlora.node.penalties import Penalties
from openlora.node.tasks import task_group
from openlora.node.wei import tokens

FINISH_TIMEOUT_S: Final = 240.0
MEET_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.25  # of the chain
WATCH_S: Final = 0.05  # of what this process sees of the others
NOBODYS_PRICE: Final = 0.5
USE_FEE_WEI: Final = OLRA // 100
LEASE_S: Final = 90
MAX_OUT_TOKENS: Final = 48
LONG_LEASE_S: Final = 30  # of the job whose node is killed: soon over
LONG_OUT_TOKENS: Final = 64
KILL_AFTER_CHARACTERS: Final = 40
AFTER_RESTART: Final = 4  # jobs that wait until the killed node is back

ENDED: Final = frozenset({"paid", "cancelled"})


@dataclass(slots=True)
class DemoJob:
    """One job of the demonstration. `terms` is what people read: "pirate 0.7 + haiku 0.3"."""

    prompt: str
    terms: tuple[tuple[str, float], ...] = ()
    long: bool = False
    price: float = 1.0  # of what most nodes ask
    job: SubmittedJob | None = None
    text: str = ""
    state: str = "waiting"
    node: str = ""  # who holds it, or answered it

    @property
    def recipe(self) -> str:
        if not self.terms:
            return "base model"
        if len(self.terms) == 1:
            return self.terms[0][0]
        return " + ".join(f"{weight:g} {name}" for name, weight in self.terms)


def demo_jobs() -> list[DemoJob]:
    """Base model, single adapters and ensembles in turn: one long answer, four bids that only the cheapest node takes,
    and one that nobody does."""
    first, second, third = (adapter.name for adapter in DEMO_ADAPTERS)
    recipes: list[tuple[tuple[str, float], ...]] = [(), ((first, 1.0),), ((second, 1.0),), ((third, 1.0),)]
    recipes += [((first, 0.6), (second, 0.6)), ((first, 0.8), (second, 0.4), (third, 0.2))]
    jobs = [DemoJob(prompt, recipes[number % len(recipes)]) for number, prompt in enumerate(DEMO_PROMPTS)]
    jobs[4] = DemoJob("Tell me a long story about a lighthouse.", long=True)
    jobs[10].price = NOBODYS_PRICE
    for number in (13, 14, 15, 17):  # each adapter, and all together
        jobs[number].price = BARGAIN
    return jobs


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demonstration measured; the last line of `openlora demo --json`."""

    ok: bool
    nodes: int
    jobs: int
    finalized: int
    requeued: int
    tokens: int
    travelled_bytes: int
    escrow_wei: int
    paid_wei: int
    refunded_wei: int
    session_receipts: int
    published: int
    refused_proofs: int
    lost_bond_wei: int
    slashed_wei: int
    use_fees_wei: int
    vault_wei: int
    first_paid_job_s: float
    seconds: float


class DemoView:
    """What the demonstration tells whoever watches; every method may be overridden."""

    def step(self, text: str) -> None:
        """Something was done."""

    def changed(self, job: DemoJob) -> None:
        """A job has a new state or more text."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The books of the demonstration and who is who in them."""

    books: Books
    penalties: Penalties
    vault: VaultAudit
    name_of: Callable[[str], str]

    @property
    def balanced(self) -> bool:
        """Whether nothing is open or missing, and all credits in the Vault are what the events say, to the wei."""
        books, penalties = self.books, self.penalties
        as_told = all(
            wei == books.earned_by(account) + penalties.won_by(account) for account, wei in self.vault.credits.items()
        )
        nothing_open = not books.open_wei and not penalties.waiting_wei
        return books.balanced and self.vault.balanced and as_told and nothing_open


async def run_demo(
    state: Path, model: Path | None, view: DemoView, port: int = 0, engine: EngineConfig = ENGINE
) -> tuple[DemoResult, Ledger]:
    """Runs the whole demonstration under `state`, which is emptied of an earlier one but for downloaded models.

    No process outlives it, whatever happens. Raises DemoFailed and what its parts raise.
    """
    started_s = time.monotonic()
    if model is None:
        model = await asyncio.to_thread(pull, MODEL_NAME, state / "models", view.step)
    folder = state / "net"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    async with devnet(folder, model, port=port, engine=engine) as net:
        view.step(f"chain {net.chain.chain_id} runs at {net.chain.rpc_url}: contracts deployed, operators staked,")
        view.step(f"  base model 0x{net.base_id.hex()[:16]}…, two datanets, adapters {', '.join(net.adapters)}")
        view.step(f"  the nodes' pages: {', '.join(f'http://{node.dashboard}' for node in net.nodes)}")
        async with node_processes(net.nodes) as nodes, participant(net.client_config) as client:
            demo = _Demo(net, client, nodes, demo_jobs(), view, started_s, net.deployment.block)
            await demo.start(nodes[:-1])
            await demo.replicate()
            await demo.charge()
            await net.developers_leave()
            view.step("the developers' machine is off; from here on the nodes have only each other")
            return await demo.run()


@dataclass(slots=True)
class _Demo:
    net: Devnet
    client: Participant
    nodes: Sequence[NodeProcess]
    jobs: list[DemoJob]
    view: DemoView
    started_s: float
    next_block: int
    history: list[object] = field(default_factory=list)
    first_paid_s: float = 0.0
    tokens: int = 0
    requeued: int = 0
    fetched_before: dict[str, int] = field(default_factory=dict)  # bytes, by node
    back: asyncio.Event = field(default_factory=asyncio.Event)  # the killed node is
    played: Played = field(default_factory=Played)
    _committed: asyncio.Event = field(default_factory=asyncio.Event)
    _last_committed: int = 0

    async def start(self, nodes: Sequence[NodeProcess]) -> None:
        """Returns when the client and the developers see the nodes' signed presence. Raises DemoFailed."""
        await asyncio.gather(*(node.start() for node in nodes))
        peers = {node.place.peer_id for node in nodes}
        try:
            async with asyncio.timeout(MEET_TIMEOUT_S):
                for watcher in (self.client.network, self.net.developers):
                    await _until(partial(_sees, watcher, peers))
        except TimeoutError:
            raise DemoFailed(f"the nodes were not seen on the network within {MEET_TIMEOUT_S:.0f} s") from None
        self.view.step(f"{' and '.join(node.name for node in nodes)} serve {MODEL_NAME}, found over libp2p")

    async def replicate(self) -> None:
        """The developers hand each adapter to the nodes that are there, so that it outlives their machine."""
        names = {node.place.peer_id: node.name for node in self.nodes}
        local = BlockContent(self.net.developers_content)
        for name, digest in self.net.adapters.items():
            cid = adapter_cid(digest)
            replicas = await replicate(self.net.developers, cid, await local.size(cid), copies=len(self.nodes) - 1)
            if not replicas.enough:
                raise DemoFailed(f"adapter {name}: {replicas}")
            holders = " and ".join(sorted(names[peer] for peer in replicas.holders))
            self.view.step(f"adapter {name}, {cid[:16]}…, is kept by {holders}")

    async def charge(self) -> None:
        """The last developer's adapter costs a fee a job from now on, beside what nodes ask."""
        name, key = DEMO_ADAPTERS[-1].name, self.net.people[DEVELOPERS[-1]]
        developer = Market(self.client.market.chain, self.net.deployment, key, self.client.market.content)
        deeds = developer.desk.set_access(self.net.adapters[name], Access.PAY_PER_USE, USE_FEE_WEI)
        await developer.carry_out(deeds)
        self.view.step(f"{DEVELOPERS[-1]} asks {tokens(USE_FEE_WEI)} OLRA for every job that uses {name}")

    async def run(self) -> tuple[DemoResult, Ledger]:
        self.fetched_before = {node.name: await self._fetched(node) for node in self.nodes[:-1]}
        async with task_group() as group:
            group.create_task(self._follow())
            group.create_task(self._newcomer())
            group.create_task(self._kill_one())
            group.create_task(self._play())
            for number, demo_job in enumerate(self.jobs):
                if number == len(self.jobs) - AFTER_RESTART:
                    await self.back.wait()
                await self._submit(demo_job)
                if demo_job.price > NOBODYS_PRICE:
                    group.create_task(self._stream(demo_job))
        await self._new_events()  # what came after the last job's end
        books = Books.of(self.history)
        use_fees_wei = sum(wei for (role, _), wei in books.earned.items() if role is Role.USE)
        vault = await audit_vault(self.client.market.desk, [key.address for key in self.net.people.values()])
        ledger = Ledger(books, Penalties.of(self.history), vault, self.net.name_of)
        travelled_bytes = sum(
            [await self._fetched(node) - self.fetched_before.get(node.name, 0) for node in self.nodes]
        )
        result = DemoResult(
            ok=(
                ledger.balanced
                and (books.finalized == len(self.jobs) and self.requeued > 0)  # one is cancelled, the cheat's is more
                and self.played.ok
                and use_fees_wei > 0
            ),
            nodes=len(self.nodes),
            jobs=books.jobs,
            finalized=books.finalized,
            requeued=self.requeued,
            tokens=self.tokens,
            travelled_bytes=travelled_bytes,
            escrow_wei=books.escrow_wei,
            paid_wei=books.paid_wei,
            refunded_wei=books.refunded_wei,
            session_receipts=self.played.session_receipts,
            published=self.played.published,
            refused_proofs=self.played.refused_proofs,
            lost_bond_wei=self.played.lost_bond_wei,
            slashed_wei=self.played.slashed_wei,
            use_fees_wei=use_fees_wei,
            vault_wei=vault.held_wei,
            first_paid_job_s=round(self.first_paid_s, 1),
            seconds=round(time.monotonic() - self.started_s, 1),
        )
        return result, ledger

    async def _fetched(self, node: NodeProcess) -> int:
        """Bytes of blocks that the node had from others in this life."""
        return int((await node.ask("/v1/state"))["network"]["fetched_bytes"])

    # ---- the client ----

    async def _submit(self, demo_job: DemoJob) -> None:
        market = self.client.market
        terms = [Term(self.net.adapters[name], weight) for name, weight in demo_job.terms]
        recipe_id = await market.recipe(self.net.base_id, terms)
        offer = Offer(
            max_in_tokens=128,
            max_out_tokens=LONG_OUT_TOKENS if demo_job.long else MAX_OUT_TOKENS,
            in_price_wei_per_k=int(demo_job.price * ASK_IN_WEI_PER_K),
            out_price_wei_per_k=int(demo_job.price * ASK_OUT_WEI_PER_K),
            lease_s=LONG_LEASE_S if demo_job.long else LEASE_S,
        )
        document = InputDocument(v=1, messages=(ChatMessage("user", demo_job.prompt),))
        demo_job.job = await market.submit(recipe_id, document, offer)
        self._set(demo_job, "queued")

    async def _stream(self, demo_job: DemoJob) -> None:
        """Shows the answer as it comes over the network, from whichever node holds the job."""
        assert demo_job.job is not None, "submitted before it is watched"
        async for _, text in follow_answer(self.client.market, self.client.network, demo_job.job.job_id):
            demo_job.text = text
            self.view.changed(demo_job)

    # ---- the newcomer ----

    async def _newcomer(self) -> None:
        """A third node joins with an empty disk. It is the cheapest, and what it lacks it has from the others."""
        newcomer = self.nodes[-1]
        await newcomer.start()
        self.view.step(f"{newcomer.name} joined: the cheapest, and with no adapter of its own")

    # ---- the murder ----

    async def _kill_one(self) -> None:
        """Kills the node that is answering the long job; once another has taken the job over, starts it again."""
        (victim,) = (demo_job for demo_job in self.jobs if demo_job.long)
        await _until(lambda: victim.state == "running" and len(victim.text) > KILL_AFTER_CHARACTERS)
        assert victim.job is not None, "a job that runs was submitted"
        (node,) = (node for node in self.nodes if node.name == victim.node)
        await node.kill()
        self.view.step(f"{node.name} was killed while it answered job {victim.job.job_id}; its lease must run out")
        await _until(lambda: self.requeued)
        self.view.step(f"job {victim.job.job_id} is taken over by {victim.node}; {node.name} is started again")
        await node.start()
        self.fetched_before[node.name] = 0  # a new life counts anew
        state = (await node.ask(f"/v1/jobs/{victim.job.job_id}"))["state"]
        self.view.step(f"{node.name} is back, and its journal says of job {victim.job.job_id}: {state}")
        self.back.set()

    # ---- the visitor, and whom it catches ----

    async def _play(self) -> None:
        """Once jobs are being paid: the scenes, whose jobs are none of the client's."""
        await _until(lambda: self.first_paid_s)
        scenes = Scenes(self.net, self.client.network, self.client.market, self.view.step, self.played)
        await scenes.play(self._honest_job)

    async def _honest_job(self) -> int:
        """A job that a node has just committed. Raises DemoFailed when none is any more."""
        self._committed.clear()
        try:
            async with asyncio.timeout(FINISH_TIMEOUT_S / 2):
                await self._committed.wait()
        except TimeoutError:
            raise DemoFailed("no job was committed while its output could be demanded") from None
        return self._last_committed

    # ---- the chain ----

    async def _follow(self) -> None:
        """Shows what the chain says of each job, until all have ended there. Raises DemoFailed if that takes long."""
        deadline_s = time.monotonic() + FINISH_TIMEOUT_S
        while time.monotonic() < deadline_s:
            for event in await self._new_events():
                self._apply(event)
            unfinished = [job for job in self.jobs if job.state not in ENDED]
            if not unfinished:
                return
            if all(
                job.price == NOBODYS_PRICE for job in unfinished
            ):  # what nobody wants at its price, its client takes back
                await self._cancel(*unfinished)
            await asyncio.sleep(POLL_S)
        stuck = ", ".join(f"{job.job.job_id if job.job else '?'} ({job.state})" for job in unfinished)
        logs = self.net.folder / "node-*" / "node.log"
        raise DemoFailed(f"the jobs did not end in {FINISH_TIMEOUT_S:.0f} s: {stuck}; see {logs}")

    async def _cancel(self, *jobs: DemoJob) -> None:
        for demo_job in jobs:
            if demo_job.job is not None and demo_job.state == "queued":
                await self.client.market.cancel(demo_job.job.job_id)
                self._set(demo_job, "cancelling")

    def _apply(self, event: object) -> None:
        match event:
            case JobClaimed():
                self._set_by_id(event.job_id, "running", self._node_name(event.node))
            case LeaseLapsed():
                self.requeued += 1
            case JobReleased():
                self._set_by_id(event.job_id, "queued", "")
            case JobCommitted():
                self.tokens += event.receipt.out_tokens
                self._set_by_id(event.job_id, "committed", self._node_name(event.node))
                if event.job_id != self.played.cheats_job:
                    self._last_committed = event.job_id
                    self._committed.set()
            case JobHeld():
                self._set_by_id(event.job_id, "held")
            case JobResumed():
                self._set_by_id(event.job_id, "committed")
            case JobFinalized():
                self.first_paid_s = self.first_paid_s or time.monotonic() - self.started_s
                self._set_by_id(event.job_id, "paid")
            case JobCancelled():
                self._set_by_id(event.job_id, "cancelled")
            case ForfeitPaid():
                if (who := self.net.name_of(event.beneficiary)) in OPERATORS:
                    self.view.step(f"{who} is credited the bond that the killed node lost, but for a tenth")

    def _set_by_id(self, job_id: int, state: str, node: str | None = None) -> None:
        for demo_job in self.jobs:
            if demo_job.job is not None and demo_job.job.job_id == job_id:
                demo_job.node = demo_job.node if node is None else node
                self._set(demo_job, state)

    def _set(self, demo_job: DemoJob, state: str) -> None:
        if demo_job.state != state:
            demo_job.state = state
            self.view.changed(demo_job)

    def _node_name(self, operator: str) -> str:
        """ "node-2" for operator 2."""
        return self.net.name_of(operator).replace("operator ", "node-")

    async def _new_events(self) -> Sequence[object]:
        """What the market's contracts said since the last call."""
        market, deployment = self.client.market, self.net.deployment
        head = (await market.chain.block("latest")).number
        new = await market_events(market.chain, deployment, self.next_block, head)
        self.next_block = head + 1
        self.history += new
        return new


def _sees(watcher: NetworkClient, peers: Set[str]) -> bool:
    return peers <= {record.peer for record in watcher.nodes()}


async def _until(condition: Callable[[], object]) -> None:
    """Returns once `condition` holds, which other processes bring about and none of them announces."""
    while not condition():  # noqa: ASYNC110 - so there is no event to wait for
        await asyncio.sleep(WATCH_S)
