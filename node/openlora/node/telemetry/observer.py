"""Looks at the parts of a running node and tells what it saw, as one snapshot."""

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from openlora.node.engine.client import InferenceEngine
from openlora.node.engine.messages import Status
from openlora.node.errors import ChainError, ChildDied
from openlora.node.hardware import Gpu, ram_available_bytes, read_gpus
from openlora.node.job import Job, JobState
from openlora.node.journal import Journal
from openlora.node.live_claims import LiveClaims
from openlora.node.network.announcing import Announcer, newest
from openlora.node.network.messages import Stats
from openlora.node.tasks import task_group
from openlora.node.telemetry import snapshot as shown
from openlora.node.telemetry.alerts import Facts, Thresholds, alerts
from openlora.node.telemetry.snapshot import MAX_DIGESTS, MAX_LIVE_JOBS, Snapshot

log = logging.getLogger(__name__)

CHAIN_EVERY_S: Final = 10.0  # how often stake, gas and credits are read
MACHINE_EVERY_S: Final = 5.0
PAYMENTS_EVERY_S: Final = 1.0
PAYMENT_BLOCKS: Final = 16  # whose times are asked for at once
CHILD_TIMEOUT_S: Final = 1.0  # for a child's figures; those of the last time do until then
ON_CHAIN: Final = (JobState.CLAIMED, JobState.COMMITTING)  # a lease runs

NO_STATUS: Final = Status(running=0, waiting=0, kv_tokens_free=0, adapters=(), steps=0, generated_tokens=0)
NO_STATS: Final = Stats(
    id=0,
    peers=0,
    bytes_in=0,
    bytes_out=0,
    blocks_fetched=0,
    block_bytes_fetched=0,
    blocks_served=0,
    block_bytes_served=0,
    refused={},
)


@dataclass(slots=True, kw_only=True)
class Observer:
    """Owns what is known of the slow parts (chain, machine); the rest is read when a snapshot is asked for.

    `run` keeps the slow parts fresh. Whatever a part does, it costs a snapshot at most `CHILD_TIMEOUT_S`.
    """

    chain_id: int
    state_dir: Path
    announcer: Announcer
    journal: Journal
    engine: InferenceEngine
    engine_profile: int
    active_jobs: Callable[[], int]
    claims: LiveClaims
    purse: Callable[[], Awaitable[shown.Stake]]
    block_time: Callable[[int], Awaitable[int]]  # of a block's number, in unix seconds
    thresholds: Thresholds
    chain_s: Callable[[], float]  # the chain's time, which leases are in
    clock_ahead_s: Callable[[], int] = lambda: 0  # of the chain's, where they have parted
    broker_refusal: Callable[[], str] = lambda: ""
    gpus: Callable[[], Collection[Gpu]] = read_gpus
    _started_at_s: float = field(default_factory=time.time)
    _stake: shown.Stake | None = None
    _chain_answers: bool = True
    _machine: shown.Machine | None = None
    _status: Status = NO_STATUS
    _stats: Stats = NO_STATS

    async def run(self) -> None:
        """Reads chain and machine, each at its pace, until cancelled. Raises nothing else."""
        async with task_group() as group:
            group.create_task(self._keep(self._look_at_chain, CHAIN_EVERY_S), name="observe-chain")
            group.create_task(self._keep(self._look_at_machine, MACHINE_EVERY_S), name="observe-machine")
            group.create_task(self._keep(self._time_payments, PAYMENTS_EVERY_S), name="time-payments")

    async def _keep(self, look: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            try:
                await look()
            except Exception:  # a task's root: what is not seen must not end the node
                log.exception("event=observation_failed")
            await asyncio.sleep(every_s)

    async def _look_at_chain(self) -> None:
        try:
            self._stake = await self.purse()
            self._chain_answers = True
        except ChainError as error:
            if self._chain_answers:
                log.warning("event=stake_unknown reason=%r", str(error))
            self._chain_answers = False

    async def _time_payments(self) -> None:
        """Asks when blocks that paid were, for earnings over time; an RPC that does not answer is asked again."""
        with suppress(ChainError):
            for number in self.journal.untimed_payment_blocks(PAYMENT_BLOCKS):
                self.journal.time_payments(number, await self.block_time(number))

    async def _look_at_machine(self) -> None:
        self._machine = await asyncio.to_thread(self._read_machine)

    async def snapshot(self) -> Snapshot:
        """The node now."""
        await self._ask_children()
        cursor = self.journal.cursor
        chain = shown.Chain(
            chain_id=self.chain_id,
            block_number=cursor.number if cursor else None,
            answers=self._chain_answers,
            clock_ahead_s=self.clock_ahead_s(),
        )
        counts = self.journal.counts()
        if self._machine is None:
            await self._look_at_machine()
            assert self._machine is not None, "just read"
        facts = Facts(
            chain=chain,
            stake=self._stake,
            engine=self._engine(),
            network=self._network(),
            machine=self._machine,
            queue=self._queue(counts),
            broker_refusal=self.broker_refusal(),
        )
        return Snapshot(
            node=self._node(),
            chain=facts.chain,
            model=self._model(),
            stake=facts.stake,
            engine=facts.engine,
            queue=facts.queue,
            jobs_by_state={str(state): count for state, count in counts.items() if count},
            adapters=self._adapters(),
            machine=facts.machine,
            network=facts.network,
            earnings=self._earnings(),
            broker_refusal=facts.broker_refusal,
            alerts=alerts(facts, self.thresholds, self.chain_s()),
        )

    async def _ask_children(self) -> None:
        """Refreshes the figures of the engine and of the network process; a silent one's stay as they were."""
        if not self.engine.alive:
            self._status = NO_STATUS
        if not self.announcer.network.alive:
            self._stats = NO_STATS
        with suppress(ChildDied, TimeoutError):
            async with asyncio.timeout(CHILD_TIMEOUT_S):
                if self.engine.alive:
                    self._status = await self.engine.status()
                if self.announcer.network.alive:
                    self._stats = await self.announcer.network.stats()

    # ---- parts ----

    def _node(self) -> shown.Node:
        announcer = self.announcer
        return shown.Node(
            operator=announcer.operator,
            hot_key=announcer.hot_key,
            peer_id=announcer.network.peer_id,
            addresses=tuple(announcer.network.addresses),
            version=announcer.version,
            started_at_s=self._started_at_s,
        )

    def _model(self) -> shown.Model:
        model = self.announcer.model
        return shown.Model(
            name=model.name,
            base_id="0x" + model.base_id,
            dtype=model.dtype,
            max_context_tokens=model.max_context,
        )

    def _engine(self) -> shown.Engine:
        status = self._status
        return shown.Engine(
            alive=self.engine.alive,
            backend=self.engine.info.backend,
            profile=self.engine_profile,
            running_requests=status.running,
            waiting_requests=status.waiting,
            kv_capacity_tokens=self.engine.info.kv_tokens,
            kv_free_tokens=status.kv_tokens_free,
            kv_cached_tokens=status.kv_tokens_cached,
            cache_hit_tokens=status.cache_hit_tokens,
            preemptions_total=status.preemptions,
            drafted_tokens=status.drafted_tokens,
            accepted_tokens=status.accepted_tokens,
            generated_tokens=status.generated_tokens,
            steps_total=status.steps,
        )

    def _queue(self, counts: dict[JobState, int]) -> shown.Queue:
        live = self.journal.jobs(JobState.CLAIMING, *ON_CHAIN, limit=MAX_LIVE_JOBS)
        return shown.Queue(
            waiting_jobs=counts[JobState.SEEN],
            active_jobs=self.active_jobs(),
            capacity_jobs=self.announcer.terms.capacity_jobs,
            draining=self.announcer.terms.draining,
            skipped_jobs={str(code): count for code, count in self.journal.skips().items()},
            live=tuple(self._live_job(job) for job in live),
        )

    def _live_job(self, job: Job) -> shown.LiveJob:
        ends_at_s = None
        if job.state in ON_CHAIN:
            ends_at_s = self.claims.ends_at_s(job.id) or job.changed_at + job.spec.lease_secs
        return shown.LiveJob(
            job_id=job.id,
            state=str(job.state),
            recipe_id=job.spec.recipe_id,
            changed_at_s=job.changed_at,
            lease_ends_at_s=ends_at_s,
        )

    def _adapters(self) -> shown.Adapters:
        announcer = self.announcer
        return shown.Adapters(
            slots=_tier(announcer.residency.loaded),
            disk=_tier(announcer.store.digests()),
            disk_bytes=announcer.store.used_bytes,
        )

    def _read_machine(self) -> shown.Machine:
        hardware = self.announcer.hardware
        return shown.Machine(
            cpu=hardware.cpu,
            cpu_cores=hardware.cores,
            load_1m_processes=round(os.getloadavg()[0], 1),
            ram_bytes=hardware.ram_bytes,
            ram_available_bytes=ram_available_bytes(),
            disk_free_bytes=shutil.disk_usage(self.state_dir).free,
            gpus=tuple(_gpu(gpu) for gpu in self.gpus()),
        )

    def _network(self) -> shown.Network:
        network, stats = self.announcer.network, self._stats
        return shown.Network(
            alive=network.alive,
            seen_nodes=len(network.nodes()) + 1,
            connected_peers=stats.peers,
            fetched_bytes=stats.block_bytes_fetched,
            served_bytes=stats.block_bytes_served,
            refused_messages=dict(sorted(stats.refused.items())),
        )

    def _earnings(self) -> shown.Earnings:
        paid = self.journal.paid()
        return shown.Earnings(
            paid_wei=str(sum(wei for _, wei in paid.values())),
            paid_by_role_wei={role: str(wei) for role, (_, wei) in paid.items()},
            payments_total=sum(count for count, _ in paid.values()),
        )


def _tier(digests: Collection[bytes]) -> shown.Tier:
    """`digests`: least recently used first."""
    told = newest(digests)[:MAX_DIGESTS]
    return shown.Tier(total_adapters=len(digests), digests=tuple("0x" + digest.hex() for digest in told))


def _gpu(gpu: Gpu) -> shown.Gpu:
    return shown.Gpu(
        index=gpu.index,
        name=gpu.name,
        driver=gpu.driver,
        memory_bytes=gpu.memory_bytes,
        memory_used_bytes=gpu.memory_used_bytes,
        busy_percent=gpu.busy_percent,
    )
