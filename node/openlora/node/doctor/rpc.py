"""The RPC servers of the configuration as this machine reaches them, and the clocks."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from openlora.node.chain.types import Block, quantity
from openlora.node.config import ChainConfig
from openlora.node.doctor.finding import Code, Finding, critical, warning

Clock = Callable[[], float]  # unix seconds

RPC_TIMEOUT_S: Final = 3.0
MAX_CLOCK_ERROR_S: Final = 15.0
MAX_BLOCK_AGE_S: Final = 120.0
MAX_BLOCKS_BEHIND: Final = 16


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One RPC server; `name` shows no key. What it did not say is None, and `fault` says why."""

    name: str
    url: str
    chain_id: int | None = None
    block_number: int = 0
    block_at_s: float = 0.0
    server_at_s: float | None = None  # by its HTTP Date
    asked_at_s: float = 0.0  # by our clock
    fault: str = ""


# ---- looking --------------------------------------------------------------------------------------------------------


async def look_at_endpoints(config: ChainConfig, clock: Clock) -> Sequence[Endpoint]:
    async with httpx.AsyncClient(timeout=RPC_TIMEOUT_S, trust_env=False) as http:
        return await asyncio.gather(*(_look_at_endpoint(http, url, clock) for url in config.rpc_urls))


async def _look_at_endpoint(http: httpx.AsyncClient, url: str, clock: Clock) -> Endpoint:
    name = urlsplit(url).netloc.rpartition("@")[2] or url

    async def ask(method: str, *params: object) -> tuple[httpx.Response, Any]:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = await http.post(url, json=body)
        answer.raise_for_status()
        return answer, answer.json()["result"]

    try:
        async with asyncio.timeout(RPC_TIMEOUT_S):
            _, chain_id = await ask("eth_chainId")
            answer, newest = await ask("eth_getBlockByNumber", "latest", False)
        date, block = answer.headers.get("date"), Block.from_rpc(newest)
        return Endpoint(
            name,
            url,
            chain_id=quantity(chain_id),
            block_number=block.number,
            block_at_s=float(block.timestamp),
            server_at_s=parsedate_to_datetime(date).timestamp() if date else None,
            asked_at_s=clock(),
        )
    except (TimeoutError, httpx.TimeoutException):
        return Endpoint(name, url, fault=f"no answer in {RPC_TIMEOUT_S:g} s")
    except httpx.HTTPStatusError as error:
        return Endpoint(name, url, fault=f"HTTP {error.response.status_code}")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Endpoint(name, url, fault=str(error) or type(error).__name__)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return Endpoint(name, url, fault="its answer is no JSON-RPC of a chain")


def usable(endpoints: Sequence[Endpoint], chain_id: int) -> str | None:
    """The URL of the first one that answers and serves this chain."""
    return next((endpoint.url for endpoint in endpoints if endpoint.chain_id == chain_id), None)


# ---- judging --------------------------------------------------------------------------------------------------------


def check_endpoints(endpoints: Sequence[Endpoint], chain_id: int) -> Iterator[Finding]:
    severe = critical if usable(endpoints, chain_id) is None else warning
    for endpoint in endpoints:
        if endpoint.chain_id is None:
            yield severe(
                Code.RPC_DOWN,
                f"the RPC {endpoint.name} does not answer: {endpoint.fault}",
                "start it, or name another one in chain.rpc_urls",
            )
        elif endpoint.chain_id != chain_id:
            yield severe(
                Code.RPC_WRONG_CHAIN,
                f"the RPC {endpoint.name} serves chain {endpoint.chain_id}, and chain.chain_id is {chain_id}",
                "name an RPC of your chain in chain.rpc_urls, or correct chain.chain_id",
            )
    here = [endpoint for endpoint in endpoints if endpoint.chain_id == chain_id]
    if off := next(check_clock(here), None):
        yield off
    else:
        yield from check_heads(here)


def check_clock(endpoints: Sequence[Endpoint]) -> Iterator[Finding]:
    for endpoint in endpoints:
        ahead_s = _ahead_s(endpoint)
        if abs(ahead_s) >= MAX_CLOCK_ERROR_S:
            yield critical(
                Code.CLOCK_OFF,
                f"this machine's clock is {abs(ahead_s):.0f} s {'behind' if ahead_s > 0 else 'ahead'},"
                f" by {endpoint.name}",
                "let the machine keep time: timedatectl set-ntp true",
            )


def _ahead_s(endpoint: Endpoint) -> float:
    """How far the chain is ahead of our clock, by its server's; an old block says nothing, one of the future does."""
    server_s = 0.0 if endpoint.server_at_s is None else endpoint.server_at_s - endpoint.asked_at_s
    return server_s if abs(server_s) >= MAX_CLOCK_ERROR_S else max(0.0, endpoint.block_at_s - endpoint.asked_at_s)


def check_heads(endpoints: Sequence[Endpoint]) -> Iterator[Finding]:
    best = max((endpoint.block_number for endpoint in endpoints), default=0)
    for endpoint in endpoints:
        behind, age_s = best - endpoint.block_number, endpoint.asked_at_s - endpoint.block_at_s
        if behind > MAX_BLOCKS_BEHIND or age_s > MAX_BLOCK_AGE_S:
            said = f"{behind} blocks behind another RPC" if behind else f"{age_s:.0f} s old"
            yield warning(
                Code.RPC_BEHIND,
                f"the newest block of the RPC {endpoint.name} is {said}: jobs are seen late or not at all",
                "let it catch up, or name another one in chain.rpc_urls",
            )
