"""What people see of a node, all of it from one snapshot: the agent's socket, the page, a broker."""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from eth_typing import ChecksumAddress

from openlora.contracts import Vault
from openlora.node.api.agent import DashboardPort, create_agent_api, serve_dashboard, serve_unix
from openlora.node.api.steering import steering_router
from openlora.node.assembly import Loops
from openlora.node.assembly.ground import Ground
from openlora.node.assembly.lanes import Lanes
from openlora.node.assembly.neighbours import Neighbours
from openlora.node.chain.follower import Occurrence
from openlora.node.config import TelemetryConfig
from openlora.node.engine.client import InferenceEngine
from openlora.node.fees import Fees
from openlora.node.registered import Registered
from openlora.node.steering import Steering
from openlora.node.telemetry.alerts import Thresholds
from openlora.node.telemetry.board import Board
from openlora.node.telemetry.broker import Broker
from openlora.node.telemetry.feed import Feed
from openlora.node.telemetry.history import History
from openlora.node.telemetry.observer import Observer
from openlora.node.telemetry.outbox import Outbox
from openlora.node.telemetry.publisher import Publisher, Session
from openlora.node.telemetry.purse import Purse
from openlora.node.telemetry.reporter import Reporter
from openlora.node.telemetry.topics import Place
from openlora.typed_data import Domain

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Doors:
    """Where it is seen, but for the socket. None where none is configured."""

    page: socket.socket | None
    keys: tuple[str, ...]  # that open the page
    broker: Broker | None

    @classmethod
    @contextmanager
    def opened(cls, config: TelemetryConfig, operator: ChecksumAddress) -> Iterator[Self]:
        """Raises ConfigError for what cannot be read, is in use, or would be open to strangers."""
        port = DashboardPort.of(config)
        broker = Broker.of(config.mqtt, operator) if config.mqtt.host else None
        with port.bound() if port else nullcontext() as page:
            yield cls(page, port.keys if port else (), broker)


@dataclass(frozen=True, slots=True)
class Faces:
    """
    observe    stake, gas and machine → what the node says of itself
    sample     the same every few seconds, for graphs
    feed       what changed → whoever listens
    serve      agent.sock, and the dashboard where a port is set
    publish    what the node says of itself → an MQTT broker, where one is set
    """

    ground: Ground
    lanes: Lanes
    observer: Observer
    board: Board
    feed: Feed
    doors: Doors
    publisher: Publisher | None
    steering: Steering

    def loops(self) -> Loops:
        always = {
            "observe": self.observer.run,
            "sample": self.board.history.run,
            "feed": self.feed.run,
            "serve": self._serve,
        }
        dashboard = {"serve-dashboard": self._serve_dashboard} if self.doors.page else {}
        return always | dashboard | ({"publish": self.publisher.run} if self.publisher else {})

    def apply(self, occurrence: Occurrence) -> None:
        """An event of the chain, inside the follower's transaction."""
        self.board.fees.apply(occurrence.event, occurrence.block)
        self.board.registered.apply(occurrence.event, occurrence.block)

    async def _serve(self) -> None:
        api = create_agent_api(self.ground.journal, self.lanes.streams, self.board, self.feed)
        api.include_router(steering_router(self.steering))
        await serve_unix(api, self.ground.config.socket)

    async def _serve_dashboard(self) -> None:
        assert self.doors.page is not None, "a loop only where there is one"
        log.info("event=dashboard_open url=http://%s", self.ground.config.telemetry.listen)
        await serve_dashboard(self.board, self.feed, self.doors.page, self.doors.keys)


def faces(
    path: Path, ground: Ground, doors: Doors, engine: InferenceEngine, lanes: Lanes, neighbours: Neighbours
) -> Faces:
    """`path` is what a reload reads."""
    journal, announcer = ground.journal, neighbours.announcer
    observer = _observer(ground, engine, lanes, neighbours, lambda: publisher.refusal if publisher else "")
    publisher = _publisher(ground, observer, doors.broker) if doors.broker else None
    board = Board(
        observe=observer.snapshot,
        nodes=lambda: (*neighbours.network.nodes(), announcer.record()),
        journal=journal,
        fees=Fees(journal),
        registered=Registered(journal),
        facts=ground.facts,
        history=History(observer.snapshot, time.time),
    )
    return Faces(
        ground=ground,
        lanes=lanes,
        observer=observer,
        board=board,
        feed=Feed(board),
        doors=doors,
        publisher=publisher,
        steering=Steering(path, ground.config, lanes.terms, lanes.dispatcher.terms_changed),
    )


def _observer(
    ground: Ground,
    engine: InferenceEngine,
    lanes: Lanes,
    neighbours: Neighbours,
    broker_refusal: Callable[[], str],
) -> Observer:
    config, chain = ground.config, ground.chain

    async def block_time(number: int) -> int:
        return (await chain.block(number)).timestamp

    return Observer(
        chain_id=config.chain.chain_id,
        state_dir=config.state_dir,
        announcer=neighbours.announcer,
        journal=ground.journal,
        engine=engine,
        engine_profile=lanes.signer.engine_profile,
        active_jobs=lambda: lanes.dispatcher.active,
        claims=lanes.claims,
        purse=Purse(chain, ground.facts, ground.nodes, Vault(ground.deployment.vault), ground.operator).read,
        block_time=block_time,
        clock_ahead_s=lambda: ground.clock.ahead_s,
        broker_refusal=broker_refusal,
        chain_s=ground.clock.chain_s,
        thresholds=Thresholds(disk_free_bytes=config.storage.min_free_bytes),
    )


def _publisher(ground: Ground, observer: Observer, broker: Broker) -> Publisher:
    chain_id = ground.config.chain.chain_id
    domain = Domain(chain_id, ground.deployment.node_registry)
    reporter = Reporter(
        place=Place(chain_id, ground.operator, ground.config.telemetry.mqtt.prefix),
        outbox=Outbox(),
        observe=observer.snapshot,
        jobs_changed_since=ground.journal.changed_since,
    )
    return Publisher(broker=broker, session=Session.begin(ground.operator, ground.hot_key, domain), reporter=reporter)
