"""JSON-RPC over several endpoints that may be down, slow, rate-limited, behind, or on another chain."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from aiohttp import (
    ClientConnectorCertificateError,
    ClientError,
    ClientResponseError,
    ClientSession,
    ClientTimeout,
    TCPConnector,
)
from web3.providers import AsyncBaseProvider
from web3.providers.async_base import AsyncJSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from openlora.node.chain.types import Block, quantity
from openlora.node.errors import RpcDown, RpcError, WrongChain

log = logging.getLogger(__name__)

T = TypeVar("T")

RATE_LIMIT_CODES = frozenset({429, -32005, -32029})
MAX_BACKOFF_S = 30.0
MAX_BEHIND = 16  # blocks
MAX_BEHIND_S = 60
CHECK_EVERY_S = 30.0
DOUBT_S = 60.0
SLOW_S = 2.0
MAX_ANSWER_BYTES = 64 << 20
SAYS_WHY = (400, 413)  # HTTP errors about the request itself: many servers explain them by a JSON-RPC error


class _Unavailable(Exception):
    """An endpoint gave no answer; another may."""

    def __init__(self, why: str, retry_after_s: float = 0.0) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class HttpProvider(AsyncJSONBaseProvider):
    """web3's own loses the body of an HTTP error, reads answers of any size, and opens a connection for every request.
    Takes an answer for its request's only if it has its id."""

    def __init__(self, url: str, session: ClientSession) -> None:
        super().__init__()
        self._url = url
        self._session = session

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        request = self.form_request(method, params)
        async with self._session.post(self._url, json=request) as answer:
            if answer.status not in SAYS_WHY:
                answer.raise_for_status()
            body = bytearray()
            async for piece in answer.content.iter_any():
                body += piece
                if len(body) > MAX_ANSWER_BYTES:
                    raise ValueError(f"an answer over {MAX_ANSWER_BYTES} bytes")
            response = cast(RPCResponse, json.loads(body)) if body.startswith(b"{") else RPCResponse()
            if "error" not in response:
                answer.raise_for_status()
        if response.get("id") not in (request["id"], None):
            raise ValueError("another request's answer")
        return response

    async def disconnect(self) -> None:
        await self._session.close()


@dataclass(slots=True, eq=False)
class Endpoint:
    """One RPC server. `name` is safe to show: URLs carry keys."""

    name: str
    provider: AsyncBaseProvider
    verified: bool = False  # serves the right chain, as of its last recovery
    wrong_chain: bool = False
    behind: bool = False
    doubted_at: float = -float("inf")  # when what it showed last contradicted what we know
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
        except ClientConnectorCertificateError as error:
            found = error.certificate_error
            raise _Unavailable(f"its certificate: {getattr(found, 'verify_message', found)}") from None
        except (ClientError, OSError, ValueError, RecursionError) as error:  # the last two: not JSON
            raise _Unavailable(type(error).__name__) from error
        if not isinstance(response, dict) or ("result" not in response and response.get("error") is None):
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

    An endpoint that fails rests for 0.25 s, doubling to 30 s (or what Retry-After says). It proves its chain id before
    it is used, after each failure and every `CHECK_EVERY_S`; on another chain it rests for 30 s. One more than
    `MAX_BEHIND` blocks or `MAX_BEHIND_S` behind is left out until it catches up, if the one ahead has its head too:
    else they contradict each other, and the order stays as configured. With three endpoints or more, one that alone
    claims a higher head does not set the measure. Where several are asked at once, one that is not the preferred has
    `slow_s` to answer: nobody waits for the slowest.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        chain_id: int,
        *,
        timeout_s: float = 10.0,
        patience_s: float = 20.0,
        slow_s: float = SLOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoints = list(endpoints)
        self._chain_id = chain_id
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._slow_s = slow_s
        self._clock = clock
        self._checked_at = -float("inf")
        self.doubts = 0  # how often another endpoint has come first because of a contradiction
        self._proved = False  # whether any endpoint has ever served our chain

    @classmethod
    async def open(
        cls, urls: Sequence[str], chain_id: int, *, timeout_s: float = 10.0, patience_s: float = 20.0
    ) -> "RpcPool":
        """One endpoint a URL, with connections kept alive."""
        endpoints = []
        for url in urls:
            timeout, connector = ClientTimeout(total=timeout_s), TCPConnector(limit=16)
            session = ClientSession(timeout=timeout, connector=connector, trust_env=False)
            endpoints.append(Endpoint(urlsplit(url).netloc.rpartition("@")[2], HttpProvider(url, session)))
        return cls(endpoints, chain_id, timeout_s=timeout_s, patience_s=patience_s)

    async def close(self) -> None:
        for endpoint in self._endpoints:
            await endpoint.provider.disconnect()

    async def request(self, decode: Callable[[Any], T], method: str, *params: object) -> T:
        """The result, decoded; a server whose answer does not decode has not answered. Raises RpcError when a server
        answers with an error, RpcDown when none has answered for `patience_s`, WrongChain when none has ever served our
        chain and those that answer are all on another."""
        give_up_at = self._clock() + self._patience_s
        if self._clock() - self._checked_at > CHECK_EVERY_S:
            await self.check()
        while True:
            for endpoint in self._fit():
                try:
                    return await self._ask(endpoint, decode, method, *params)
                except _Unavailable as error:
                    endpoint.failed(error, self._clock())
            if not self._proved and all(endpoint.wrong_chain for endpoint in self._endpoints):
                raise WrongChain(f"no configured RPC serves chain {self._chain_id}; check chain_id and rpc_urls")
            wait_s = max(0.0, min(endpoint.resume_at for endpoint in self._endpoints) - self._clock())
            if self._clock() + wait_s >= give_up_at:
                names = ", ".join(endpoint.name for endpoint in self._endpoints)
                raise RpcDown(f"no RPC answers ({names}); check rpc_urls and the network")
            await asyncio.sleep(wait_s)

    async def tell(self, method: str, *params: object) -> None:
        """Tells every endpoint that is fit. Raises as `request` when those preferred do not take it."""

        async def tell_too(endpoint: Endpoint) -> None:
            with suppress(RpcError):  # whether it takes it is for those preferred to say
                await self._aside(endpoint, _anything, method, *params)

        others = map(tell_too, self._fit()[1:])
        told = await asyncio.gather(self.request(_anything, method, *params), *others, return_exceptions=True)
        for failure in told:
            if isinstance(failure, BaseException):
                raise failure

    async def ask_each(self, decode: Callable[[Any], T], method: str, *params: object) -> list[T]:
        """The answers of all endpoints that are fit and not behind and have one, in order of preference."""
        asked = (endpoint for endpoint in self._fit() if not endpoint.behind)
        answers = await asyncio.gather(*(self._alone(endpoint, decode, method, *params) for endpoint in asked))
        return [answer for answer in answers if answer is not None]

    async def check(self) -> None:
        """Has all endpoints prove their chain anew, compares their heads, and leaves out those that are behind."""
        self._checked_at = self._clock()
        for endpoint in self._endpoints:
            endpoint.verified = False
        if len(self._endpoints) == 1:
            return
        asked = self._fit()
        found = await asyncio.gather(*(self._block(endpoint, "latest") for endpoint in asked))
        heads = {endpoint: head for endpoint, head in zip(asked, found, strict=True) if head is not None}
        if not heads:
            return
        order = sorted(heads, key=lambda endpoint: heads[endpoint].number)
        ahead = order[-2] if len(order) >= 3 else order[-1]
        for endpoint, head in heads.items():
            behind = self._is_behind(head, heads[ahead])
            if behind and not endpoint.behind:
                behind = await self._extends(ahead, endpoint, head)
            endpoint.behind = behind

    def _is_behind(self, head: Block, other: Block) -> bool:
        late_s = other.timestamp - head.timestamp
        return other.number - head.number > MAX_BEHIND or (other.number > head.number and late_s > MAX_BEHIND_S)

    async def _extends(self, ahead: Endpoint, endpoint: Endpoint, head: Block) -> bool:
        """Whether the one ahead is on the chain of this one's head: a number alone is soon claimed."""
        shared = await self._block(ahead, hex(head.number))
        if shared is None or shared.hash != head.hash:
            log.warning("event=rpc_contradicted endpoint=%s by=%s block=%d", endpoint.name, ahead.name, head.number)
            return False
        log.warning("event=rpc_behind endpoint=%s head=%d behind=%s", endpoint.name, head.number, ahead.name)
        return True

    async def _block(self, endpoint: Endpoint, which: str) -> Block | None:
        return await self._alone(endpoint, Block.from_rpc, "eth_getBlockByNumber", which, False)

    async def _alone(self, endpoint: Endpoint, decode: Callable[[Any], T], method: str, *params: object) -> T | None:
        """What this endpoint itself says; None where it has no answer."""
        try:
            return await self._aside(endpoint, decode, method, *params)
        except RpcError as error:
            log.warning("event=rpc_refuses endpoint=%s method=%s reason=%r", endpoint.name, method, str(error))
        return None

    async def _aside(self, endpoint: Endpoint, decode: Callable[[Any], T], method: str, *params: object) -> T | None:
        """As `_alone`, but raises RpcError."""
        within_s = self._timeout_s if endpoint in self._fit()[:1] else self._slow_s
        try:
            async with asyncio.timeout(within_s):
                return await self._ask(endpoint, decode, method, *params)
        except TimeoutError:
            endpoint.failed(_Unavailable(f"no answer in {within_s:g} s"), self._clock())
        except _Unavailable as error:
            endpoint.failed(error, self._clock())
        return None

    def doubt(self, doubts: int) -> bool:
        """What was shown since `self.doubts` was `doubts` contradicts what we know. True where another endpoint can be
        asked, which comes first from now on; False where all that answer, and are not behind, were doubted in the last
        minute: then it must be true."""
        if doubts != self.doubts:
            return True  # another one is asked already
        now, fit = self._clock(), self._fit()
        if fit:
            fit[0].doubted_at = now
        others = any(now - endpoint.doubted_at > DOUBT_S for endpoint in fit if not endpoint.behind)
        if others:
            log.error("event=rpc_doubted endpoint=%s", fit[0].name)
            self.doubts, self._checked_at = self.doubts + 1, -float("inf")
        return others

    def _fit(self) -> list[Endpoint]:
        """Those to ask, in order of preference: as configured, the last doubted last; the ones behind only when nobody
        else is left."""
        now = self._clock()
        fit = [endpoint for endpoint in self._endpoints if endpoint.resume_at <= now]
        return sorted(fit, key=lambda endpoint: (endpoint.behind, endpoint.doubted_at))

    async def _ask(self, endpoint: Endpoint, decode: Callable[[Any], T], method: str, *params: object) -> T:
        if not endpoint.verified:
            served = _decoded(quantity, await endpoint.request("eth_chainId", (), self._timeout_s))
            was_wrong, endpoint.wrong_chain = endpoint.wrong_chain, served != self._chain_id
            endpoint.verified = not endpoint.wrong_chain
            if endpoint.wrong_chain and not was_wrong:
                log.error("event=rpc_dropped endpoint=%s chain_id=%d wanted=%d", endpoint.name, served, self._chain_id)
            if endpoint.wrong_chain:
                raise _Unavailable(f"serves chain {served}", retry_after_s=MAX_BACKOFF_S)
            self._proved = True
        result = _decoded(decode, await endpoint.request(method, params, self._timeout_s))
        endpoint.failures = 0
        return result


def _decoded(decode: Callable[[Any], T], result: Any) -> T:
    try:
        return decode(result)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _Unavailable(f"an answer that makes no sense: {type(error).__name__}") from error


def _anything(result: Any) -> object:
    return result


def _to_error(refusal: object) -> RpcError:
    if not isinstance(refusal, dict):
        return RpcError(0, str(refusal), None)
    code = refusal.get("code")
    return RpcError(
        code if isinstance(code, int) else 0, str(refusal.get("message") or "no message"), refusal.get("data")
    )


def _retry_after_s(error: ClientResponseError) -> float:
    value = error.headers.get("Retry-After", "") if error.headers else ""
    return min(float(value), 60.0) if value.isdigit() else 0.0
