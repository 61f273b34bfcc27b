"""Several endpoints, none to be relied on."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientConnectionError, ClientResponseError, RequestInfo, web
from aiohttp.test_utils import TestServer
from multidict import CIMultiDict, CIMultiDictProxy
from web3.types import RPCEndpoint, RPCResponse
from yarl import URL

from openlora.node.chain.client import ChainClient
from openlora.node.chain.rpc import MAX_ANSWER_BYTES, Endpoint, RpcPool
from openlora.node.chain.types import Block, TxReceipt, quantity
from openlora.node.errors import Reverted, RpcDown, RpcError, WrongChain
from tests.node.chain.fake_chain import CHAIN_ID, QUEUE, FakeChain, FakeProvider, Refusal, effect
from tests.node.chain.world import foreign
from tests.node.telemetry.broker import write_certificate


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class OtherChain(FakeChain):
    def eth_chainId(self) -> str:
        return "0x1"


class Mute(FakeProvider):
    """Takes a request and never answers."""

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        await asyncio.Event().wait()
        raise AssertionError


class Garbled(FakeProvider):
    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        raise ValueError("<html>")


def too_many(retry_after: str) -> ClientResponseError:
    info = RequestInfo(URL("http://rpc"), "POST", CIMultiDictProxy(CIMultiDict()), URL("http://rpc"))
    return ClientResponseError(info, (), status=429, headers=CIMultiDict({"Retry-After": retry_after}))


def pool(clock: Clock, *providers: FakeProvider, **options: Any) -> RpcPool:
    endpoints = [Endpoint(f"rpc{number}", provider) for number, provider in enumerate(providers)]
    return RpcPool(endpoints, CHAIN_ID, patience_s=0.0, clock=clock, **options)


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_the_first_endpoint_is_preferred(clock: Clock) -> None:
    first, second = FakeProvider(FakeChain()), FakeProvider(FakeChain())
    rpc = pool(clock, first, second)
    for _ in range(3):
        await rpc.request(str, "eth_getCode", "0x", "latest")
    assert first.asked["eth_getCode"] == 3
    assert second.asked["eth_getCode"] == 0


@pytest.mark.parametrize(
    "error", [ClientConnectionError(), OSError(), too_many("1"), Refusal("slow down", 429)], ids=repr
)
async def test_an_endpoint_that_fails_is_replaced_and_rests(clock: Clock, error: Exception) -> None:
    first, second = FakeProvider(FakeChain()), FakeProvider(FakeChain())
    rpc = pool(clock, first, second)
    first.fail("eth_getCode", error)
    assert await rpc.request(str, "eth_getCode", "0x", "latest") == "0x"
    await rpc.request(str, "eth_getCode", "0x", "latest")
    assert (first.asked["eth_getCode"], second.asked["eth_getCode"]) == (1, 2)
    clock.now += 1.0
    await rpc.request(str, "eth_getCode", "0x", "latest")
    assert first.asked["eth_getCode"] == 2
    assert first.asked["eth_chainId"] == 2  # it proved its chain again


@pytest.mark.parametrize("kind", [Mute, Garbled])
async def test_no_answer_and_no_json_are_failures(clock: Clock, kind: type[FakeProvider]) -> None:
    rpc = pool(clock, kind(FakeChain()), FakeProvider(FakeChain()), timeout_s=0.05)
    assert await rpc.request(str, "eth_chainId") == hex(CHAIN_ID)


async def test_nobody_waits_for_a_slow_endpoint_that_is_not_preferred(clock: Clock) -> None:
    first, mute = FakeProvider(FakeChain()), Mute(FakeChain())
    rpc = pool(clock, first, mute, timeout_s=30.0, slow_s=0.02)
    async with asyncio.timeout(5):
        assert await rpc.request(str, "eth_blockNumber") == "0x0", "although their heads are compared"
        clock.now += 1
        await rpc.tell("eth_maxPriorityFeePerGas")
        clock.now += 1
        assert await rpc.ask_each(str, "eth_blockNumber") == ["0x0"]
    assert first.asked["eth_maxPriorityFeePerGas"] == 1


async def test_rest_doubles_and_heeds_retry_after(clock: Clock) -> None:
    provider = FakeProvider(FakeChain())
    endpoint = Endpoint("rpc", provider)
    rpc = RpcPool([endpoint], CHAIN_ID, patience_s=0.0, clock=clock)
    rests = []
    for error in (ClientConnectionError(), ClientConnectionError(), ClientConnectionError(), too_many("17")):
        provider.fail("eth_chainId", error)
        with pytest.raises(RpcDown):
            await rpc.request(str, "eth_blockNumber")
        rests.append(endpoint.resume_at - clock.now)
        clock.now = endpoint.resume_at
    assert rests == [0.25, 0.5, 1.0, 17.0]
    await rpc.request(str, "eth_blockNumber")
    assert endpoint.failures == 0


async def test_all_down_is_one_sentence_without_keys(clock: Clock) -> None:
    only = FakeProvider(FakeChain())
    rpc = pool(clock, only)
    only.fail("eth_chainId", ClientConnectionError())
    with pytest.raises(RpcDown, match=r"^no RPC answers \(rpc0\); check rpc_urls and the network$"):
        await rpc.request(str, "eth_blockNumber")


async def test_patience_outlasts_a_short_outage() -> None:
    only = FakeProvider(FakeChain())
    rpc = RpcPool([Endpoint("rpc", only)], CHAIN_ID, patience_s=5.0)
    only.fail("eth_chainId", ClientConnectionError())
    assert await rpc.request(str, "eth_blockNumber") == "0x0"


async def test_an_answer_that_is_an_error_is_the_answer(clock: Clock) -> None:
    first, second = FakeProvider(FakeChain()), FakeProvider(FakeChain())
    rpc = pool(clock, first, second)
    first.fail("eth_getCode", Refusal("bad params", -32602))
    with pytest.raises(RpcError, match="bad params") as raised:
        await rpc.request(str, "eth_getCode", "0x", "latest")
    assert raised.value.code == -32602
    assert second.asked["eth_getCode"] == 0


async def test_too_many_logs_is_an_answer_though_it_has_the_code_of_a_rate_limit(clock: Clock) -> None:
    only = FakeProvider(FakeChain())
    only.fail("eth_getLogs", Refusal("query returned more than 10000 results", -32005))
    with pytest.raises(RpcError, match="more than 10000"):
        await pool(clock, only).request(list, "eth_getLogs", {})


async def test_an_endpoint_on_another_chain_is_never_used(clock: Clock) -> None:
    wrong, right = FakeProvider(OtherChain()), FakeProvider(FakeChain())
    rpc = pool(clock, wrong, right)
    for _ in range(3):
        clock.now += 100
        assert await rpc.request(str, "eth_getCode", "0x", "latest") == "0x"
    assert wrong.asked["eth_getCode"] == 0


async def test_an_endpoint_that_strays_to_another_chain_is_used_again_when_it_is_back(clock: Clock) -> None:
    only = FakeProvider(FakeChain())
    rpc = pool(clock, only)
    await rpc.request(str, "eth_getCode", "0x", "latest")
    home, only.chain = only.chain, OtherChain()
    clock.now += 31
    with pytest.raises(RpcDown):
        await rpc.request(str, "eth_getCode", "0x", "latest")
    only.chain = home
    clock.now += 31
    assert await rpc.request(str, "eth_getCode", "0x", "latest") == "0x"


async def test_only_wrong_chains_is_one_sentence(clock: Clock) -> None:
    with pytest.raises(WrongChain, match=r"^no configured RPC serves chain 31337; check chain_id and rpc_urls$"):
        await pool(clock, FakeProvider(OtherChain())).request(str, "eth_blockNumber")


async def test_an_endpoint_that_is_behind_is_left_out_until_it_has_caught_up(clock: Clock) -> None:
    late, good = FakeProvider(FakeChain()), FakeProvider(FakeChain())
    good.chain.mine(40)
    rpc = pool(clock, late, good)
    assert await rpc.request(str, "eth_blockNumber") == hex(40)
    late.chain.mine(39)
    clock.now += 31
    assert await rpc.request(str, "eth_blockNumber") == hex(39)


async def test_an_endpoint_that_is_behind_is_better_than_none(clock: Clock) -> None:
    late, good = FakeProvider(FakeChain()), FakeProvider(FakeChain())
    good.chain.mine(40)
    rpc = pool(clock, late, good)
    await rpc.request(str, "eth_blockNumber")
    good.fail("eth_blockNumber", ClientConnectionError())
    assert await rpc.request(str, "eth_blockNumber") == hex(0)


async def test_one_liar_among_three_does_not_set_the_measure(clock: Clock) -> None:
    honest, other, liar = (FakeProvider(FakeChain()) for _ in range(3))
    liar.chain.mine(500)
    assert await pool(clock, honest, other, liar).request(str, "eth_blockNumber") == hex(0)


async def test_a_head_of_another_chain_does_not_set_the_measure(clock: Clock) -> None:
    """Of two, neither is to be believed more; the one that was configured first goes on."""
    honest, liar = FakeProvider(FakeChain()), FakeProvider(FakeChain())
    honest.chain.mine()
    liar.chain.mine(500)
    liar.chain.reorg(500)
    assert await pool(clock, honest, liar).request(str, "eth_blockNumber") == hex(1)


async def test_an_endpoint_is_behind_by_its_blocks_time_too(clock: Clock) -> None:
    late, good = FakeProvider(FakeChain()), FakeProvider(FakeChain())
    good.chain.mine(6)
    good.chain.block_s = late.chain.block_s = 12
    assert await pool(clock, late, good).request(str, "eth_blockNumber") == hex(6)


async def test_a_doubted_endpoint_comes_last_until_the_others_are_doubted_too(clock: Clock) -> None:
    first, second = FakeProvider(FakeChain()), FakeProvider(FakeChain())
    rpc = pool(clock, first, second)
    assert rpc.doubt(0)
    assert rpc.doubt(0), "who saw the same has it asked again"
    await rpc.request(str, "eth_getCode", "0x", "latest")
    assert (first.asked["eth_getCode"], second.asked["eth_getCode"]) == (0, 1)
    assert not rpc.doubt(1), "nobody is left to say otherwise"
    clock.now += 61
    assert rpc.doubt(1)
    assert not pool(clock, first).doubt(0)


async def test_an_endpoint_that_does_not_answer_cannot_say_otherwise(clock: Clock) -> None:
    first, second = FakeProvider(FakeChain()), FakeProvider(FakeChain())
    rpc = pool(clock, first, second)
    second.fail("eth_chainId", ClientConnectionError())
    await rpc.request(str, "eth_blockNumber")
    assert not rpc.doubt(0)


async def test_an_endpoint_that_is_behind_cannot_say_otherwise(clock: Clock) -> None:
    first, late = FakeProvider(FakeChain()), FakeProvider(FakeChain())
    first.chain.mine(40)
    rpc = pool(clock, first, late)
    await rpc.request(str, "eth_blockNumber")
    assert not rpc.doubt(0)


@pytest.mark.parametrize("nonsense", [None, 7, [], {}, "latest", "0x", "-0x1", "0x" + "f" * 65])
async def test_an_answer_that_makes_no_sense_is_no_answer(clock: Clock, nonsense: object) -> None:
    class Mad(FakeChain):
        def eth_getBalance(self, address: str, tag: str) -> Any:
            return nonsense

    mad, sane = FakeProvider(Mad()), FakeProvider(FakeChain())
    assert await pool(clock, mad, sane).request(quantity, "eth_getBalance", QUEUE, "latest") == 10**18
    with pytest.raises(RpcDown):
        await pool(clock, mad).request(quantity, "eth_getBalance", QUEUE, "latest")


@pytest.mark.parametrize("field", ["timestamp", "number"])
async def test_a_block_from_beyond_all_time_is_no_answer(clock: Clock, field: str) -> None:
    class Mad(FakeChain):
        def eth_getBlockByNumber(self, tag: str, full: bool) -> dict[str, Any] | None:
            return {**(super().eth_getBlockByNumber(tag, full) or {}), field: "0x" + "f" * 40}

    mad, sane = FakeProvider(Mad()), FakeProvider(FakeChain())
    sane.chain.mine()
    assert (await ChainClient(pool(clock, mad, sane), CHAIN_ID).block("latest")).number == 1


@pytest.mark.parametrize("data", ["0xzzzzzzzz", "0x123456789", "0x" + "é" * 8, {"data": "0x-1234567"}, {"data": 7}, []])
async def test_a_revert_whose_data_makes_no_sense_is_one_without_a_reason(clock: Clock, data: Any) -> None:
    provider = FakeProvider(FakeChain())
    provider.fail("eth_call", Refusal("execution reverted", 3, data))
    with pytest.raises(Reverted, match="without a reason"):
        await ChainClient(pool(clock, provider), CHAIN_ID).call(effect("claim"))


class Confused(FakeChain):
    """Answers for the block before, and for the first transaction that it has."""

    def eth_getBlockByNumber(self, tag: str, full: bool) -> dict[str, Any] | None:
        return super().eth_getBlockByNumber(tag if tag == "latest" else hex(int(tag, 16) - 1), full)

    def eth_getTransactionReceipt(self, tx_hash: str) -> dict[str, Any] | None:
        return super().eth_getTransactionReceipt("0x" + self.blocks[1].txs[0].hash.hex())


async def test_another_block_or_receipt_than_was_asked_for_is_no_answer(clock: Clock) -> None:
    confused, sane = FakeProvider(Confused()), FakeProvider(FakeChain())
    for chain in (confused.chain, sane.chain):
        chain.inject(foreign(0))
        chain.inject(foreign(1))
    second = sane.chain.blocks[2].txs[0].hash
    for ask in (lambda client: client.block(2), lambda client: client.receipt(second)):
        client = ChainClient(pool(clock, confused, sane), CHAIN_ID)
        found = await ask(client)
        assert isinstance(found, TxReceipt | Block)
        assert (found.number if isinstance(found, Block) else found.block.number) == 2
        with pytest.raises(RpcDown):
            await ask(ChainClient(pool(clock, confused), CHAIN_ID))


async def test_an_error_without_a_number_is_an_error(clock: Clock) -> None:
    only = FakeProvider(FakeChain())
    refusal = Refusal("no")
    refusal.answer["code"] = "SERVER_ERROR"
    only.fail("eth_getCode", refusal)
    with pytest.raises(RpcError, match="no"):
        await pool(clock, only).request(str, "eth_getCode", "0x", "latest")


async def test_a_transaction_is_told_to_every_endpoint(clock: Clock) -> None:
    first, second, dead = FakeProvider(FakeChain()), FakeProvider(FakeChain()), FakeProvider(FakeChain())
    dead.fail("eth_chainId", ClientConnectionError(), times=9)
    first.fail("eth_maxPriorityFeePerGas", Refusal("nonce too low"))
    with pytest.raises(RpcError, match="nonce too low"):
        await pool(clock, first, second, dead).tell("eth_maxPriorityFeePerGas")
    assert second.asked["eth_maxPriorityFeePerGas"] == 1


@asynccontextmanager
async def server(answer: Callable[[dict[str, Any]], web.Response]) -> AsyncIterator[RpcPool]:
    """A pool whose only endpoint answers over HTTP as the test says; the chain's id it answers by itself."""

    async def handle(request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["method"] == "eth_chainId":
            return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "result": hex(CHAIN_ID)})
        return answer(asked)

    app = web.Application()
    app.router.add_post("/", handle)
    async with TestServer(app) as running:
        rpc = await RpcPool.open([str(running.make_url("/"))], CHAIN_ID, patience_s=0.1)
        try:
            yield rpc
        finally:
            await rpc.close()


@pytest.mark.parametrize("status", [400, 413])
async def test_an_http_error_that_says_why_is_the_answer(status: int) -> None:
    sentence = "you can make eth_getLogs requests with up to a 10 block range"
    error = {"code": -32600, "message": sentence}
    async with server(lambda asked: web.json_response({"id": asked["id"], "error": error}, status=status)) as rpc:
        with pytest.raises(RpcError, match=sentence):
            await rpc.request(list, "eth_getLogs", {})


@pytest.mark.parametrize(
    "answer",
    [
        lambda asked: web.json_response({"id": asked["id"], "error": {"message": "who are you?"}}, status=401),
        lambda asked: web.Response(text="<html>", status=400),
        lambda asked: web.Response(text="<html>"),
        lambda asked: web.json_response([]),
        lambda asked: web.json_response({"id": asked["id"], "error": None}),
        lambda asked: web.json_response({"id": asked["id"] + 1, "result": "0x1"}),
        lambda asked: web.Response(text="[" * 100_000),
        lambda asked: web.Response(body=b'{"result": "' + bytes(MAX_ANSWER_BYTES)),
    ],
    ids=[
        "refused",
        "HTML and 400",
        "HTML",
        "no object",
        "no result and no error",
        "another request's",
        "deep",
        "large",
    ],
)
async def test_what_is_no_json_rpc_answer_is_none(answer: Callable[[dict[str, Any]], web.Response]) -> None:
    async with server(answer) as rpc:
        with pytest.raises(RpcDown):
            await rpc.request(str, "eth_getCode", "0x", "latest")


async def test_a_certificate_that_is_refused_is_told_of_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    server = TestServer(web.Application())
    await server.start_server(ssl=tls)
    with pytest.raises(RpcDown):
        await ChainClient.connect([f"https://127.0.0.1:{server.port}"], CHAIN_ID, patience_s=0.1)
    await server.close()
    assert "its certificate: self-signed certificate" in caplog.text


async def test_connecting_to_nobody_says_so() -> None:
    with pytest.raises(RpcDown, match=r"no RPC answers \(127\.0\.0\.1:9\)"):
        await ChainClient.connect(["http://user:secret@127.0.0.1:9/key"], CHAIN_ID, patience_s=0.5)
