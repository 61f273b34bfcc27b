"""JSON-RPC over several endpoints that may be down, slow, rate-limited, behind, or on another chain."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientResponseError, ClientSession, ClientTimeout, TCPConnector
from web3 import AsyncHTTPProvider
from web3.providers import AsyncBaseProvider
from web3.types import RPCEndpoint

from openlora.node.errors import RpcDown, RpcError, WrongChain

log = logging.getLogger(__name__)

RATE_LIMIT_CODES = frozenset({429, -32005, -32029})
MAX_BACKOFF_S = 30.0


class _Unavailable(Exception):
    """An endpoint gave no answer; another may."""

    def __init__(self, why: str, retry_after_s: float = 0.0) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


@dataclass(slots=True, eq=False)
class Endpoint:
    """One RPC server. `name` is safe to show: URLs carry keys."""

    name: str
    provider: AsyncBaseProvider
    verified: bool = False  # serves the right chain, as of its last recovery
    wrong_chain: bool = False
    behind: bool = False
    failures: int = 0  # in a row
    resume_at: float = 0.0  # not asked before this time

    async def request(self, method: str, params: tuple[object, ...], timeout_s: float) -> Any:
        """Raises RpcError for an answer that is an error, _Unavailable for no answer."""
        try:
            async with asyncio.timeout(timeout_s):
                response = await self.provider.make_request(RPCEndpoint(method), list(params))
        except TimeoutError:
            raise _Unavailable(f"no answer in {timeout_s:g} s") from None
        except ClientResponseError as error:
            raise _Unavailable(f"HTTP {error.status}", _retry_after_s(error)) from None
        except (ClientError, OSError, ValueError) as error:  # ValueError: not JSON
            raise _Unavailable(type(error).__name__) from error
        if not isinstance(response, dict) or not ("result" in response or "error" in response):
            raise _Unavailable("not a JSON-RPC answer")
        refusal = cast(dict[str, Any], response).get("error")
        if refusal is None:
            return response["result"]
        answer = _to_error(refusal)
        # -32005 for eth_getLogs says "too many results" on some servers: the caller must see it.
        if answer.code in RATE_LIMIT_CODES and method != "eth_getLogs":
            raise _Unavailable("rate limited")
        raise answer

    def failed(self, error: _Unavailable, now: float) -> None:
        self.failures += 1
        self.verified = False
        backoff_s = min(MAX_BACKOFF_S, max(0.25 * 2 ** min(self.failures - 1, 10), error.retry_after_s))
        self.resume_at = now + backoff_s
        log.warning("event=rpc_unavailable endpoint=%s reason=%r retry_s=%.2f", self.name, str(error), backoff_s)


class RpcPool:
    """Asks the first endpoint that is fit to be asked, and the next one when it gives no answer.

    An endpoint that fails rests for 0.25 s, doubling to 30 s (or what Retry-After says), and proves its chain id again
    before it is used. One on another chain is never used; one more than `max_behind` blocks behind is left out until it
    catches up. With three endpoints or more, one that alone claims a higher head does not set the measure.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        chain_id: int,
        *,
        timeout_s: float = 10.0,
        patience_s: float = 20.0,
        max_behind: int = 16,
        check_every_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoints = list(endpoints)
        self._chain_id = chain_id
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._max_behind = max_behind
        self._check_every_s = check_every_s
        self._clock = clock
        self._checked_at = -float("inf")

    @classmethod
    async def open(
        cls, urls: Sequence[str], chain_id: int, *, timeout_s: float = 10.0, patience_s: float = 20.0
    ) -> "RpcPool":
        """One endpoint a URL, with connections kept alive."""
        endpoints = []
        for url in urls:
            # web3's own session opens a connection for every request, and its own retries would hide a dead endpoint.
            timeout = ClientTimeout(total=timeout_s)
            provider = AsyncHTTPProvider(url, request_kwargs={"timeout": timeout}, exception_retry_configuration=None)
            await provider.cache_async_session(ClientSession(connector=TCPConnector(limit=16), trust_env=False))
            endpoints.append(Endpoint(urlsplit(url).netloc.rpartition("@")[2], provider))
        return cls(endpoints, chain_id, timeout_s=timeout_s, patience_s=patience_s)

    async def close(self) -> None:
        for endpoint in self._endpoints:
            await endpoint.provider.disconnect()

    async def request(self, method: str, *params: object) -> Any:
        """The result. Raises RpcError when a server answers with an error, RpcDown when none has answered for
        `patience_s`, WrongChain when those that answer are all on another chain."""
        give_up_at = self._clock() + self._patience_s
        if len(self._endpoints) > 1 and self._clock() - self._checked_at > self._check_every_s:
            await self.check()
        while True:
            for endpoint in self._fit():
                try:
                    return await self._ask(endpoint, method, *params)
                except _Unavailable as error:
                    endpoint.failed(error, self._clock())
            candidates = [endpoint for endpoint in self._endpoints if not endpoint.wrong_chain]
            if not candidates:
                raise WrongChain(f"no configured RPC serves chain {self._chain_id}; check chain_id and rpc_urls")
            wait_s = max(0.0, min(endpoint.resume_at for endpoint in candidates) - self._clock())
            if self._clock() + wait_s >= give_up_at:
                names = ", ".join(endpoint.name for endpoint in candidates)
                raise RpcDown(f"no RPC answers ({names}); check rpc_urls and the network")
            await asyncio.sleep(wait_s)

    async def check(self) -> None:
        """Compares all endpoints' heads and leaves out those that are behind."""
        self._checked_at = self._clock()
        resting = [endpoint for endpoint in self._endpoints if endpoint.resume_at > self._clock()]
        asked = [endpoint for endpoint in self._endpoints if not endpoint.wrong_chain and endpoint not in resting]
        heads = dict(zip(asked, await asyncio.gather(*map(self._head, asked)), strict=True))
        known = sorted(head for head in heads.values() if head is not None)
        if not known:
            return
        measure = known[-2] if len(known) >= 3 else known[-1]
        for endpoint, head in heads.items():
            behind = head is not None and measure - head > self._max_behind
            if behind and not endpoint.behind:
                log.warning("event=rpc_behind endpoint=%s head=%s others=%d", endpoint.name, head, measure)
            endpoint.behind = behind

    async def _head(self, endpoint: Endpoint) -> int | None:
        try:
            return int(await self._ask(endpoint, "eth_blockNumber"), 16)
        except _Unavailable as error:
            endpoint.failed(error, self._clock())
        except RpcError as error:
            log.warning("event=rpc_refuses_head endpoint=%s reason=%r", endpoint.name, str(error))
        return None

    def _fit(self) -> list[Endpoint]:
        """Those to ask, in order of preference: as configured; the ones behind only when nobody else is left."""
        now = self._clock()
        fit = [endpoint for endpoint in self._endpoints if not endpoint.wrong_chain and endpoint.resume_at <= now]
        return sorted(fit, key=lambda endpoint: endpoint.behind)

    async def _ask(self, endpoint: Endpoint, method: str, *params: object) -> Any:
        if not endpoint.verified:
            served = int(await endpoint.request("eth_chainId", (), self._timeout_s), 16)
            endpoint.wrong_chain = served != self._chain_id
            endpoint.verified = not endpoint.wrong_chain
            if endpoint.wrong_chain:
                log.error("event=rpc_dropped endpoint=%s chain_id=%d wanted=%d", endpoint.name, served, self._chain_id)
                raise _Unavailable(f"serves chain {served}")
        result = await endpoint.request(method, params, self._timeout_s)
        endpoint.failures = 0
        return result


def _to_error(refusal: object) -> RpcError:
    if not isinstance(refusal, dict):
        return RpcError(0, str(refusal), None)
    return RpcError(int(refusal.get("code") or 0), str(refusal.get("message") or "no message"), refusal.get("data"))


def _retry_after_s(error: ClientResponseError) -> float:
    value = error.headers.get("Retry-After", "") if error.headers else ""
    return min(float(value), 60.0) if value.isdigit() else 0.0
