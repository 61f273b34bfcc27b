"""The agent: opens what a node needs, in order, and runs its loops until it is told to stop.

    follow     the chain's events → journal
    dispatch   journal → jobs under way, within `max_live_jobs`
    settle     committed jobs whose window has passed → paid
    questions  outputs that the chain asks for → published in time
    sessions   orders that clients send directly → answered, and their vouchers → paid
    trust      the chain's stakes → whose presence counts
    announce   what this node is and holds → the network
    observe    stake, gas and machine → what the node says of itself
    sample     the same every few seconds, for graphs
    feed       what changed → whoever listens
    serve      agent.sock, and the dashboard where a port is set
    publish    what the node says of itself → an MQTT broker, where one is set

A stop, however rude, loses nothing: what is under way is in the journal, and the next start takes it up.
"""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
from eth_typing import ChecksumAddress

from openlora.contracts import AdapterRegistry, Deployment, JobQueue, NodeRegistry, Outputs, Sessions, Vault
from openlora.node.adapters.fetch import AdapterFetcher
from openlora.node.adapters.residency import AdapterResidency
from openlora.node.adapters.store import AdapterStore
from openlora.node.admission import Admission
from openlora.node.answering import Answerer
from openlora.node.api.agent import DashboardPort, create_agent_api, serve_dashboard, serve_unix
from openlora.node.api.steering import steering_router
from openlora.node.base_model import base_model_id
from openlora.node.chain.client import ChainClient
from openlora.node.chain.follower import Batch, Follower
from openlora.node.chain.sender import Sender, SenderOptions
from openlora.node.config import NodeConfig
from openlora.node.content import BlockContent, Content
from openlora.node.deployment import load_deployment
from openlora.node.dispatch import Dispatcher
from openlora.node.engine.backends import engine_options, engine_profile
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.supervisor import supervised_engines
from openlora.node.engine.text import TextModel
from openlora.node.errors import ConfigError, JournalUnwritable
from openlora.node.facts import ChainFacts
from openlora.node.fees import Fees
from openlora.node.finalizer import Finalizer
from openlora.node.hardware import read_hardware
from openlora.node.job import JobState
from openlora.node.journal import Identity, Journal
from openlora.node.keys import load_key
from openlora.node.kubo import KuboContent
from openlora.node.live_claims import LiveClaims
from openlora.node.network.announcing import Announcer, Workload, hardware_record
from openlora.node.network.binding import sign_binding
from openlora.node.network.client import NetworkClient
from openlora.node.network.content import NetworkContent
from openlora.node.network.options import NetworkOptions
from openlora.node.network.replication import CONTROL, Keeper, room
from openlora.node.network.rivals import is_crowded, rivals
from openlora.node.network.showing import INFER, Showing
from openlora.node.network.staked import StakeDirectory
from openlora.node.network.supervisor import supervised_network
from openlora.node.network.trusting import keep_trusted
from openlora.node.network.wanted import Wanted
from openlora.node.questions import Questions
from openlora.node.queue_events import QueueEvents
from openlora.node.registered import Registered
from openlora.node.service_manager import ServiceManager
from openlora.node.sessions import SignedLane, signed_lane
from openlora.node.sessions.routing import by_lane
from openlora.node.settlement import Settlement, Signer
from openlora.node.steering import Steering
from openlora.node.streams import JobStreams
from openlora.node.tasks import task_group
from openlora.node.telemetry.alerts import Thresholds
from openlora.node.telemetry.board import Board
from openlora.node.telemetry.feed import Feed
from openlora.node.telemetry.history import History
from openlora.node.telemetry.observer import Observer
from openlora.node.telemetry.outbox import Outbox
from openlora.node.telemetry.publisher import Broker, Publisher, Session
from openlora.node.telemetry.purse import Purse
from openlora.node.telemetry.reporter import Reporter
from openlora.node.telemetry.topics import Place
from openlora.node.terms import Terms
from openlora.node.turns import Contender, Turns
from openlora.node.worker import Worker
from openlora.p2p.presence.record import Model, plain_text
from openlora.typed_data import Domain

log = logging.getLogger(__name__)

MAX_ADAPTER_BYTES: Final = 512 << 20  # of one adapter's blocks


async def run_node(path: Path, config: NodeConfig, manager: ServiceManager) -> None:
    """Runs the node until SIGTERM or SIGINT; SIGHUP has it read `path`, where `config` is from, again.

    Raises ConfigError, ModelError, ChainError, JournalError.
    """
    task = asyncio.current_task()
    assert task is not None, "runs in a task"
    stopping = False

    def stop() -> None:
        nonlocal stopping
        stopping = True
        manager.stopping()
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        async with opened(path, config, manager) as node:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, node.steering.reload_quietly)
            await node.run()
    except asyncio.CancelledError:
        if not stopping:
            raise
        task.uncancel()
        log.info("event=node_stopped")


@dataclass(frozen=True, slots=True)
class Node:
    """An opened node. `run` is its life."""

    config: NodeConfig
    operator: ChecksumAddress
    chain: ChainClient
    journal: Journal
    sender: Sender
    follower: Follower
    events: QueueEvents
    worker: Worker
    dispatcher: Dispatcher
    finalizer: Finalizer
    sessions: SignedLane
    questions: Questions
    network: NetworkClient
    announcer: Announcer
    directory: StakeDirectory
    claims: LiveClaims
    observer: Observer
    fees: Fees
    registered: Registered
    board: Board
    feed: Feed
    dashboard: DashboardPort | None  # None where no port is configured
    publisher: Publisher | None  # None where no broker is configured
    manager: ServiceManager
    steering: Steering

    async def run(self) -> None:
        """Catches up with the chain, then runs the loops; the first that fails ends them all and leaves as itself."""
        await self._catch_up()
        async with task_group() as group:
            group.create_task(self.sender.run(), name="sender")
            group.create_task(self._follow(), name="follow")
            group.create_task(self.dispatcher.run(), name="dispatch")
            group.create_task(self.finalizer.run(), name="settle")
            group.create_task(self.sessions.run(), name="sessions")
            group.create_task(self.questions.run(), name="questions")
            group.create_task(keep_trusted(self.network, self.directory), name="trust")
            group.create_task(self.announcer.run(), name="announce")
            group.create_task(self.observer.run(), name="observe")
            group.create_task(self._serve(), name="serve")
            group.create_task(self._serve_dashboard(), name="serve-dashboard")
            group.create_task(self.board.history.run(), name="sample")
            group.create_task(self.feed.run(), name="feed")
            if self.publisher is not None:
                group.create_task(self.publisher.run(), name="publish")
            if self.manager.watchdog_s is not None:
                group.create_task(self._feed_watchdog(self.manager.watchdog_s), name="watchdog")
            self.manager.ready()

    async def _catch_up(self) -> None:
        """Nothing is decided on an old view: a job in the journal may long be over."""
        while await self.follower.step(self._apply) is not None:
            pass
        log.info("event=caught_up block=%d", self.journal.cursor.number if self.journal.cursor else 0)

    async def _feed_watchdog(self, watchdog_s: float) -> None:
        """Alive is a loop that turns and a journal that can be read; a thread could say so of neither."""
        while True:
            try:
                self.journal.probe()
                self.manager.alive()
            except JournalUnwritable as error:
                log.error("event=watchdog_unfed reason=%r", str(error))
            await asyncio.sleep(watchdog_s / 3)

    async def _follow(self) -> None:
        async for batch in self.follower.follow(self._apply):
            if batch.events or batch.unwound:
                self.dispatcher.wake()

    def _apply(self, batch: Batch) -> None:
        for occurrence in batch.events:
            self.events.apply(occurrence.event, occurrence.block)
            self.fees.apply(occurrence.event, occurrence.block)
            self.registered.apply(occurrence.event, occurrence.block)
            self.claims.apply(occurrence.event)
            self.sessions.settler.apply(occurrence.event)
            self.questions.apply(occurrence.event)

    async def _serve(self) -> None:
        api = create_agent_api(self.journal, self.worker.streams, self.board, self.feed)
        api.include_router(steering_router(self.steering))
        await serve_unix(api, self.config.socket)

    async def _serve_dashboard(self) -> None:
        if self.dashboard is not None:
            await serve_dashboard(self.board, self.feed, self.dashboard)


@asynccontextmanager
async def opened(path: Path, config: NodeConfig, manager: ServiceManager) -> AsyncIterator[Node]:
    """Opens what a node is made of, cheapest refusal first, and closes it in reverse."""
    layout = DecoderConfig.from_path(config.model.path).modules()
    deployment = load_deployment(config.chain)
    hot_key = load_key(config.hot_key)
    identity = Identity.of(deployment, hot_key.address)
    async with AsyncExitStack() as stack:
        journal = stack.enter_context(Journal(config.state_dir, identity))
        chain = await ChainClient.connect(config.chain.rpc_urls, config.chain.chain_id, deployment)
        stack.push_async_callback(chain.close)
        queue, nodes = JobQueue(deployment.job_queue), NodeRegistry(deployment.node_registry)
        operator = await _operator(chain, nodes, hot_key.address)
        dashboard = DashboardPort.of(config.telemetry)
        broker = Broker.of(config.telemetry.mqtt, operator) if config.telemetry.mqtt.host else None
        options = SenderOptions(confirmations=config.chain.confirmations, poll_s=config.chain.poll_s)
        sender = Sender(chain, journal, hot_key, identity.contracts, options)
        await sender.start()
        text = await asyncio.to_thread(TextModel.load, config.model.path)
        base_id = await asyncio.to_thread(base_model_id, config.model.path)
        directory = StakeDirectory(chain, nodes, queue, deployment.block)
        await directory.refresh()
        services = manager.children_dir
        manager.waiting("Waits for the network process.")
        network = await stack.enter_async_context(
            supervised_network(
                _network_options(config, deployment),
                config.state_dir,
                joins_at=services and services / "p2p/network.sock",
            )
        )
        await network.trust(directory.staked)
        manager.waiting("Waits for the engine to load its model.")
        engine = await stack.enter_async_context(
            supervised_engines(
                replace(engine_options(config.model, config.engine), log=config.log),
                services / "engine" if services else config.state_dir,
                spawn=services is None,
            )
        )
        content = _content(config, network)
        store = AdapterStore(config.state_dir / "adapters" / base_id.hex(), config.storage.max_adapter_bytes)
        fetcher = AdapterFetcher(store, content, layout, max_adapter_bytes=MAX_ADAPTER_BYTES)
        adapter_bytes = config.engine.adapter_bytes * max(1, len(config.engine.devices))
        residency = AdapterResidency(fetcher, store, engine, adapter_bytes)
        registry = AdapterRegistry(deployment.adapter_registry)
        streams, claims = JobStreams(), LiveClaims()
        terms = Terms(config.market, config.storage.min_free_bytes)
        facts = ChainFacts(chain, queue, nodes, registry, operator, hot_key.address)
        admission = Admission(
            base_id=base_id,
            model=engine.info,
            text=text,
            content=content,
            terms=terms,
            storage_dir=config.state_dir,
        )
        answerer = Answerer(admission, residency, engine, streams)
        queue_domain = Domain(config.chain.chain_id, queue.address)
        signer = Signer(queue_domain, operator, hot_key, engine_profile(engine.info))
        questions = Questions(Outputs(deployment.outputs), chain, journal, sender, admission.content, operator)
        worker = Worker(
            queue=queue,
            journal=journal,
            facts=facts,
            admission=admission,
            turns=Turns(
                lambda: terms.market.turn_s,
                lambda: Contender(
                    operator, store.digests(), is_crowded(claims.of(operator), terms.market.max_live_jobs)
                ),
                lambda job, recipe: rivals(network.nodes(), claims, operator, job, recipe),
            ),
            sender=sender,
            answerer=answerer,
            settlement=Settlement(queue, signer, journal, sender),
            confirmations=config.chain.confirmations,
            urgent=lambda: questions.pending,
        )
        dispatcher = Dispatcher(worker, journal, lambda: terms.market.max_live_jobs)
        sessions = signed_lane(
            contract=Sessions(deployment.sessions),
            chain=chain,
            journal=journal,
            sender=sender,
            facts=facts,
            answerer=replace(answerer, streams=JobStreams()),
            signer=signer,
            confirmations=config.chain.confirmations,
            config=config.sessions,
        )
        network.handle(INFER, by_lane(Showing(journal, streams, queue_domain).answer, sessions.lane.answer))
        keeper = Keeper(
            network,
            BlockContent(config.storage.content_dir),
            Wanted(worker.facts, journal, base_id),
            room(config.storage.content_dir, config.storage.max_content_bytes, config.storage.min_free_bytes),
        )
        network.handle(CONTROL, keeper.answer)
        domain = Domain(config.chain.chain_id, nodes.address)
        announcer = Announcer(
            network=network,
            chain_id=config.chain.chain_id,
            operator=operator,
            hot_key=hot_key.address,
            binding=sign_binding(hot_key, domain, operator, network.peer_id),
            hardware=hardware_record(await asyncio.to_thread(read_hardware)),
            model=Model(
                base_id=base_id.hex(),
                name=plain_text(config.model.path.stem),
                dtype=engine.info.numbers,
                max_context=engine.info.max_context,
                engine=plain_text(engine.info.backend),
            ),
            terms=terms,
            residency=residency,
            store=store,
            workload=lambda: Workload(journal.counts()[JobState.SEEN], dispatcher.active),
        )
        observer = Observer(
            chain_id=config.chain.chain_id,
            state_dir=config.state_dir,
            announcer=announcer,
            journal=journal,
            engine=engine,
            engine_profile=signer.engine_profile,
            active_jobs=lambda: dispatcher.active,
            claims=claims,
            purse=Purse(chain, facts, nodes, Vault(deployment.vault), operator).read,
            block_time=lambda number: _block_time(chain, number),
            thresholds=Thresholds(disk_free_bytes=config.storage.min_free_bytes),
        )
        fees, registered = Fees(journal), Registered(journal)
        board = Board(
            observe=observer.snapshot,
            nodes=lambda: (*network.nodes(), announcer.record()),
            journal=journal,
            fees=fees,
            registered=registered,
            facts=facts,
            history=History(observer.snapshot, time.time),
        )
        yield Node(
            config=config,
            operator=operator,
            chain=chain,
            journal=journal,
            sender=sender,
            follower=Follower(
                chain,
                journal,
                [queue.address, deployment.sessions, deployment.outputs, registry.address],
                deployment.block,
                poll_s=config.chain.poll_s,
            ),
            events=QueueEvents(journal, operator),
            worker=worker,
            dispatcher=dispatcher,
            finalizer=Finalizer(worker.settlement, chain, facts, config.chain.poll_s),
            sessions=sessions,
            questions=questions,
            network=network,
            announcer=announcer,
            directory=directory,
            claims=claims,
            observer=observer,
            fees=fees,
            registered=registered,
            board=board,
            feed=Feed(board),
            dashboard=dashboard,
            publisher=_publisher(config, observer, broker, Session.begin(operator, hot_key, domain))
            if broker
            else None,
            manager=manager,
            steering=Steering(path, config, terms, dispatcher.terms_changed),
        )


def _network_options(config: NodeConfig, deployment: Deployment) -> NetworkOptions:
    return NetworkOptions(
        chain_id=config.chain.chain_id,
        registry=deployment.node_registry,
        content_dir=str(config.storage.content_dir),
        max_content_bytes=config.storage.max_content_bytes,
        log=config.log,
        **msgspec.structs.asdict(config.network),
    )


def _publisher(config: NodeConfig, observer: Observer, broker: Broker, session: Session) -> Publisher:
    reporter = Reporter(
        place=Place(config.chain.chain_id, session.operator, config.telemetry.mqtt.prefix),
        outbox=Outbox(),
        observe=observer.snapshot,
        jobs_changed_since=observer.journal.changed_since,
    )
    return Publisher(broker=broker, session=session, reporter=reporter)


def _content(config: NodeConfig, network: NetworkClient) -> Content:
    if config.storage.kubo_rpc:
        return KuboContent(config.storage.kubo_rpc)
    return NetworkContent(BlockContent(config.storage.content_dir), network)


async def _block_time(chain: ChainClient, number: int) -> int:
    return (await chain.block(number)).timestamp


async def _operator(chain: ChainClient, nodes: NodeRegistry, hot_key: ChecksumAddress) -> ChecksumAddress:
    operator = await chain.call(nodes.operator_of(hot_key))
    if int(operator, 16) == 0:
        raise ConfigError(f"the hot key {hot_key} serves no operator; register it with the operator's key first")
    return operator
