"""What the market's contracts say of the node, and whether they are this market's."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from eth_utils.address import to_checksum_address

from openlora.contracts import AdapterRegistry, Deployment, Governance, JobQueue, Node, NodeRegistry, Vault
from openlora.node.admission import CLAIM_AND_COMMIT_GAS
from openlora.node.chain.client import ChainClient
from openlora.node.doctor.finding import Code, Finding, critical, warning
from openlora.node.doctor.rpc import RPC_TIMEOUT_S
from openlora.node.errors import ChainError

FEW_JOBS: Final = 20
COIN_WEI: Final = 10**18
CONTRACTS: Final = ("vault", "node_registry", "adapter_registry", "job_queue", "sessions", "disputes", "governance")


@dataclass(frozen=True, slots=True)
class Standing:
    """What the market says of a hot key."""

    hot_key: str
    operator: str | None  # whom the hot key serves
    node: Node | None  # the operator's record
    named_hot_key: str | None  # that of the operator whose key lies here, where that is another one
    named_registered: bool | None  # whether that operator is registered; None where it is not known
    free_stake_wei: int
    gas_wei: int
    gas_price_wei: int
    nonce: int

    @property
    def payable_jobs(self) -> int:
        return self.gas_wei // (CLAIM_AND_COMMIT_GAS * max(1, self.gas_price_wei))


@dataclass(frozen=True, slots=True)
class MarketFacts:
    without_code: tuple[str, ...] = ()
    foreign: str = ""  # why these contracts are not this market
    oldest_release: tuple[int, int, int] = (0, 0, 0)  # of this program that governance lets take part
    paused: bool = False
    bond_wei: int = 0
    standing: Standing | None = None  # None without a hot key


# ---- looking --------------------------------------------------------------------------------------------------------


async def look_at_market(url: str, deployment: Deployment, hot_key: str | None, operator: str | None) -> MarketFacts:
    """`operator`: the address of the operator's key, where it is known. Raises ChainError."""
    chain = await ChainClient.connect([url], deployment.chain_id, patience_s=RPC_TIMEOUT_S)
    try:
        addresses = [getattr(deployment, name) for name in CONTRACTS]
        codes = await asyncio.gather(*map(chain.code, addresses))
        if missing := tuple(name for name, code in zip(CONTRACTS, codes, strict=True) if not code):
            return MarketFacts(without_code=missing)
        try:
            return await _ask_market(chain, deployment, hot_key, operator)
        except ChainError as error:
            if "answered with nothing that fits" in str(error) or "reverted" in str(error):
                return MarketFacts(foreign=str(error))
            raise
    finally:
        await chain.close()


async def _ask_market(
    chain: ChainClient, deployment: Deployment, hot_key: str | None, operator: str | None
) -> MarketFacts:
    queue, nodes = JobQueue(deployment.job_queue), NodeRegistry(deployment.node_registry)
    links = {
        "the job queue's registry": (await chain.call(queue.nodes()), deployment.node_registry),
        "the registry's job queue": (await chain.call(nodes.queue()), deployment.job_queue),
        "the registry's vault": (await chain.call(nodes.vault()), deployment.vault),
        "the vault's token": (await chain.call(Vault(deployment.vault).token()), deployment.token),
    }
    if wrong := [f"{name} is {found}, not {wanted}" for name, (found, wanted) in links.items() if found != wanted]:
        return MarketFacts(foreign="; ".join(wrong))
    params = await chain.call(queue.params(await chain.call(queue.params_version())))
    standing = await _standing(chain, nodes, hot_key, operator) if hot_key else None
    return MarketFacts(
        oldest_release=await chain.call(Governance(deployment.governance).min_agent_version()),
        paused=await chain.call(queue.paused()),
        bond_wei=params.bond,
        standing=standing,
    )


async def _standing(chain: ChainClient, nodes: NodeRegistry, hot_key: str, named: str | None) -> Standing:
    operator = await chain.call(nodes.operator_of(to_checksum_address(hot_key)))
    serves = int(operator, 16) != 0
    node: Node | None = None
    if serves:
        node = await chain.call(nodes.node(operator))
    registered = named_hot_key = None
    if named is not None:
        named_hot_key = str((await chain.call(nodes.node(to_checksum_address(named)))).hot_key)
        registered = int(named_hot_key, 16) != 0
    block = await chain.block("latest")
    return Standing(
        hot_key=hot_key,
        operator=str(operator) if serves else None,
        node=node,
        named_hot_key=named_hot_key,
        named_registered=registered,
        free_stake_wei=await chain.call(nodes.free_stake(operator)) if serves else 0,
        gas_wei=await chain.balance(hot_key),
        gas_price_wei=block.base_fee_wei + await chain.suggested_tip(),
        nonce=await chain.nonce(hot_key),
    )


async def base_is_registered(url: str, deployment: Deployment, base_id: bytes) -> bool:
    """Raises ChainError."""
    chain = await ChainClient.connect([url], deployment.chain_id, patience_s=RPC_TIMEOUT_S)
    try:
        payee = await chain.call(AdapterRegistry(deployment.adapter_registry).base_payee(base_id))
        return int(payee, 16) != 0
    finally:
        await chain.close()


# ---- judging --------------------------------------------------------------------------------------------------------


def check_market(market: MarketFacts) -> Iterator[Finding]:
    yield from check_contracts(market)
    yield from check_release(market.oldest_release)
    if market.paused:
        yield critical(
            Code.MARKET_PAUSED,
            "the market is paused: nobody can submit or claim; commits and payments go on",
            "wait for the network's guardian",
        )
    if market.standing is not None:
        yield from check_standing(market.standing, market.bond_wei)


def check_contracts(market: MarketFacts) -> Iterator[Finding]:
    if market.without_code:
        yield critical(
            Code.CONTRACTS_MISSING,
            f"nothing is deployed where the deployment file names {', '.join(market.without_code)}",
            "use the deployment file of the chain that the RPC serves",
        )
    elif market.foreign:
        yield critical(
            Code.CONTRACTS_FOREIGN,
            f"the contracts there are not this market: {market.foreign}",
            "get the deployment file of your network once more; upgrade if the network has new contracts",
        )


def check_release(oldest: tuple[int, int, int]) -> Iterator[Finding]:
    """`oldest`: by the market's governance."""
    mine = version("openlora")
    if tuple(map(int, re.findall(r"\d+", mine)[:3])) < oldest:
        wanted = ".".join(map(str, oldest))
        yield critical(
            Code.PROGRAM_OUTDATED,
            f"this network wants version {wanted} or later, and this is version {mine}",
            f"install version {wanted} or later beside this one, and type `openlora upgrade --check` with that",
        )


def check_standing(standing: Standing, bond_wei: int) -> Iterator[Finding]:
    if standing.operator is None or standing.node is None:
        yield _unauthorised(standing)
    else:
        yield from _stake(standing, standing.node, bond_wei)
    yield from _gas(standing)


def _unauthorised(standing: Standing) -> Finding:
    if standing.named_registered is False:
        return critical(
            Code.NOT_REGISTERED,
            "the operator key is not registered, so the hot key serves nobody",
            "fund the operator key and type `openlora register`",
        )
    other = f"; the operator's hot key is {standing.named_hot_key}" if standing.named_registered else ""
    return critical(
        Code.HOT_KEY_UNAUTHORISED,
        f"no operator has authorised the hot key {standing.hot_key}{other}",
        "type `openlora register` with the operator's key, which authorises this hot key",
    )


def _stake(standing: Standing, node: Node, bond_wei: int) -> Iterator[Finding]:
    if node.unstaking:
        yield warning(
            Code.STAKE_EXITING,
            f"{node.unstaking / COIN_WEI:g} of {node.stake / COIN_WEI:g} tokens are on their way out of the stake",
            "withdraw them when the delay is over, or stake more to go on",
        )
    if standing.free_stake_wei >= bond_wei:
        return
    severe, until = (warning, " until a job is over") if node.bonded else (critical, "")
    yield severe(
        Code.STAKE_TOO_LOW,
        f"{standing.free_stake_wei / COIN_WEI:g} tokens of the stake are free and a claim's bond is"
        f" {bond_wei / COIN_WEI:g}: nothing is claimed{until}",
        "stake more with the operator's key",
    )


def _gas(standing: Standing) -> Iterator[Finding]:
    jobs = standing.payable_jobs
    if jobs >= FEW_JOBS:
        return
    missing_wei = (FEW_JOBS - jobs) * CLAIM_AND_COMMIT_GAS * max(1, standing.gas_price_wei)
    severe = warning if jobs else critical
    yield severe(
        Code.HOT_KEY_UNFUNDED,
        f"the hot key {standing.hot_key} can pay for {jobs} more jobs at this gas price",
        f"send it {missing_wei / COIN_WEI:.4f} of the chain's coin or more",
    )
