"""What every side of a node stands on."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress

from openlora.contracts import AdapterRegistry, Deployment, JobQueue, NodeRegistry
from openlora.node.adapters.modules import Layout
from openlora.node.base_model import base_model_id
from openlora.node.chain.client import ChainClient
from openlora.node.chain.clock import ClockWatch
from openlora.node.chain.sender import Sender, SenderOptions
from openlora.node.chain.transaction import GWEI, FeePolicy
from openlora.node.config import NodeConfig
from openlora.node.deployment import load_deployment
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.text import TextModel
from openlora.node.errors import ConfigError
from openlora.node.facts import ChainFacts
from openlora.node.journal import Identity, Journal
from openlora.node.keys import load_key
from openlora.node.private.sealing import public_key

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ground:
    """`operator` is whom the hot key serves."""

    config: NodeConfig
    deployment: Deployment
    hot_key: LocalAccount
    operator: ChecksumAddress
    journal: Journal
    chain: ChainClient
    sender: Sender
    facts: ChainFacts
    clock: ClockWatch

    @property
    def queue(self) -> JobQueue:
        return JobQueue(self.deployment.job_queue)

    @property
    def nodes(self) -> NodeRegistry:
        return NodeRegistry(self.deployment.node_registry)


@asynccontextmanager
async def opened_ground(config: NodeConfig) -> AsyncIterator[Ground]:
    """Raises ConfigError, ChainError and JournalError, the cheapest to find first."""
    deployment = load_deployment(config.chain)
    hot_key = load_key(config.hot_key)
    async with AsyncExitStack() as stack:
        chain = await ChainClient.connect(config.chain.rpc_urls, config.chain.chain_id, deployment)
        stack.push_async_callback(chain.close)
        queue, nodes = JobQueue(deployment.job_queue), NodeRegistry(deployment.node_registry)
        registry = AdapterRegistry(deployment.adapter_registry)
        operator = await _operator(chain, nodes, hot_key.address)
        if (await chain.call(nodes.node(operator))).encryption_key != public_key(bytes(hot_key.key)):
            log.warning("event=no_encryption_key operator=%s", operator)
        identity = Identity.of(deployment, hot_key.address, operator)
        journal = stack.enter_context(Journal(config.state_dir, identity))
        fees = FeePolicy(int(config.chain.max_gas_gwei * GWEI), int(config.chain.max_tip_gwei * GWEI))
        options = SenderOptions(confirmations=config.chain.confirmations, poll_s=config.chain.poll_s, fees=fees)
        sender = Sender(chain, journal, hot_key, identity.contracts, options)
        await sender.start()
        clock = ClockWatch()
        facts = ChainFacts(chain, queue, nodes, registry, operator, hot_key.address, chain_now_s=clock.now_s)
        yield Ground(config, deployment, hot_key, operator, journal, chain, sender, facts, clock)


@dataclass(frozen=True, slots=True)
class Base:
    """The base model, as far as its files tell."""

    id: bytes
    modules: Layout  # what an adapter may change
    text: TextModel

    @classmethod
    async def load(cls, path: Path) -> Self:
        """Raises ModelError for a model that is not supported, before the weights are read for its id."""
        modules = DecoderConfig.from_path(path).modules()
        text = await asyncio.to_thread(TextModel.load, path)
        return cls(await asyncio.to_thread(base_model_id, path), modules, text)


async def _operator(chain: ChainClient, nodes: NodeRegistry, hot_key: ChecksumAddress) -> ChecksumAddress:
    operator = await chain.call(nodes.operator_of(hot_key))
    if int(operator, 16) == 0:
        raise ConfigError(
            f"the hot key {hot_key} serves no operator; register it with the operator's key, or name the one that does"
        )
    return operator
