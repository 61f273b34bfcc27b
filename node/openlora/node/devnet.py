"""A whole market on a private chain, with people in it: for the demo, for tests, and for trying things out.

The people are anvil's funded accounts. The chain, the contracts, the content and the peers are real; only the money is
not.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eth_account import Account
from eth_account.signers.local import LocalAccount

from openlora.contracts import Deployment, DisputeTerms, MarketSettings, OutputTerms, Params, Share
from openlora.node.adapters.modules import Layout
from openlora.node.anvil import CHAIN_ID, Anvil, anvil
from openlora.node.base_model import base_model_id
from openlora.node.chain.client import ChainClient
from openlora.node.config import EngineConfig, LogConfig, MqttConfig, NetworkConfig
from openlora.node.config_files import ENGINE, ChainEntry, write_client_config, write_node_config
from openlora.node.content import BlockContent, adapter_cid
from openlora.node.demo_data import DEMO_ADAPTERS, DEMO_DATANETS
from openlora.node.deploying import deploy
from openlora.node.dev_mqtt import DevMqtt, dev_mqtt
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.keys import create_key
from openlora.node.market import Market
from openlora.node.network.client import NetworkClient
from openlora.node.network.options import NetworkOptions
from openlora.node.network.supervisor import supervised_network
from openlora.node.tasks import task_group
from openlora.p2p.identity import Identity

OLRA: Final = 10**18
MODEL_NAME: Final = "smollm2-135m-instruct"
ASK_IN_WEI_PER_K: Final = OLRA // 10
ASK_OUT_WEI_PER_K: Final = OLRA // 5
STAKE_WEI: Final = 100 * OLRA
PARAMS: Final = Params(bond=OLRA, max_live_claims=32, window_secs=3, max_lease_secs=3_600, max_duration_secs=86_400)
OUTPUT_TERMS: Final = OutputTerms(answer_secs=50, bond=OLRA, bond_per_token=OLRA // 1_000, max_out_tokens=8_192)
DISPUTE_TERMS: Final = DisputeTerms(
    challenge_bond=20 * OLRA,
    verifier_stake=100 * OLRA,
    miss_penalty=10 * OLRA,
    draw_secs=10,
    commit_secs=20,
    reveal_secs=20,
    round_secs=3,
    audit_bps=500,
)
UNSTAKE_DELAY_S: Final = 60
CLOSE_DELAY_S: Final = 10
BLOCK_TIME_S: Final = 1
TURN_S: Final = 2.0
MAX_LIVE_JOBS: Final = 4  # of each node: all share one machine
BARGAIN: Final = 0.8  # of the others' prices, which the last node asks

NODES: Final = 3
OPERATORS: Final = tuple(f"operator {number}" for number in range(1, NODES + 1))
HOT_KEYS: Final = tuple(f"hot key {number}" for number in range(1, NODES + 1))
DEVELOPERS: Final = tuple(f"developer {number}" for number in range(1, len(DEMO_ADAPTERS) + 1))
PROVIDERS: Final = ("data provider 1", "data provider 2")
VISITOR: Final = "visitor"  # a second client
CHEAT: Final = f"operator {NODES + 1}"  # has staked, and runs no node
CHEATS_KEY: Final = f"hot key {NODES + 1}"
# Who is which of anvil's accounts. A hot key and the operator of its number are two keys of one person.
PEOPLE: Final = (
    *("protocol", "base owner", "client", *DEVELOPERS, *PROVIDERS, *OPERATORS, *HOT_KEYS),
    *(VISITOR, CHEAT, CHEATS_KEY),
)


@dataclass(frozen=True, slots=True)
class DevNode:
    """A node that is ready to run: its folder holds `node.toml`, `operator.toml` and keys."""

    name: str
    folder: Path
    listen: str  # multiaddr
    peer_id: str
    dashboard: str  # host:port of its page

    @property
    def address(self) -> str:
        """Where its peers dial it."""
        return f"{self.listen}/p2p/{self.peer_id}"

    @property
    def config(self) -> Path:
        return self.folder / "node.toml"

    @property
    def operator_config(self) -> Path:
        return self.folder / "operator.toml"

    @property
    def socket(self) -> Path:
        return self.folder / "agent.sock"


@dataclass(frozen=True, slots=True)
class Devnet:
    """A running dev network. `adapters` are the registered adapters' digests by name.

    `developers` is the machine that the adapters were published from; `developers_leave` turns it off for good, in the
    task that opened the network.
    """

    chain: Anvil
    deployment: Deployment
    folder: Path
    people: Mapping[str, LocalAccount]
    base_id: bytes
    adapters: Mapping[str, bytes]
    nodes: Sequence[DevNode]
    developers: NetworkClient
    developers_leave: Callable[[], Awaitable[None]]
    mqtt: DevMqtt | None  # the broker that the nodes tell, where one was asked for

    @property
    def developers_content(self) -> Path:
        return self.folder / "developers" / "content"

    @property
    def client_config(self) -> Path:
        return self.folder / "client" / "client.toml"

    def name_of(self, address: str) -> str:
        """Who an address is; the address itself for a stranger's."""
        return next((name for name, key in self.people.items() if key.address.lower() == address.lower()), address)


@asynccontextmanager
async def devnet(
    folder: Path,
    model: Path,
    *,
    chain_id: int = CHAIN_ID,
    port: int = 0,
    engine: EngineConfig = ENGINE,
    mqtt_port: int | None = None,
) -> AsyncIterator[Devnet]:
    """Runs anvil with the market deployed, `model` registered, operators staked, and the demo adapters published.

    Writes `deployment.json`, and a folder for each node and for the client, into `folder`, which should be empty. The
    chain mines a block a second once all that is done. With `mqtt_port` there is an MQTT broker too, which the nodes
    tell what they do.
    """
    layout = DecoderConfig.from_path(model).modules()
    base_id = await asyncio.to_thread(base_model_id, model)
    developers, *nodes = _plan(folder)
    async with (
        anvil(folder / "anvil.log", chain_id=chain_id, port=port, accounts=len(PEOPLE)) as chain,
        AsyncExitStack() as services,
    ):
        people = {name: Account.from_key(key) for name, key in zip(PEOPLE, chain.private_keys, strict=True)}
        entry = ChainEntry(chain.chain_id, chain.rpc_url, folder / "deployment.json", poll_s=0.25)
        mqtt = None
        if mqtt_port is not None:
            operators = [people[operator].address for operator in OPERATORS]
            mqtt = await services.enter_async_context(dev_mqtt(folder / "mqtt", operators, mqtt_port))
        async with task_group() as group:  # keystores take seconds, on purpose
            group.create_task(
                asyncio.to_thread(_write_configs, folder, entry, people, model, engine, developers, nodes, mqtt)
            )
            content = BlockContent(developers.folder / "content")
            deployment, adapters = await _deploy_market(chain, people, content, base_id, layout)
        (folder / "deployment.json").write_text(deployment.to_json())
        options = NetworkOptions(
            chain_id=chain.chain_id,
            registry=deployment.node_registry,
            content_dir=str(developers.folder / "content"),
            listen=(developers.listen,),
            mdns=False,
            nat=False,
            log=LogConfig(level="error"),
        )
        async with AsyncExitStack() as stack:
            peer = await stack.enter_async_context(supervised_network(options, developers.folder))
            await _trust_operators(peer, people)
            await peer.provide([adapter_cid(digest) for digest in adapters.values()])
            await chain.rpc("evm_setIntervalMining", BLOCK_TIME_S)
            yield Devnet(chain, deployment, folder, people, base_id, adapters, nodes, peer, stack.aclose, mqtt)


async def _deploy_market(
    chain: Anvil,
    people: Mapping[str, LocalAccount],
    content: BlockContent,
    base_id: bytes,
    layout: Layout,
) -> tuple[Deployment, Mapping[str, bytes]]:
    client = await ChainClient.connect([chain.rpc_url], chain.chain_id)
    try:
        deployment = await deploy(client, people["protocol"], settings_of(people["protocol"]))
        markets = {name: Market(client, deployment, key, content) for name, key in people.items()}
        return deployment, await _populate(markets, base_id, layout)
    finally:
        await client.close()


def settings_of(deployer: LocalAccount) -> MarketSettings:
    """Terms in seconds, so that everything can be watched; the deployer is owner, guardian and treasury."""
    return MarketSettings(
        owner=deployer.address,
        guardian=deployer.address,
        treasury=deployer.address,
        params=PARAMS,
        timelock_s=0,
        close_delay_s=CLOSE_DELAY_S,
        unstake_delay_s=UNSTAKE_DELAY_S,
        output_terms=OUTPUT_TERMS,
        dispute_terms=DISPUTE_TERMS,
    )


async def _populate(markets: Mapping[str, Market], base_id: bytes, layout: Layout) -> Mapping[str, bytes]:
    for name in (*OPERATORS, CHEAT, "client", VISITOR):
        await markets[name].transact(markets[name].token.mint(markets[name].key.address, 10_000 * OLRA))
    for name in ("client", VISITOR):
        await markets[name].deposit(1_000 * OLRA)
    for operator, hot_key in zip((*OPERATORS, CHEAT), (*HOT_KEYS, CHEATS_KEY), strict=True):
        await markets[operator].register_node(markets[hot_key].key, STAKE_WEI)
    await markets["base owner"].register_base(base_id, MODEL_NAME)
    datanets = await _create_datanets([markets[name] for name in PROVIDERS])
    adapters: dict[str, bytes] = {}
    for name, demo in zip(DEVELOPERS, DEMO_ADAPTERS, strict=True):
        adapters[demo.name] = await markets[name].publish_adapter(
            demo.path, layout, base_id, [datanets[demo.datanet]], demo.name
        )
    return adapters


async def _create_datanets(providers: Sequence[Market]) -> Mapping[str, int]:
    """Each text's provider shares in its datanet by the number of documents; what rounding leaves is the first's."""
    ids: dict[str, int] = {}
    for datanet in DEMO_DATANETS:
        documents = sum(text.documents for text in datanet.texts)
        bps = [10_000 * text.documents // documents for text in datanet.texts]
        bps[0] += 10_000 - sum(bps)
        shares = [Share(payee=provider.key.address, bps=share) for provider, share in zip(providers, bps, strict=False)]
        ids[datanet.name] = await providers[0].create_datanet(datanet.root, shares, datanet.name)
    return ids


async def _trust_operators(peer: NetworkClient, people: Mapping[str, LocalAccount]) -> None:
    """The developers take the operators' presence seriously: they were there when it was staked."""
    pairs = zip(HOT_KEYS, OPERATORS, strict=True)
    await peer.trust({people[hot].address.lower(): people[cold].address.lower() for hot, cold in pairs})


def _plan(folder: Path) -> Sequence[DevNode]:
    """Where everyone will live and listen: the developers' machine first, then the nodes."""
    names = ("developers", *(f"node-{number}" for number in range(1, NODES + 1)))
    plan = []
    ports = _free_ports(2 * len(names))
    for name, port, page_port in zip(names, ports[::2], ports[1::2], strict=True):
        (folder / name).mkdir(parents=True)
        peer = Identity.load_or_create(folder / name / "libp2p.key").peer_id
        plan.append(DevNode(name, folder / name, f"/ip4/127.0.0.1/tcp/{port}", peer, f"127.0.0.1:{page_port}"))
    return plan


def _write_configs(
    folder: Path,
    chain: ChainEntry,
    people: Mapping[str, LocalAccount],
    model: Path,
    engine: EngineConfig,
    developers: DevNode,
    nodes: Sequence[DevNode],
    mqtt: DevMqtt | None,
) -> None:
    for node, operator, hot_key in zip(nodes, OPERATORS, HOT_KEYS, strict=True):
        price = BARGAIN if node is nodes[-1] else 1.0
        others = tuple(other.address for other in nodes if other is not node)
        write_node_config(
            node.config,
            chain,
            model=model.resolve(),
            key=create_key(node.folder, "hot", bytes(people[hot_key].key))[0],
            state_dir=node.folder,
            content_dir=node.folder / "content",
            in_price_wei_per_k=int(price * ASK_IN_WEI_PER_K),
            out_price_wei_per_k=int(price * ASK_OUT_WEI_PER_K),
            confirmations=1,
            max_live_jobs=MAX_LIVE_JOBS,
            turn_s=TURN_S,
            engine=engine,
            mqtt=mqtt.config(people[operator].address) if mqtt else MqttConfig(),
            network=NetworkConfig(
                listen=(node.listen,), bootstrap=(developers.address, *others), mdns=False, nat=False
            ),
            dashboard=node.dashboard,
        )
        write_client_config(
            node.operator_config,
            chain,
            key=create_key(node.folder, "operator", bytes(people[operator].key))[0],
            content_dir=node.folder / "content",
            bootstrap=[node.address],
        )
    write_client_config(
        folder / "client" / "client.toml",
        chain,
        key=create_key(folder / "client", "client", bytes(people["client"].key))[0],
        content_dir=folder / "client" / "content",
        bootstrap=[node.address for node in nodes],
    )


def _free_ports(count: int) -> Sequence[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
