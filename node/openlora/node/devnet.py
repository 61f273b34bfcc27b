"""A whole market on a private chain, with people in it: for the demo, for tests, and for trying things out.

The people are anvil's ten funded accounts. The chain, the contracts and the content are real; only the money is not.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eth_account import Account
from eth_account.signers.local import LocalAccount

from openlora.contracts import Deployment, MarketSettings, Params, Share, deployment_of, deployment_steps
from openlora.node.adapters.format import LinearShape
from openlora.node.anvil import Anvil, anvil
from openlora.node.base_model import base_model_id
from openlora.node.chain.client import ChainClient
from openlora.node.chain.transact import create
from openlora.node.config_files import ChainEntry, write_client_config, write_node_config
from openlora.node.content import BlockContent
from openlora.node.demo_data import DEMO_ADAPTERS
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.keys import create_key
from openlora.node.market import Market

OLRA: Final = 10**18
MODEL_NAME: Final = "smollm2-135m-instruct"
ASK_IN_WEI_PER_K: Final = OLRA // 10
ASK_OUT_WEI_PER_K: Final = OLRA // 5
PARAMS: Final = Params(bond=OLRA, max_live_claims=32, window_secs=3, max_lease_secs=3_600, max_duration_secs=86_400)
UNSTAKE_DELAY_S: Final = 60
BLOCK_TIME_S: Final = 1

# Who is which of anvil's accounts. The hot key and the operator are two keys of one person.
PEOPLE: Final = (
    "protocol",
    "base owner",
    "operator",
    "hot key",
    "client",
    "developer 1",
    "developer 2",
    "developer 3",
    "data provider 1",
    "data provider 2",
)
KEYSTORES: Final = {"hot": "hot key", "operator": "operator", "client": "client"}  # file name → whose


@dataclass(frozen=True, slots=True)
class Devnet:
    """A running dev network. `adapters` are the registered adapters' digests by name."""

    chain: Anvil
    deployment: Deployment
    folder: Path
    people: Mapping[str, LocalAccount]
    base_id: bytes
    adapters: Mapping[str, bytes]

    @property
    def node_config(self) -> Path:
        return self.folder / "node.toml"

    @property
    def client_config(self) -> Path:
        return self.folder / "client.toml"

    def name_of(self, address: str) -> str:
        """Who an address is; the address itself for a stranger's."""
        return next((name for name, key in self.people.items() if key.address == address), address)


@asynccontextmanager
async def devnet(folder: Path, model: Path, *, port: int = 0) -> AsyncIterator[Devnet]:
    """Runs anvil with the market deployed, `model` registered, the demo adapters published and one operator staked.

    Writes `node.toml`, `operator.toml`, `client.toml`, `deployment.json` and keystores into `folder`, which should be
    empty. The chain mines a block a second once all that is done.
    """
    layout = DecoderConfig.from_path(model).layout()
    base_id = await asyncio.to_thread(base_model_id, model)
    async with anvil(folder / "anvil.log", port=port) as chain:
        people = {name: Account.from_key(key) for name, key in zip(PEOPLE, chain.private_keys, strict=True)}
        client = await ChainClient.connect([chain.rpc_url], chain.chain_id)
        try:
            deployment = await deploy(client, people["protocol"])
            content = BlockContent(folder / "content")
            markets = {name: Market(client, deployment, key, content) for name, key in people.items()}
            adapters = await _populate(markets, base_id, layout)
        finally:
            await client.close()
        (folder / "deployment.json").write_text(deployment.to_json())
        _write_configs(folder, chain, people, model)
        await chain.rpc("evm_setIntervalMining", BLOCK_TIME_S)
        yield Devnet(chain, deployment, folder, people, base_id, adapters)


async def deploy(client: ChainClient, deployer: LocalAccount) -> Deployment:
    """Puts the contracts and a mintable token on the chain; the deployer is owner and treasury."""
    settings = MarketSettings(deployer.address, deployer.address, PARAMS, UNSTAKE_DELAY_S)
    head = await client.block("latest")
    steps = deployment_steps(deployer.address, await client.nonce(deployer.address), settings)
    for step in steps:
        await create(client, deployer, step.data, name=step.name)
    return deployment_of(steps, settings, chain_id=client.chain_id, block=head.number)


async def _populate(
    markets: Mapping[str, Market], base_id: bytes, layout: Mapping[str, LinearShape]
) -> Mapping[str, bytes]:
    for name in ("operator", "client"):
        await markets[name].transact(markets[name].token.mint(markets[name].key.address, 10_000 * OLRA))
    await markets["client"].deposit(1_000 * OLRA)
    await markets["operator"].register_node(markets["hot key"].key.address, 100 * OLRA)
    await markets["base owner"].register_base(base_id, MODEL_NAME)
    providers = [markets["data provider 1"], markets["data provider 2"]]
    adapters: dict[str, bytes] = {}
    for number, demo in enumerate(DEMO_ADAPTERS):
        provider, developer = providers[number % len(providers)], markets[f"developer {number + 1}"]
        shares = [Share(payee=provider.key.address, bps=10_000)]
        datanet = await provider.create_datanet(demo.datanet_digest, shares, demo.datanet)
        adapters[demo.name] = await developer.publish_adapter(demo.path, layout, base_id, [datanet], demo.name)
    return adapters


def _write_configs(folder: Path, chain: Anvil, people: Mapping[str, LocalAccount], model: Path) -> None:
    entry = ChainEntry(chain.chain_id, chain.rpc_url, folder / "deployment.json", poll_s=0.25)
    keys = {name: create_key(folder, name, bytes(people[who].key))[0] for name, who in KEYSTORES.items()}
    write_node_config(
        folder / "node.toml",
        entry,
        model=model.resolve(),
        key=keys["hot"],
        state_dir=folder,
        content_dir=folder / "content",
        in_price_wei_per_k=ASK_IN_WEI_PER_K,
        out_price_wei_per_k=ASK_OUT_WEI_PER_K,
        confirmations=1,
    )
    for name in ("operator", "client"):
        write_client_config(
            folder / f"{name}.toml",
            entry,
            key=keys[name],
            content_dir=folder / "content",
            agent_socket=folder / "agent.sock",
        )
