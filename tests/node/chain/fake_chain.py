"""A chain in memory behind web3's provider interface: blocks, a pool with its rules, logs, reorganisations, faults.

Contracts here do one thing: calldata that is mined is an *effect*, counted, unless it is in `reverting`. So a
transaction sent twice is an effect twice, and no contract's own check hides it.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from eth_account import Account
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from hexbytes import HexBytes
from web3.providers import AsyncBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from openlora.contracts import Call

CHAIN_ID = 31337
QUEUE = "0x" + "aa" * 20
ELSEWHERE = "0x" + "ee" * 20
GWEI = 10**9
WRONG_STATE = keccak(text="WrongState(uint64,uint8)")[:4] + (17).to_bytes(32, "big") + (2).to_bytes(32, "big")


class Crash(BaseException):
    """The process ends here."""


class Refusal(Exception):
    """A JSON-RPC error answer."""

    def __init__(self, message: str, code: int = -32000, data: str | None = None) -> None:
        super().__init__(message)
        self.answer = {"code": code, "message": message} | ({} if data is None else {"data": data})


@dataclass(frozen=True, slots=True)
class Tx:
    hash: bytes
    sender: str
    nonce: int
    to: str
    data: bytes
    gas: int
    max_fee: int
    tip: int


@dataclass(slots=True)
class FakeLog:
    topics: tuple[bytes, ...]
    data: bytes
    address: str = QUEUE


@dataclass(slots=True)
class FakeBlock:
    number: int
    hash: bytes
    parent: bytes
    txs: list[Tx] = field(default_factory=list)
    logs: list[FakeLog] = field(default_factory=list)


class FakeChain:
    """`automine` mines every accepted transaction at once."""

    def __init__(self, *, automine: bool = False) -> None:
        self.automine = automine
        self.base_fee = self.tip = GWEI
        self.block_s = 1
        self.balance = 10**18
        self.reverting: set[bytes] = set()  # calldata
        self.too_early: set[bytes] = set()  # calldata that reverts where the server's latest block is an older one
        self.estimate = 60_000  # gas, of everything
        self.needs: dict[bytes, int] = {}  # gas, by calldata; with less it fails
        self.forgotten = -1  # states up to this block are pruned
        self.pool: dict[tuple[str, int], Tx] = {}
        self.blocks = [FakeBlock(0, _hash("genesis"), bytes(32))]
        self._forks = 0
        self._parsed: dict[str, Tx] = {}

    # ---- what tests do ----------------------------------------------------------------------------------------------

    @property
    def head(self) -> FakeBlock:
        return self.blocks[-1]

    def mine(self, count: int = 1, logs: Sequence[FakeLog] = (), *, full: bool = False) -> None:
        """Blocks with what is executable in the pool, or with others' transactions alone; `logs` go into the first."""
        for index in range(count):
            number = self.head.number + 1
            block = FakeBlock(number, _hash(f"{number}.{self._forks}.{self.head.hash.hex()}"), self.head.hash)
            block.logs = [*logs] if index == 0 else []
            self.blocks.append(block)
            used = self._nonces(number - 1)
            pool = {} if full else self.pool
            while ready := [tx for tx in pool.values() if tx.nonce == used[tx.sender] and self._pays(tx)]:
                for tx in ready:
                    del pool[tx.sender, tx.nonce]
                    block.txs.append(tx)
                    used[tx.sender] += 1

    def reorg(self, depth: int, *, longer_by: int = 1, keep: bool = False) -> None:
        """The last `depth` blocks are replaced by empty ones, and by `longer_by` more. Their transactions vanish, as
        anvil's do, or go back to the pool if `keep`."""
        kept = len(self.blocks) - depth
        dropped, self.blocks = self.blocks[kept:], self.blocks[:kept]
        self._forks += 1
        pooled, self.pool = self.pool, {}
        self.mine(depth + longer_by)
        self.pool = {(tx.sender, tx.nonce): tx for block in dropped for tx in block.txs if keep} | pooled

    def inject(self, raw: bytes) -> None:
        """Mines one transaction ahead of whatever the pool has under its nonce."""
        tx = self._parse("0x" + raw.hex())
        self.pool[tx.sender, tx.nonce] = tx
        self.mine()

    def effects(self) -> Counter[bytes]:
        """How often each calldata was executed on the canonical chain."""
        mined = [tx for block in self.blocks for tx in block.txs]
        return Counter(tx.data for tx in mined if not self._fails(tx))

    # ---- JSON-RPC ---------------------------------------------------------------------------------------------------

    def answer(self, method: str, params: list[Any]) -> Any:
        handler: Callable[..., Any] = getattr(self, method)
        return handler(*params)

    def eth_chainId(self) -> str:
        return hex(CHAIN_ID)

    def eth_blockNumber(self) -> str:
        return hex(self.head.number)

    def eth_getBlockByNumber(self, tag: str, full: bool) -> dict[str, Any] | None:
        number = self.head.number if tag == "latest" else int(tag, 16)
        if number > self.head.number:
            return None
        block = self.blocks[number]
        txs: list[Any] = ["0x" + tx.hash.hex() for tx in block.txs]
        if full:
            txs = [
                {"hash": "0x" + tx.hash.hex(), "from": tx.sender, "to": tx.to, "nonce": hex(tx.nonce)}
                for tx in block.txs
            ]
        return {
            "number": hex(number),
            "hash": "0x" + block.hash.hex(),
            "parentHash": "0x" + block.parent.hex(),
            "timestamp": hex(1_700_000_000 + number * self.block_s),
            "baseFeePerGas": hex(self.base_fee),
            "transactions": txs,
        }

    def eth_getLogs(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        if "blockHash" in query:
            chosen = [block for block in self.blocks if "0x" + block.hash.hex() == query["blockHash"]]
            if not chosen:
                raise Refusal("unknown block")
        else:
            first, last = int(query["fromBlock"], 16), int(query["toBlock"], 16)
            chosen = self.blocks[first : last + 1]
        found = []
        for block in chosen:
            for index, log in enumerate(block.logs):
                if log.address in query["address"]:
                    found.append(_log(block, log, index))
        return found

    def eth_getTransactionCount(self, address: str, tag: str) -> str:
        if tag == "pending":
            nonce = self._nonces(self.head.number)[address.lower()]
            while (address.lower(), nonce) in self.pool:
                nonce += 1
            return hex(nonce)
        number = self.head.number if tag == "latest" else int(tag, 16)
        if number > self.head.number:
            raise Refusal("unknown block", -32001)
        if number <= self.forgotten:
            raise Refusal("missing trie node")
        return hex(self._nonces(number)[address.lower()])

    def eth_getBalance(self, address: str, tag: str) -> str:
        return hex(self.balance)

    def eth_getCode(self, address: str, tag: str) -> str:
        return "0x60" if address.lower() == QUEUE else "0x"

    def eth_maxPriorityFeePerGas(self) -> str:
        return hex(self.tip)

    def eth_call(self, transaction: dict[str, str], tag: str) -> str:
        data = bytes.fromhex(transaction["data"][2:])
        if data in self.reverting or (tag == "latest" and data in self.too_early):
            raise Refusal("execution reverted", 3, "0x" + WRONG_STATE.hex())
        return "0x"

    def eth_estimateGas(self, transaction: dict[str, str]) -> str:
        self.eth_call(transaction, "latest")
        return hex(self.estimate)

    def eth_sendRawTransaction(self, raw: str) -> str:
        tx = self._parse(raw)
        if tx.nonce < self._nonces(self.head.number)[tx.sender]:
            raise Refusal(f"nonce too low: next nonce {tx.nonce + 1}")
        rival = self.pool.get((tx.sender, tx.nonce))
        if rival == tx:
            raise Refusal("already known")
        if rival is not None and (tx.max_fee * 10 < rival.max_fee * 11 or tx.tip * 10 < rival.tip * 11):
            raise Refusal("replacement transaction underpriced")
        if self.balance < tx.gas * tx.max_fee:
            raise Refusal("insufficient funds for gas * price + value")
        self.pool[tx.sender, tx.nonce] = tx
        if self.automine:
            self.mine()
        return "0x" + tx.hash.hex()

    def eth_getTransactionReceipt(self, tx_hash: str) -> dict[str, Any] | None:
        for block in self.blocks:
            for tx in block.txs:
                if "0x" + tx.hash.hex() == tx_hash:
                    return {
                        "transactionHash": tx_hash,
                        "blockNumber": hex(block.number),
                        "blockHash": "0x" + block.hash.hex(),
                        "status": "0x0" if self._fails(tx) else "0x1",
                        "gasUsed": hex(min(tx.gas, self.needs.get(tx.data, 50_000))),
                        "effectiveGasPrice": hex(self.base_fee + tx.tip),
                        "contractAddress": None,
                        "logs": [],
                    }
        return None

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _nonces(self, number: int) -> Counter[str]:
        return Counter(tx.sender for block in self.blocks[: number + 1] for tx in block.txs)

    def _fails(self, tx: Tx) -> bool:
        return tx.data in self.reverting or tx.gas < self.needs.get(tx.data, 0)

    def _pays(self, tx: Tx) -> bool:
        return tx.max_fee >= self.base_fee

    def _parse(self, raw: str) -> Tx:
        if raw not in self._parsed:
            fields = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
            self._parsed[raw] = Tx(
                hash=keccak(bytes.fromhex(raw[2:])),
                sender=str(Account.recover_transaction(raw)).lower(),
                nonce=cast(int, fields["nonce"]),
                to="0x" + bytes(cast(bytes, fields["to"])).hex(),
                data=bytes(cast(bytes, fields["data"])),
                gas=cast(int, fields["gas"]),
                max_fee=cast(int, fields["maxFeePerGas"]),
                tip=cast(int, fields["maxPriorityFeePerGas"]),
            )
        return self._parsed[raw]


class FakeProvider(AsyncBaseProvider):
    """One process's connection to the chain. `faults` are consumed by the requests they name, `crash_in` counts down
    requests to the process's end, `meanwhile` happens after so many requests; `alive` False ends every request."""

    def __init__(self, chain: FakeChain) -> None:
        super().__init__()
        self.chain = chain
        self.alive = True
        self.crash_in: int | None = None
        self.crash_after = False  # the request reaches the chain, its answer nobody
        self.faults: list[tuple[str, Exception, bool]] = []  # method, error, and whether the request got through
        self.meanwhile: tuple[int, Callable[[], None]] | None = None
        self.asked: Counter[str] = Counter()

    def fail(self, method: str, error: Exception, *, times: int = 1, got_through: bool = False) -> None:
        self.faults += [(method, error, got_through)] * times

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        await asyncio.sleep(0)  # every request is a place where other tasks run
        self._count_down(after=False)
        self._let_things_happen()
        self.asked[method] += 1
        fault = next((fault for fault in self.faults if fault[0] == method), None)
        if fault is not None:
            self.faults.remove(fault)
            if fault[2]:
                self.chain.answer(method, params)
            return _refuse(fault[1])
        try:
            result = self.chain.answer(method, params)
        except Refusal as refusal:
            return _refuse(refusal)
        self._count_down(after=True)
        return cast(RPCResponse, {"jsonrpc": "2.0", "id": 1, "result": result})

    async def disconnect(self) -> None:
        self.alive = False

    def _let_things_happen(self) -> None:
        if self.meanwhile is not None:
            requests, happen = self.meanwhile
            self.meanwhile = (requests - 1, happen) if requests else None
            if not requests:
                happen()

    def _count_down(self, *, after: bool) -> None:
        if self.crash_in is not None and after == self.crash_after:
            self.crash_in -= 1
            if self.crash_in < 0:
                self.alive = False
        if not self.alive:
            raise Crash


def _refuse(error: Exception) -> RPCResponse:
    if not isinstance(error, Refusal):
        raise error
    return cast(RPCResponse, {"jsonrpc": "2.0", "id": 1, "error": error.answer})


def effect(name: str) -> Call[None]:
    """A call of the market's queue, told apart by its calldata."""
    return Call(to_checksum_address(QUEUE), name.encode(), f"JobQueue.{name}", lambda _: None)


def _log(block: FakeBlock, log: FakeLog, index: int) -> dict[str, Any]:
    return {
        "address": log.address,
        "topics": ["0x" + topic.hex() for topic in log.topics],
        "data": "0x" + log.data.hex(),
        "blockNumber": hex(block.number),
        "blockHash": "0x" + block.hash.hex(),
        "transactionHash": "0x" + "00" * 32,
        "logIndex": hex(index),
    }


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
