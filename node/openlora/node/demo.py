"""The demonstration: a dev network, one real node, twelve jobs, and an account of every wei.

Nothing is staged: the node is the same `openlora run` that an operator starts, in a process of its own; jobs reach it
through the chain alone, answers come back through its socket, and the books are read from the chain's events.
"""

import asyncio
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from openlora.contracts import JobCancelled, JobCommitted, JobFinalized
from openlora.node import agent_client
from openlora.node.base_model import pull
from openlora.node.books import Books
from openlora.node.chain.history import events
from openlora.node.demo_data import DEMO_ADAPTERS, DEMO_PROMPTS
from openlora.node.devnet import ASK_IN_WEI_PER_K, ASK_OUT_WEI_PER_K, MODEL_NAME, Devnet, devnet
from openlora.node.documents import ChatMessage, InputDocument
from openlora.node.errors import AgentUnreachable, OpenLoraError
from openlora.node.market import Market, Offer, SubmittedJob, Term, open_market
from openlora.node.supervise import die_with_parent, stop
from openlora.node.tasks import task_group

NODE_START_TIMEOUT_S: Final = 60.0
NODE_STOP_TIMEOUT_S: Final = 15.0
FINISH_TIMEOUT_S: Final = 180.0
MAX_OUT_TOKENS: Final = 48
POLL_S: Final = 0.25


class DemoFailed(OpenLoraError):
    """A job that did not end as it should, or books that do not balance."""

    exit_code = 1


@dataclass(slots=True)
class DemoJob:
    """One job of the demonstration. `terms` is what people read: "pirate 0.7 + haiku 0.3"."""

    prompt: str
    terms: tuple[tuple[str, float], ...]
    job: SubmittedJob | None = None
    text: str = ""
    state: str = "waiting"

    @property
    def recipe(self) -> str:
        if not self.terms:
            return "base model"
        if len(self.terms) == 1:
            return self.terms[0][0]
        return " + ".join(f"{weight:g} {name}" for name, weight in self.terms)


def demo_jobs() -> list[DemoJob]:
    """Eleven jobs to be answered (base alone, each adapter, two ensembles) and one that nobody will take."""
    names = [adapter.name for adapter in DEMO_ADAPTERS]
    recipes: list[tuple[tuple[str, float], ...]] = [()]
    recipes += [((name, 1.0),) for name in names]
    recipes += [((names[0], 0.6), (names[1], 0.6)), ()]
    recipes += [((name, 1.0),) for name in names]
    recipes += [((names[0], 0.8), (names[1], 0.4), (names[2], 0.2)), ((names[0], 1.0),), ()]
    return [DemoJob(prompt, terms) for prompt, terms in zip(DEMO_PROMPTS, recipes, strict=True)]


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demonstration measured; the last line of `openlora demo --json`."""

    ok: bool
    nodes: int
    jobs: int
    finalized: int
    requeued: int
    tokens: int
    escrow_wei: int
    paid_wei: int
    refunded_wei: int
    first_paid_job_s: float
    seconds: float


class DemoView:
    """What the demonstration tells whoever watches; every method may be overridden."""

    def step(self, text: str) -> None:
        """Something was done."""

    def changed(self, job: DemoJob) -> None:
        """A job has a new state or more text."""


async def run_demo(state: Path, model: Path | None, view: DemoView, port: int = 0) -> tuple[DemoResult, "Ledger"]:
    """Runs the whole demonstration under `state`, which is emptied of an earlier one but for downloaded models.

    No process outlives it, whatever happens. Raises DemoFailed and what its parts raise.
    """
    started_s = time.monotonic()
    if model is None:
        model = await asyncio.to_thread(pull, MODEL_NAME, state / "models", view.step)
    folder = state / "net"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    async with devnet(folder, model, port=port) as net:
        view.step(f"chain {net.chain.chain_id} runs at {net.chain.rpc_url}: contracts deployed, an operator staked,")
        view.step(f"  base model 0x{net.base_id.hex()[:16]}…, adapters {', '.join(net.adapters)} published by CID")
        async with open_market(net.client_config) as client, running_node(net) as node:
            view.step(f"node {node.operator} serves {MODEL_NAME} ({node.dtype})")
            demo = _Demo(net, client, demo_jobs(), view, started_s, net.deployment.block)
            return await demo.run()


@dataclass(frozen=True, slots=True)
class RunningNode:
    operator: str
    dtype: str


@asynccontextmanager
async def running_node(net: Devnet) -> AsyncIterator[RunningNode]:
    """`openlora run` in a process of its own, from when it answers until the block ends. Its log is `node.log`."""
    log_path = net.folder / "node.log"
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "openlora.node", "run", "--config", str(net.node_config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )
    try:
        yield await _until_it_answers(net, process, log_path)
    finally:
        if process.returncode is None:
            process.terminate()
        await stop(process, NODE_STOP_TIMEOUT_S)


async def _until_it_answers(net: Devnet, process: asyncio.subprocess.Process, log_path: Path) -> RunningNode:
    deadline_s = time.monotonic() + NODE_START_TIMEOUT_S
    socket = net.folder / "agent.sock"
    while time.monotonic() < deadline_s and process.returncode is None:
        try:
            state = await asyncio.to_thread(agent_client.get, socket, "/v1/state")
        except AgentUnreachable:
            await asyncio.sleep(POLL_S)
        else:
            return RunningNode(state["operator"], state["model"]["dtype"])
    raise DemoFailed(f"the node did not start; {log_path} says why: {_last_line(log_path)}")


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "(empty)"


@dataclass(frozen=True, slots=True)
class Ledger:
    """The books of the demonstration and who is who in them."""

    books: Books
    name_of: Callable[[str], str]


@dataclass(slots=True)
class _Demo:
    net: Devnet
    client: Market
    jobs: list[DemoJob]
    view: DemoView
    started_s: float
    next_block: int
    history: list[object] = field(default_factory=list)
    first_paid_s: float = 0.0
    tokens: int = 0

    async def run(self) -> tuple[DemoResult, Ledger]:
        async with task_group() as group:
            for demo_job in self.jobs[:-1]:
                await self._submit(demo_job, ASK_IN_WEI_PER_K, ASK_OUT_WEI_PER_K)
                group.create_task(self._stream(demo_job))
            await self._submit(self.jobs[-1], ASK_IN_WEI_PER_K // 2, ASK_OUT_WEI_PER_K // 2)  # below the ask
            group.create_task(self._cancel(self.jobs[-1]))
            group.create_task(self._follow())
        books = Books.of(self.history)
        result = DemoResult(
            ok=books.balanced and not books.open_wei and books.finalized == len(self.jobs) - 1,
            nodes=1,
            jobs=books.jobs,
            finalized=books.finalized,
            requeued=0,
            tokens=self.tokens,
            escrow_wei=books.escrow_wei,
            paid_wei=books.paid_wei,
            refunded_wei=books.refunded_wei,
            first_paid_job_s=round(self.first_paid_s, 1),
            seconds=round(time.monotonic() - self.started_s, 1),
        )
        return result, Ledger(books, self.net.name_of)

    async def _submit(self, demo_job: DemoJob, in_price: int, out_price: int) -> None:
        terms = [Term(self.net.adapters[name], weight) for name, weight in demo_job.terms]
        recipe_id = await self.client.recipe(self.net.base_id, terms)
        document = InputDocument(v=1, messages=(ChatMessage("user", demo_job.prompt),))
        offer = Offer(
            max_in_tokens=128,
            max_out_tokens=MAX_OUT_TOKENS,
            in_price_wei_per_k=in_price,
            out_price_wei_per_k=out_price,
        )
        demo_job.job = await self.client.submit(recipe_id, document, offer)
        self._set_state(demo_job, "queued")

    async def _stream(self, demo_job: DemoJob) -> None:
        """Shows the answer as the node generates it."""
        assert demo_job.job is not None, "submitted before it is watched"
        loop, job_id = asyncio.get_running_loop(), demo_job.job.job_id

        def show(text: str) -> None:
            demo_job.text = text
            self.view.changed(demo_job)

        def read() -> None:
            for _, text in agent_client.watch(self.net.folder / "agent.sock", job_id):
                loop.call_soon_threadsafe(show, text)

        await asyncio.to_thread(read)

    async def _cancel(self, demo_job: DemoJob) -> None:
        """The client takes back a job that nobody wants at its price, once the node has passed it over."""
        assert demo_job.job is not None, "submitted before it is cancelled"
        await asyncio.to_thread(list, agent_client.watch(self.net.folder / "agent.sock", demo_job.job.job_id))
        await self.client.cancel(demo_job.job.job_id)

    async def _follow(self) -> None:
        """Shows what the chain says of each job, until all have ended there. Raises DemoFailed if that takes long."""
        deadline_s = time.monotonic() + FINISH_TIMEOUT_S
        while time.monotonic() < deadline_s:
            for event in await self._new_events():
                match event:
                    case JobCommitted():
                        self.tokens += event.receipt.out_tokens
                        self._set_chain_state(event.job_id, "committed")
                    case JobFinalized():
                        self.first_paid_s = self.first_paid_s or time.monotonic() - self.started_s
                        self._set_chain_state(event.job_id, "paid")
                    case JobCancelled():
                        self._set_chain_state(event.job_id, "cancelled by its client")
            if all(demo_job.state in ("paid", "cancelled by its client") for demo_job in self.jobs):
                return
            await asyncio.sleep(POLL_S)
        unfinished = ", ".join(f"{job.job.job_id if job.job else '?'} ({job.state})" for job in self.jobs)
        raise DemoFailed(
            f"the jobs did not end in {FINISH_TIMEOUT_S:.0f} s: {unfinished}; see {self.net.folder}/node.log"
        )

    def _set_chain_state(self, job_id: int, state: str) -> None:
        for demo_job in self.jobs:
            if demo_job.job is not None and demo_job.job.job_id == job_id:
                self._set_state(demo_job, state)

    def _set_state(self, demo_job: DemoJob, state: str) -> None:
        if demo_job.state != state and not (demo_job.state == "paid" and state == "committed"):
            demo_job.state = state
            self.view.changed(demo_job)

    async def _new_events(self) -> Sequence[object]:
        """The queue's events since the last call."""
        head = (await self.client.chain.block("latest")).number
        new = await events(self.client.chain, self.net.deployment.job_queue, self.next_block, head)
        self.next_block = head + 1
        self.history += new
        return new
