"""The examination: everything is looked at side by side and in bounded time, then judged by pure functions."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from openlora.contracts import Deployment
from openlora.node.config import MarketConfig, NodeConfig, load
from openlora.node.doctor import contracts, journal, keys, machine, model, network, rpc
from openlora.node.doctor.contracts import MarketFacts
from openlora.node.doctor.finding import Code, Finding, critical, warning
from openlora.node.doctor.journal import JournalFacts
from openlora.node.doctor.keys import DeploymentFacts, KeyFacts
from openlora.node.doctor.machine import INSTRUMENTS, Instruments, MachineFacts
from openlora.node.doctor.model import ModelFacts
from openlora.node.doctor.network import NetworkFacts
from openlora.node.doctor.rpc import Clock, Endpoint
from openlora.node.errors import ChainError, ConfigError
from openlora.node.journal import Identity
from openlora.node.telemetry.snapshot import Severity

READING_S: Final = 4.0  # for model and journal, which may be large
ASKING_S: Final = 2.5  # for all questions to the contracts


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is judged; a part is None where `unchecked` says why."""

    config: NodeConfig
    key: KeyFacts
    deployment: DeploymentFacts
    endpoints: Sequence[Endpoint]
    market: MarketFacts | None
    machine: MachineFacts
    journal: JournalFacts
    model: ModelFacts
    model_registered: bool | None
    network: NetworkFacts
    unchecked: tuple[str, ...]

    @property
    def runs(self) -> bool:
        return journal.runs(self.journal, self.key.address)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`healthy`: nothing keeps the node from earning once it runs."""

    healthy: bool
    agent_runs: bool
    operator: str | None
    hot_key: str | None
    findings: tuple[Finding, ...]  # critical ones first
    seconds: float

    @classmethod
    def of(cls, findings: Sequence[Finding], facts: Facts | None, seconds: float) -> "Report":
        ordered = tuple(sorted(findings, key=lambda finding: finding.severity is not Severity.CRITICAL))
        standing = facts.market.standing if facts and facts.market else None
        return cls(
            healthy=not any(finding.severity is Severity.CRITICAL for finding in findings),
            agent_runs=facts is not None and facts.runs,
            operator=standing.operator if standing else None,
            hot_key=facts.key.address if facts else None,
            findings=ordered,
            seconds=round(seconds, 2),
        )


async def examine(
    path: Path,
    operator_toml: Path | None = None,
    *,
    clock: Clock = time.time,
    instruments: Instruments = INSTRUMENTS,
) -> Report:
    """Examines the node of a configuration, whether its agent runs or not, in 10 s. Changes nothing.

    `operator_toml`: the operator's client configuration; by default the one beside `path`, if it is there.
    """
    started_s = time.monotonic()
    try:
        config = load(path, NodeConfig)
    except ConfigError as error:
        code = Code.CONFIG_INVALID if path.exists() else Code.CONFIG_MISSING
        fix = "correct these keys" if path.exists() else "make one with `openlora init`, or name it with --config"
        return Report.of([critical(code, str(error), fix)], None, time.monotonic() - started_s)
    facts = await look(config, operator_toml or path.with_name("operator.toml"), clock, instruments)
    return Report.of(list(judge(facts)), facts, time.monotonic() - started_s)


# ---- looking --------------------------------------------------------------------------------------------------------


async def look(config: NodeConfig, operator_toml: Path, clock: Clock, instruments: Instruments) -> Facts:
    """In two rounds: what lies here and whether the chain answers; then what needs both."""
    deadline_s = time.monotonic() + READING_S
    deployment = keys.look_at_deployment(config.chain)
    key, endpoints, there, (journal_facts, model_facts) = await asyncio.gather(
        asyncio.to_thread(keys.look_at_key, config.hot_key),
        rpc.look_at_endpoints(config.chain, clock),
        machine.look_at_machine(config, instruments),
        asyncio.to_thread(_read, config, deadline_s),
    )
    named = keys.named_operator(operator_toml)
    market, registered, unchecked = await _ask(
        rpc.usable(endpoints, config.chain.chain_id), deployment.deployment, key.address, named, model_facts.base_id
    )
    operator = market.standing.operator if market and market.standing else named
    return Facts(
        config=config,
        key=key,
        deployment=deployment,
        endpoints=endpoints,
        market=market,
        machine=there,
        journal=journal_facts,
        model=model_facts,
        model_registered=registered,
        network=await network.look_at_network(config, operator, ports_are_its_own=journal_facts.holder is not None),
        unchecked=unchecked,
    )


async def _ask(
    url: str | None, deployment: Deployment | None, hot_key: str | None, operator: str | None, base_id: bytes | None
) -> tuple[MarketFacts | None, bool | None, tuple[str, ...]]:
    """What the contracts say of the node, whether they know its model, and what could not be asked."""
    if url is None or deployment is None:
        return None, None, ("stake, gas and contracts, since there is no chain or no contracts' file to ask",)
    market = registered = None
    try:
        async with asyncio.timeout(ASKING_S):
            market = await contracts.look_at_market(url, deployment, hot_key, operator)
            if base_id is not None and not market.without_code and not market.foreign:
                registered = await contracts.base_is_registered(url, deployment, base_id)
    except (ChainError, TimeoutError) as error:
        return market, None, (f"the contracts could not be asked: {error or 'no answer in time'}",)
    return market, registered, ()


def _read(config: NodeConfig, deadline_s: float) -> tuple[JournalFacts, ModelFacts]:
    """A running agent has read its model already, and says which one it is."""
    found = journal.look_at_journal(config, deadline_s)
    known = bytes.fromhex(found.state["model"]["base_id"].removeprefix("0x")) if found.state else None
    return found, model.look_at_model(config, deadline_s, known)


# ---- judging --------------------------------------------------------------------------------------------------------


def judge(facts: Facts) -> Iterator[Finding]:
    """Every fault that the facts show. Pure."""
    config, standing = facts.config, facts.market.standing if facts.market else None
    identity = None
    if facts.deployment.deployment is not None and facts.key.address is not None:
        operator = standing.operator if standing else None
        identity = Identity.of(facts.deployment.deployment, facts.key.address, operator)
    yield from keys.check_key(facts.key, runs=facts.runs)
    if standing is not None and standing.node is not None:
        yield from keys.check_encryption_key(facts.key, standing.node.encryption_key)
    yield from keys.check_deployment(facts.deployment, config.chain.chain_id)
    yield from rpc.check_endpoints(facts.endpoints, config.chain.chain_id)
    if facts.market is not None:
        yield from contracts.check_market(facts.market)
    yield from machine.check_folders(facts.machine, config.storage.min_free_bytes)
    yield from machine.check_engine(facts.machine, config.engine)
    yield from machine.check_memory(facts.machine, facts.model.needed_bytes, config.engine, runs=facts.runs)
    yield from model.check_model(facts.model)
    yield from model.check_identity(facts.model, facts.model_registered)
    yield from journal.check_journal(facts.journal, identity, standing.nonce if standing else None)
    yield from journal.check_agent(facts.journal, facts.key.address)
    yield from network.check_network(facts.network)
    yield from check_prices(config.market)
    for what in facts.unchecked:
        yield warning(Code.NOT_CHECKED, f"not checked: {what}", "mend the faults above, then type `openlora doctor`")


def check_prices(market: MarketConfig) -> Iterator[Finding]:
    if market.max_live_jobs < 1:
        yield critical(Code.CLAIMS_OFF, "market.max_live_jobs is 0: no job is claimed", "set it to 1 or more")
    if market.min_in_price_wei_per_k == 0 and market.min_out_price_wei_per_k == 0:
        yield warning(
            Code.ASK_IS_ZERO,
            "both prices in [market] are 0: jobs that pay nothing are taken too",
            "set min_in_price_wei_per_k and min_out_price_wei_per_k",
        )
