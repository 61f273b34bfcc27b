"""Other nodes: whose word counts, what they are told of this one, and what it keeps for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import msgspec

from openlora.node.assembly import Loops
from openlora.node.assembly.ground import Base, Ground
from openlora.node.assembly.lanes import Lanes
from openlora.node.content import BlockContent
from openlora.node.engine.client import InferenceEngine
from openlora.node.hardware import read_hardware
from openlora.node.job import JobState
from openlora.node.network.announcing import Announcer, Workload, hardware_record
from openlora.node.network.binding import sign_binding
from openlora.node.network.client import NetworkClient
from openlora.node.network.options import NetworkOptions
from openlora.node.network.replication import CONTROL, Keeper, room
from openlora.node.network.staked import StakeDirectory
from openlora.node.network.supervisor import supervised_network
from openlora.node.network.trusting import keep_trusted
from openlora.node.network.wanted import Wanted
from openlora.node.service_manager import ServiceManager
from openlora.p2p.presence.record import Model, plain_text
from openlora.typed_data import Domain


@asynccontextmanager
async def opened_network(
    ground: Ground, directory: StakeDirectory, manager: ServiceManager
) -> AsyncIterator[NetworkClient]:
    """The process that speaks with peers, told whom to trust. Raises as `supervised_network`."""
    config, services = ground.config, manager.children_dir
    options = NetworkOptions(
        chain_id=config.chain.chain_id,
        registry=ground.deployment.node_registry,
        content_dir=str(config.storage.content_dir),
        max_content_bytes=config.storage.max_content_bytes,
        log=config.log,
        **msgspec.structs.asdict(config.network),
    )
    manager.waiting("Waits for the network process.")
    joins_at = services and services / "p2p/network.sock"
    async with supervised_network(options, config.state_dir, joins_at=joins_at) as network:
        await network.trust(directory.staked)
        yield network


@dataclass(frozen=True, slots=True)
class Neighbours:
    """
    trust      the chain's stakes → whose presence counts
    announce   what this node is and holds → the network
    """

    network: NetworkClient
    directory: StakeDirectory
    announcer: Announcer

    def loops(self) -> Loops:
        return {"trust": partial(keep_trusted, self.network, self.directory), "announce": self.announcer.run}


async def neighbours(
    ground: Ground, base: Base, network: NetworkClient, directory: StakeDirectory, engine: InferenceEngine, lanes: Lanes
) -> Neighbours:
    """Keeps copies for those who ask from now on; announces nothing before its loops run."""
    config, storage = ground.config, ground.config.storage
    keeper = Keeper(
        network,
        BlockContent(storage.content_dir),
        Wanted(ground.facts, ground.journal, base.id),
        room(storage.content_dir, storage.max_content_bytes, storage.min_free_bytes),
    )
    network.handle(CONTROL, keeper.answer)
    domain = Domain(config.chain.chain_id, ground.deployment.node_registry)
    announcer = Announcer(
        network=network,
        chain_id=config.chain.chain_id,
        operator=ground.operator,
        hot_key=ground.hot_key.address,
        binding=sign_binding(ground.hot_key, domain, ground.operator, network.peer_id),
        hardware=hardware_record(await asyncio.to_thread(read_hardware)),
        model=Model(
            base_id=base.id.hex(),
            name=plain_text(config.model.path.stem),
            dtype=engine.info.numbers,
            max_context=engine.info.max_context,
            engine=plain_text(engine.info.backend),
        ),
        terms=lanes.terms,
        residency=lanes.residency,
        store=lanes.store,
        workload=lambda: Workload(ground.journal.counts()[JobState.SEEN], lanes.dispatcher.active),
    )
    return Neighbours(network, directory, announcer)
