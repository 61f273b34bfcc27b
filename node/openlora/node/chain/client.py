"""What the agent asks the chain, typed. Reading costs nothing and changes nothing; sending is `chain.sender`'s."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

from openlora.contracts import Call, Deployment, decode_revert
from openlora.node.chain.rpc import RpcPool
from openlora.node.chain.types import Block, Log, SentTransaction, TxReceipt, quantity, to_bytes, to_hex
from openlora.node.errors import ChainError, Reverted, RpcBehind, RpcError, WrongChain
from openlora.node.job import BlockRef, Wei

T = TypeVar("T")

REVERT_DATA = re.compile("0x(?:[0-9a-fA-F]{2}){4,}")


class ChainClient:
    """One chain through one or more RPC endpoints. Every method raises RpcDown when none of them answers, and RpcError
    when one answers with an error that says nothing else."""

    def __init__(self, pool: RpcPool, chain_id: int) -> None:
        self._pool = pool
        self.chain_id = chain_id

    @classmethod
    async def connect(
        cls, rpc_urls: Sequence[str], chain_id: int, deployment: Deployment | None = None, *, patience_s: float = 20.0
    ) -> Self:
        """Every request gives the endpoints `patience_s` together before RpcDown. Raises RpcDown when none answers,
        WrongChain when those that do serve another chain or the deployment is on another one, and ChainError when the
        chain has no job queue where the deployment says."""
        if deployment is not None and deployment.chain_id != chain_id:
            raise WrongChain(f"the deployment is on chain {deployment.chain_id}, not {chain_id}; check chain_id")
        client = cls(await RpcPool.open(rpc_urls, chain_id, patience_s=patience_s), chain_id)
        try:
            await client.block("latest")
            if deployment is not None and not await client.code(deployment.job_queue):
                address = deployment.job_queue
                raise ChainError(f"chain {chain_id} has no job queue at {address}; check the deployment file")
        except BaseException:
            await client.close()
            raise
        return client

    async def close(self) -> None:
        await self._pool.close()

    @property
    def doubts(self) -> int:
        return self._pool.doubts

    def doubt(self, doubts: int) -> bool:
        """What was shown since `self.doubts` was `doubts` contradicts what we know: asks another server first from now
        on. False if there is none left to ask."""
        return self._pool.doubt(doubts)

    # ---- contracts ------------------------------------------------------------------------------------------------

    async def call(self, call: Call[T], *, block: int | str = "latest", sender: str | None = None) -> T:
        """What `call` returns, at a block, changing nothing. Raises Reverted with the contract's reason."""
        try:
            raw = await self._pool.request(to_bytes, "eth_call", _transaction(call.to, call.data, sender), _tag(block))
        except RpcError as error:
            raise _reverted(call.name, error) from None
        try:
            return call.decode(raw)
        except ValueError:  # AbiMismatch, or a number that is none of an enum's
            raise ChainError(
                f"{call.name}: {call.to} answered with nothing that fits; check the deployment file"
            ) from None

    async def estimate_gas(self, to: str | None, data: bytes, sender: str, *, name: str, value: int = 0) -> int:
        """Gas that the transaction would use now; `to` None creates a contract. Raises Reverted if it would revert."""
        try:
            return await self._pool.request(quantity, "eth_estimateGas", _transaction(to, data, sender, value))
        except RpcError as error:
            raise _reverted(name, error) from None

    async def code(self, address: str) -> bytes:
        return await self._pool.request(to_bytes, "eth_getCode", address, "latest")

    # ---- blocks and logs ------------------------------------------------------------------------------------------

    async def block(self, number: int | str) -> Block:
        """By number or tag. Raises RpcBehind when the server has no such block yet."""
        found = await self.find_block(number)
        if found is None:
            raise RpcBehind(f"the RPC has no block {number} yet")
        return found

    async def find_block(self, number: int | str) -> Block | None:
        asked = _if_any(lambda raw: _block(raw, number))
        return await self._pool.request(asked, "eth_getBlockByNumber", _tag(number), False)

    async def logs(
        self, addresses: Sequence[str], first: int, last: int, topics: Sequence[bytes | None] = ()
    ) -> list[Log]:
        """Logs of blocks first..last, in order, with these topics where they are not None. Raises RpcError when the
        server finds the range too large."""
        wanted = [None if topic is None else to_hex(topic) for topic in topics]
        query = {"address": list(addresses), "fromBlock": hex(first), "toBlock": hex(last), "topics": wanted}
        asked = range(first, last + 1)
        return await self._pool.request(lambda raw: _in_order(raw, asked), "eth_getLogs", query)

    async def block_logs(self, addresses: Sequence[str], block: BlockRef) -> list[Log]:
        """Logs of exactly the block with this hash (EIP-234), in order. Raises RpcError when the server lacks it."""
        query = {"address": list(addresses), "blockHash": to_hex(block.hash)}
        asked = range(block.number, block.number + 1)
        return await self._pool.request(lambda raw: _in_order(raw, asked, block.hash), "eth_getLogs", query)

    async def logs_of_each(self, addresses: Sequence[str], first: int, last: int) -> list[list[Log]]:
        """Logs of blocks first..last as each server shows them that answers, the preferred one's first."""
        query = {"address": list(addresses), "fromBlock": hex(first), "toBlock": hex(last)}
        asked = range(first, last + 1)
        return await self._pool.ask_each(lambda raw: _in_order(raw, asked), "eth_getLogs", query)

    # ---- accounts and transactions --------------------------------------------------------------------------------

    async def balance(self, address: str) -> Wei:
        return Wei(await self._pool.request(quantity, "eth_getBalance", address, "latest"))

    async def set_dev_balance(self, address: str, wei: int) -> None:
        """Play money, which anvil alone gives: any other server answers with RpcError."""
        await self._pool.request(lambda _: None, "anvil_setBalance", address, hex(wei))

    async def nonce(self, address: str, block: int | str = "latest") -> int:
        """Transactions of `address` mined up to `block`, its next nonce; with "pending", the server's pool included."""
        return await self._pool.request(quantity, "eth_getTransactionCount", address, _tag(block))

    async def suggested_tip(self) -> Wei:
        """Priority fee per gas that the server suggests."""
        return Wei(await self._pool.request(quantity, "eth_maxPriorityFeePerGas"))

    async def send_raw(self, raw: bytes) -> None:
        """Hands signed bytes to every server, for one may keep them to itself. An error does not prove that they will
        not be mined: look at the chain."""
        await self._pool.tell("eth_sendRawTransaction", to_hex(raw))

    async def receipt(self, tx_hash: bytes) -> TxReceipt | None:
        """None while the transaction is in no block that the server knows."""
        asked = _if_any(lambda raw: _receipt(raw, tx_hash))
        return await self._pool.request(asked, "eth_getTransactionReceipt", to_hex(tx_hash))

    async def transaction_with(self, sender: str, nonce: int, head: int) -> SentTransaction | None:
        """The mined transaction of `sender` with this nonce, found by bisecting its nonce over the blocks up to `head`;
        None when there is none. Raises RpcError when the server has forgotten the states that it takes."""
        if await self.nonce(sender, head) <= nonce:
            return None
        high, step = head, 1  # the nonce is used at block `high` …
        while high > step and await self.nonce(sender, high - step) > nonce:
            high, step = high - step, step * 2
        low = max(0, high - step)  # … and is not yet at block `low`
        while high - low > 1:
            middle = (low + high) // 2
            if await self.nonce(sender, middle) > nonce:
                high = middle
            else:
                low = middle
        sent = _if_any(lambda raw: _sent_by(sender.lower(), nonce, raw))
        return await self._pool.request(sent, "eth_getBlockByNumber", hex(high), True)


def _transaction(to: str | None, data: bytes, sender: str | None, value: int = 0) -> dict[str, str]:
    fields = {"data": to_hex(data)}
    if to is not None:
        fields["to"] = to
    if sender is not None:
        fields["from"] = sender
    if value:
        fields["value"] = hex(value)
    return fields


def _tag(block: int | str) -> str:
    return block if isinstance(block, str) else hex(block)


def _if_any(decode: Callable[[Any], T]) -> Callable[[Any], T | None]:
    return lambda raw: None if raw is None else decode(raw)


def _in_order(raw: list[dict[str, Any]], blocks: range, digest: bytes | None = None) -> list[Log]:
    """Each log once. Raises ValueError where the server shows logs that were not asked for."""
    found: dict[tuple[int, int], Log] = {}
    for log in (Log.from_rpc(entry) for entry in raw if not entry.get("removed")):
        same = found.setdefault((log.block.number, log.index), log) == log
        if not same or log.block.number not in blocks or digest not in (None, log.block.hash):
            raise ValueError("logs of other blocks")
    return [log for _, log in sorted(found.items())]


def _block(raw: dict[str, Any], asked: int | str) -> Block:
    """Raises ValueError for another one than was asked for by its number."""
    block = Block.from_rpc(raw)
    if isinstance(asked, int) and block.number != asked:
        raise ValueError("another block")
    return block


def _receipt(raw: dict[str, Any], tx_hash: bytes) -> TxReceipt | None:
    """Raises ValueError for another transaction's."""
    if not raw.get("blockNumber"):  # pending, on some servers
        return None
    receipt = TxReceipt.from_rpc(raw)
    if receipt.tx_hash != tx_hash:
        raise ValueError("another transaction's receipt")
    return receipt


def _sent_by(sender: str, nonce: int, raw: dict[str, Any]) -> SentTransaction | None:
    """The transaction among a block's."""
    for transaction in raw["transactions"]:
        if transaction["from"].lower() == sender and quantity(transaction["nonce"]) == nonce:
            to = transaction["to"].lower() if transaction.get("to") else None
            return SentTransaction(to_bytes(transaction["hash"]), nonce, to, Block.from_rpc(raw).ref)
    return None


def _reverted(name: str, error: RpcError) -> ChainError:
    """A revert as Reverted with the contract's own reason; anything else as it is."""
    data = error.data.get("data") if isinstance(error.data, dict) else error.data
    if isinstance(data, str) and REVERT_DATA.fullmatch(data):
        reason = decode_revert(to_bytes(data))
        return Reverted(reason.name, f"{name}: {reason.sentence}")
    if error.code == 3 or "revert" in str(error).lower():
        return Reverted("", f"{name} reverted without a reason")
    return error
