"""A person's place in the market and in the peer-to-peer network at once: for commands, not for nodes."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from openlora.node.config import ClientConfig, LogConfig, load
from openlora.node.content import BlockContent
from openlora.node.errors import ConfigError
from openlora.node.market import Market, market_of
from openlora.node.network.client import NetworkClient
from openlora.node.network.content import NetworkContent
from openlora.node.network.options import NetworkOptions
from openlora.node.network.replication import COPIES, Replicas, replicate
from openlora.node.network.staked import StakeDirectory
from openlora.node.network.supervisor import supervised_network
from openlora.node.network.trusting import keep_trusted
from openlora.node.tasks import running


@dataclass(frozen=True, slots=True)
class Participant:
    """What `client.toml` opens. The market's content comes and goes through the network."""

    market: Market
    network: NetworkClient
    local: BlockContent

    async def replicate(self, cid: str, copies: int = COPIES, base_id: bytes | None = None) -> Replicas:
        """Asks nodes to keep what this machine has published, those that serve `base_id` if one is named."""
        serves = None if base_id is None else base_id.hex()
        return await replicate(self.network, cid, await self.local.size(cid), copies=copies, base_id=serves)


@asynccontextmanager
async def participant(path: Path) -> AsyncIterator[Participant]:
    """Joins the network as a peer of its own that listens nowhere, with a new identity each time, so that commands may
    run side by side. Raises ConfigError, RpcDown, WrongChain, NetworkError."""
    config = load(path, ClientConfig)
    if not config.network.bootstrap:
        raise ConfigError(
            f"{path}: network.bootstrap names no node to join by; `openlora status --json` on one has its addresses"
        )
    async with market_of(config) as market:
        options = NetworkOptions(
            chain_id=config.chain.chain_id,
            registry=market.deployment.node_registry,
            content_dir=str(config.content_dir),
            listen=(),
            bootstrap=config.network.bootstrap,
            mdns=False,
            nat=False,
            log=LogConfig(level="error"),
        )
        directory = StakeDirectory(market.chain, market.nodes, market.queue, market.deployment.block)
        await directory.refresh()
        with tempfile.TemporaryDirectory(prefix="openlora-peer-") as state:
            async with supervised_network(options, Path(state)) as network:
                await network.trust(directory.staked)
                async with running(keep_trusted(network, directory), "trust"):
                    local = BlockContent(config.content_dir)
                    market.content = NetworkContent(local, network)
                    yield Participant(market, network, local)
