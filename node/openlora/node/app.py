"""The agent: opens a node's sides in order, and runs their loops until it is told to stop.

Its own loops are

    send       signed transactions → mined, and replaced where they must be
    follow     the chain's events → journal
    watchdog   a loop that turns and a journal that can be read → the service manager

and the others stand in `assembly`. A stop, however rude, loses nothing: what is under way is in the journal, and the
next start takes it up.
"""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from openlora.contracts import HotKeySet
from openlora.node.assembly import Loops
from openlora.node.assembly.faces import Doors, Faces, faces
from openlora.node.assembly.ground import Base, Ground, opened_ground
from openlora.node.assembly.lanes import Lanes, lanes
from openlora.node.assembly.neighbours import Neighbours, neighbours, opened_network
from openlora.node.chain.follower import Batch, Follower
from openlora.node.config import NodeConfig
from openlora.node.engine.backends import engine_options
from openlora.node.engine.client import InferenceEngine
from openlora.node.engine.supervisor import supervised_engines
from openlora.node.errors import ConfigError, JournalUnwritable
from openlora.node.network.staked import StakeDirectory
from openlora.node.service_manager import ServiceManager
from openlora.node.tasks import task_group

log = logging.getLogger(__name__)


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
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, node.faces.steering.reload_quietly)
            await node.run()
    except asyncio.CancelledError:
        if not stopping:
            raise
        task.uncancel()
        log.info("event=node_stopped")


@dataclass(frozen=True, slots=True)
class Node:
    """An opened node. `run` is its life."""

    ground: Ground
    lanes: Lanes
    neighbours: Neighbours
    faces: Faces
    follower: Follower
    manager: ServiceManager

    async def run(self) -> None:
        """Catches up with the chain, then runs the loops; the first that fails ends them all and leaves as itself."""
        await self._catch_up()
        async with task_group() as group:
            for side in (self, self.lanes, self.neighbours, self.faces):
                for name, loop in side.loops().items():
                    group.create_task(loop(), name=name)
            self.manager.ready()

    def loops(self) -> Loops:
        always = {"send": self.ground.sender.run, "follow": self._follow}
        return always | ({"watchdog": self._feed_watchdog} if self.manager.watchdog_s else {})

    async def _catch_up(self) -> None:
        """Nothing is decided on an old view: a job in the journal may long be over."""
        await self.follower.catch_up(self._apply)
        cursor = self.ground.journal.cursor
        log.info("event=caught_up block=%d", cursor.number if cursor else 0)

    async def _follow(self) -> None:
        async for batch in self.follower.follow(self._apply):
            self._check_hot_key(batch)
            if batch.upto == batch.head.ref:
                self.ground.clock.look(batch.head.timestamp)
            if batch.events or batch.unwound:
                self.lanes.dispatcher.wake()

    def _check_hot_key(self, batch: Batch) -> None:
        """Once another hot key's turn has come, what this one signs counts for nothing. Raises ConfigError."""
        for occurrence in batch.events:
            match occurrence.event:
                case HotKeySet(operator=self.ground.operator, hot_key=key) if key != self.ground.hot_key.address:
                    raise ConfigError(
                        f"the operator's hot key is {key} now: name it in the configuration and start the node again,"
                        " which goes on with all that is under way"
                    )

    def _apply(self, batch: Batch) -> None:
        for occurrence in batch.events:
            self.lanes.apply(occurrence)
            self.faces.apply(occurrence)

    async def _feed_watchdog(self) -> None:
        """Alive is a loop that turns and a journal that can be read; a thread could say so of neither."""
        assert self.manager.watchdog_s is not None, "a loop only where there is one"
        while True:
            try:
                self.ground.journal.probe()
                self.manager.alive()
            except JournalUnwritable as error:
                log.error("event=watchdog_unfed reason=%r", str(error))
            await asyncio.sleep(self.manager.watchdog_s / 3)


@asynccontextmanager
async def opened(path: Path, config: NodeConfig, manager: ServiceManager) -> AsyncIterator[Node]:
    """Opens what a node is made of, cheapest refusal first, and closes it in reverse."""
    async with AsyncExitStack() as stack:
        ground = await stack.enter_async_context(opened_ground(config))
        log.info("event=node_starting operator=%s hot_key=%s", ground.operator, ground.hot_key.address)
        doors = stack.enter_context(Doors.opened(config.telemetry, ground.operator))
        base = await Base.load(config.model.path)
        directory = StakeDirectory(ground.chain, ground.nodes, ground.queue, ground.deployment.block)
        await directory.refresh()
        network = await stack.enter_async_context(opened_network(ground, directory, manager))
        engine = await stack.enter_async_context(_engine(config, manager))
        jobs = lanes(ground, base, network, engine)
        others = await neighbours(ground, base, network, directory, engine, jobs)
        yield Node(
            ground=ground,
            lanes=jobs,
            neighbours=others,
            faces=faces(path, ground, doors, engine, jobs, others),
            follower=_follower(ground),
            manager=manager,
        )


@asynccontextmanager
async def _engine(config: NodeConfig, manager: ServiceManager) -> AsyncIterator[InferenceEngine]:
    services = manager.children_dir
    options = replace(engine_options(config.model, config.engine), log=config.log)
    sockets = services / "engine" if services else config.state_dir
    manager.waiting("Waits for the engine to load its model.")
    async with supervised_engines(options, sockets, spawn=services is None) as engine:
        yield engine


def _follower(ground: Ground) -> Follower:
    at = ground.deployment
    contracts = [at.job_queue, at.sessions, at.outputs, at.adapter_registry, at.node_registry]
    return Follower(ground.chain, ground.journal, contracts, at.block, poll_s=ground.config.chain.poll_s)
