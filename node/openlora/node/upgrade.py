"""Whether this version of the program can take over a node as it is: asked before anything is changed."""

import asyncio
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from openlora.contracts import JobQueue
from openlora.node.chain.client import ChainClient
from openlora.node.config import NodeConfig, load
from openlora.node.deployment import load_deployment
from openlora.node.doctor import contracts, journal, rpc
from openlora.node.doctor.journal import JournalFacts
from openlora.node.errors import ChainError, ConfigError, OpenLoraError
from openlora.node.journal_schema import MIGRATIONS
from openlora.node.wei import tokens

READING_S: Final = 5.0


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the new version must agree with. `fix` is empty where it does."""

    about: str
    said: str
    fix: str = ""

    @property
    def ok(self) -> bool:
        return not self.fix


async def check_upgrade(config_file: Path) -> Sequence[Check]:
    """Program, configuration, journal and contracts, by this version. Changes nothing; raises nothing."""
    try:
        config = load(config_file, NodeConfig)
    except ConfigError as error:
        return [_program(None), Check(about="configuration", said=str(error), fix="correct these keys first")]
    found = await asyncio.to_thread(journal.look_at_journal, config, time.monotonic() + READING_S)
    return [
        _program(found),
        Check(about="configuration", said=f"{config_file} is understood: every key is known, none is missing"),
        check_schema(found),
        *await _contracts(config),
    ]


def _program(found: JournalFacts | None) -> Check:
    mine = version("openlora")
    if found is None or found.state is None:
        return Check(about="program", said=f"this is version {mine}; no node runs here")
    return Check(about="program", said=f"this is version {mine}; version {found.state['node']['version']} runs here")


def check_schema(found: JournalFacts) -> Check:
    wanted = len(MIGRATIONS)
    if not found.exists:
        return Check(about="journal", said="there is none yet")
    if found.damage:
        return Check(about="journal", said=f"it is damaged: {found.damage}", fix="restore it from a backup first")
    if found.schema > wanted:
        said = f"a newer version wrote it: schema {found.schema}, and this one knows {wanted}"
        return Check(about="journal", said=said, fix="keep the newer version")
    if found.schema < wanted:
        said = f"schema {found.schema} becomes {wanted} at the next start, for good: make a backup before"
        return Check(about="journal", said=said)
    return Check(about="journal", said=f"schema {found.schema} is what this version writes")


async def _contracts(config: NodeConfig) -> Sequence[Check]:
    try:
        deployment = load_deployment(config.chain)
        url = rpc.usable(await rpc.look_at_endpoints(config.chain, time.time), config.chain.chain_id)
        if url is None:
            raise ChainError(f"no RPC of chain {config.chain.chain_id} answers")
        market = await contracts.look_at_market(url, deployment, None, None)
        if fault := next(contracts.check_contracts(market), None):
            return [Check(about="contracts", said=fault.cause, fix=fault.fix)]
        client = await ChainClient.connect([url], config.chain.chain_id, patience_s=rpc.RPC_TIMEOUT_S)
        try:
            queue = JobQueue(deployment.job_queue)
            number = await client.call(queue.params_version())
            params = await client.call(queue.params(number))
        finally:
            await client.close()
    except OpenLoraError as error:
        return [Check(about="contracts", said=str(error), fix="mend that first: `openlora doctor` says more")]
    terms = f"bond {tokens(params.bond)} OLRA, {params.max_live_claims} claims at once, window {params.window_secs} s"
    return [
        Check(about="contracts", said=f"they answer as this version expects; parameters version {number}: {terms}"),
        check_minimum(market.oldest_release),
    ]


def check_minimum(oldest: tuple[int, int, int]) -> Check:
    if fault := next(contracts.check_release(oldest), None):
        return Check(about="minimum", said=fault.cause, fix=fault.fix)
    wanted = f"version {'.'.join(map(str, oldest))} or later" if any(oldest) else "no particular version"
    return Check(about="minimum", said=f"the network's governance wants {wanted}")
