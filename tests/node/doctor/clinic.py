"""A node that lacks nothing, on a real chain of its own, for faults to be injected into."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount

from openlora.contracts import Deployment, Governance, JobQueue, NodeRegistry
from openlora.node.anvil import Anvil, anvil
from openlora.node.base_model import base_model_id
from openlora.node.chain.client import ChainClient
from openlora.node.config import EngineConfig, KeyConfig, NetworkConfig
from openlora.node.config_files import ChainEntry, write_client_config, write_node_config
from openlora.node.content import BlockContent
from openlora.node.deploying import deploy
from openlora.node.devnet import OLRA, settings_of
from openlora.node.doctor.examination import Report, examine
from openlora.node.market import Market
from tests.node.engine.tiny import write_model
from tests.node.tiny_model import write_tiny_model


def write_key(folder: Path, name: str, key: LocalAccount) -> KeyConfig:
    """A keystore that opens at once."""
    config = KeyConfig(keystore=folder / f"{name}.json", password_file=folder / f"{name}.password")
    keystore = Account.encrypt(key.key, "password", kdf="scrypt", iterations=2)
    for path, text in ((config.keystore, json.dumps(keystore)), (config.password_file, "password\n")):
        path.touch(mode=0o600)
        path.write_text(text)
    return config


@dataclass(frozen=True)
class Clinic:
    """The chain, the market and the people of a healthy node, and the folder where its files are kept."""

    chain: Anvil
    deployment: Deployment
    operator: LocalAccount
    hot_key: LocalAccount
    folder: Path

    @property
    def listener(self) -> str:
        """The chain's port as a peer's: the doctor looks whether anybody listens."""
        return f"/ip4/127.0.0.1/tcp/{self.chain.rpc_url.rpartition(':')[2]}/p2p/12D3KooWAnybody"

    def patient(self, folder: Path) -> "Patient":
        """A healthy node's files."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "deployment.json").write_text(self.deployment.to_json())
        entry = ChainEntry(self.chain.chain_id, self.chain.rpc_url, folder / "deployment.json")
        write_node_config(
            folder / "node.toml",
            entry,
            model=self.folder / "model",
            key=write_key(folder, "hot", self.hot_key),
            state_dir=folder / "state",
            content_dir=folder / "content",
            in_price_wei_per_k=1,
            engine=EngineConfig(kv_tokens=1024),
            network=NetworkConfig(listen=("/ip4/127.0.0.1/tcp/0",), bootstrap=(self.listener,)),
        )
        (folder / "state").mkdir()
        operator = write_key(folder, "operator", self.operator)
        write_client_config(folder / "operator.toml", entry, key=operator, content_dir=folder / "content")
        return Patient(self, folder)

    async def market(self, key: LocalAccount, deed: str, *arguments: Any) -> None:
        """One transaction of a key's on a contract: "nodes.begin_unstake"."""
        part, _, name = deed.partition(".")
        contracts = {
            "nodes": NodeRegistry(self.deployment.node_registry),
            "queue": JobQueue(self.deployment.job_queue),
            "governance": Governance(self.deployment.governance),
        }
        client = await ChainClient.connect([self.chain.rpc_url], self.chain.chain_id)
        try:
            market = Market(client, self.deployment, key, BlockContent(self.folder / "content"))
            await market.transact(getattr(contracts[part], name)(*arguments))
        finally:
            await client.close()


@dataclass(frozen=True)
class Patient:
    clinic: Clinic
    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "node.toml"

    def put(self, key: str, value: str) -> "Patient":
        """Gives a key of node.toml another value, written as TOML."""
        text, count = re.subn(
            rf"^{key} = .*", lambda _: f"{key} = {value}", self.config.read_text(), flags=re.MULTILINE
        )
        assert count >= 1, f"{key} is not in {self.config}"
        self.config.write_text(text)
        return self

    async def report(self, **options: Any) -> Report:
        return await examine(self.config, **options)

    async def codes(self, **options: Any) -> set[str]:
        return {str(finding.code) for finding in (await self.report(**options)).findings}


@asynccontextmanager
async def clinic(folder: Path) -> AsyncIterator[Clinic]:
    model = write_model(folder / "model")
    (write_tiny_model(folder / "text") / "tokenizer.json").rename(model / "tokenizer.json")
    async with anvil(folder / "anvil.log") as chain:
        protocol, operator, hot_key = (Account.from_key(key) for key in chain.private_keys[:3])
        client = await ChainClient.connect([chain.rpc_url], chain.chain_id)
        try:
            deployment = await deploy(client, protocol, settings_of(protocol))
            content = BlockContent(folder / "content")
            people = Market(client, deployment, operator, content)
            await people.transact(people.token.mint(operator.address, 100 * OLRA))
            await people.register_node(hot_key, 50 * OLRA)
            await people.register_base(await asyncio.to_thread(base_model_id, model), "tiny")
        finally:
            await client.close()
        yield Clinic(chain, deployment, operator, hot_key, folder)
