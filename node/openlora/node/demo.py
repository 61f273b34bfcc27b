"""The demonstration: three nodes, twenty-five jobs, one murder, one fraud, and an account of every wei.

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

from openlora.contracts import Access, Role
from openlora.node.audit import audit_vault
from openlora.node.books import Books
from openlora.node.config import EngineConfig
from openlora.node.config_files import ENGINE
from openlora.node.content import BlockContent, adapter_cid
from openlora.node.demo_books import DemoResult, Ledger
from openlora.node.demo_chain import DemoChain
from openlora.node.demo_data import DEMO_ADAPTERS
from openlora.node.demo_jobs import ENDED, DemoJob, DemoView, demo_jobs
from openlora.node.demo_nodes import DemoFailed, NodeProcess, node_processes
from openlora.node.demo_scenes import Played, Scenes
from openlora.node.devnet import DEVELOPERS, MODEL_NAME, OLRA, Devnet, devnet
from openlora.node.documents import ChatMessage, InputDocument
from openlora.node.known_models import pull
from openlora.node.market import Market, Term
from openlora.node.network.client import NetworkClient
from openlora.node.network.participant import Participant, participant
from openlora.node.network.replication import replicate
from openlora.node.network.watching import follow_answer
from openlora.node.penalties import Penalties
from openlora.node.tasks import task_group
from openlora.node.wei import tokens

MEET_TIMEOUT_S: Final = 60.0
WATCH_S: Final = 0.05  # of what this process sees of the others
USE_FEE_WEI: Final = OLRA // 100
KILL_AFTER_CHARACTERS: Final = 40
AFTER_RESTART: Final = 4  # jobs that wait until the killed node is back


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
            jobs = demo_jobs()
            demo = _Demo(net, client, nodes, jobs, view, DemoChain(net, client.market.chain, jobs, view))
            await demo.start(nodes[:-1])
            await demo.replicate()
            await demo.charge()
            await net.developers_leave()
            view.step("the developers' machine is off; from here on the nodes have only each other")
            await demo.run()
            return await demo.account(started_s)


@dataclass(slots=True)
class _Demo:
    net: Devnet
    client: Participant
    nodes: Sequence[NodeProcess]
    jobs: list[DemoJob]
    view: DemoView
    chain: DemoChain
    fetched_before: dict[str, int] = field(default_factory=dict)  # bytes, by node
    back: asyncio.Event = field(default_factory=asyncio.Event)  # the killed node is
    played: Played = field(default_factory=Played)

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

    async def run(self) -> None:
        """Returns when every job has ended and every scene is over."""
        self.fetched_before = {node.name: await self._fetched(node) for node in self.nodes[:-1]}
        async with task_group() as group:
            group.create_task(self.chain.follow())
            group.create_task(self._newcomer())
            group.create_task(self._kill_one())
            group.create_task(self._play())
            group.create_task(self._take_back())
            for number, demo_job in enumerate(self.jobs):
                if number == len(self.jobs) - AFTER_RESTART:
                    await self.back.wait()
                await self._submit(demo_job)
                if demo_job.wanted:
                    group.create_task(self._stream(demo_job))
        await self.chain.read()  # what came after the last job's end

    async def account(self, started_s: float) -> tuple[DemoResult, Ledger]:
        """What came of it since `started_s`, by the monotonic clock."""
        books = Books.of(self.chain.history)
        use_fees_wei = sum(wei for (role, _), wei in books.earned.items() if role is Role.USE)
        vault = await audit_vault(self.client.market.desk, [key.address for key in self.net.people.values()])
        ledger = Ledger(books, Penalties.of(self.chain.history), vault, self.net.name_of)
        travelled_bytes = sum(
            [await self._fetched(node) - self.fetched_before.get(node.name, 0) for node in self.nodes]
        )
        result = DemoResult(
            ok=(
                ledger.balanced
                and books.finalized == len(self.jobs)  # one is cancelled, the cheat's is more
                and self.chain.requeued > 0
                and self.played.ok
                and use_fees_wei > 0
            ),
            nodes=len(self.nodes),
            jobs=books.jobs,
            finalized=books.finalized,
            requeued=self.chain.requeued,
            tokens=self.chain.tokens,
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
            first_paid_job_s=round(self.chain.first_paid_at_s - started_s, 1),
            seconds=round(time.monotonic() - started_s, 1),
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
        document = InputDocument(v=1, messages=(ChatMessage("user", demo_job.prompt),))
        demo_job.job = await market.submit(recipe_id, document, demo_job.offer)
        self.chain.show(demo_job, "queued")

    async def _stream(self, demo_job: DemoJob) -> None:
        """Shows the answer as it comes over the network, from whichever node holds the job."""
        assert demo_job.job is not None, "submitted before it is watched"
        async for _, text in follow_answer(self.client.market, self.client.network, demo_job.job.job_id):
            demo_job.text = text
            self.view.changed(demo_job)

    async def _take_back(self) -> None:
        """What nobody wants at its price, once all else has ended."""
        await _until(lambda: all(demo_job.state in ENDED for demo_job in self.jobs if demo_job.wanted))
        for demo_job in self.jobs:
            if demo_job.job is not None and not demo_job.wanted:
                await self.client.market.cancel(demo_job.job.job_id)

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
        await _until(lambda: self.chain.requeued)
        self.view.step(f"job {victim.job.job_id} is taken over by {victim.node}; {node.name} is started again")
        await node.start()
        self.fetched_before[node.name] = 0  # a new life counts anew
        state = (await node.ask(f"/v1/jobs/{victim.job.job_id}"))["state"]
        self.view.step(f"{node.name} is back, and its journal says of job {victim.job.job_id}: {state}")
        self.back.set()

    # ---- the visitor, and whom it catches ----

    async def _play(self) -> None:
        """Once jobs are being paid: the scenes, whose jobs are none of the client's."""
        await _until(lambda: self.chain.first_paid_at_s)
        scenes = Scenes(self.net, self.client.network, self.client.market, self.view.step, self.played)
        await scenes.play(self.chain.honest_job)


def _sees(watcher: NetworkClient, peers: Set[str]) -> bool:
    return peers <= {record.peer for record in watcher.nodes()}


async def _until(condition: Callable[[], object]) -> None:
    """Returns once `condition` holds, which other processes bring about and none of them announces."""
    while not condition():  # noqa: ASYNC110 - so there is no event to wait for
        await asyncio.sleep(WATCH_S)
