"""What JSON-RPC answers, decoded once. Hashes and data are bytes, quantities are ints, addresses lower-case hex.

What is no answer of a chain raises LookupError, TypeError, ValueError or AttributeError.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from openlora.node.job import BlockRef, Wei

QUANTITY: Final = re.compile("0x[0-9a-fA-F]{1,64}")
HASH_BYTES: Final = 32
MAX_TIMESTAMP: Final = 1 << 40
MAX_STORED: Final = (1 << 63) - 1  # of a number that the journal keeps


@dataclass(frozen=True, slots=True)
class Block:
    number: int
    hash: bytes
    parent_hash: bytes
    timestamp: int  # unix seconds
    base_fee_wei: Wei  # per gas; 0 on chains without EIP-1559

    @property
    def ref(self) -> BlockRef:
        return BlockRef(self.number, self.hash)

    @classmethod
    def from_rpc(cls, raw: Mapping[str, Any]) -> Self:
        base_fee = Wei(quantity(raw.get("baseFeePerGas") or "0x0"))
        parent, timestamp = to_bytes(raw["parentHash"], HASH_BYTES), quantity(raw["timestamp"])
        block = _block_ref(raw["number"], raw["hash"])
        if timestamp > MAX_TIMESTAMP:
            raise ValueError("a time that no chain has reached")
        return cls(block.number, block.hash, parent, timestamp, base_fee)


@dataclass(frozen=True, slots=True)
class Log:
    address: str
    topics: tuple[bytes, ...]
    data: bytes
    block: BlockRef
    tx_hash: bytes
    index: int  # within the block

    @classmethod
    def from_rpc(cls, raw: Mapping[str, Any]) -> Self:
        return cls(
            address=raw["address"].lower(),
            topics=tuple(to_bytes(topic) for topic in raw["topics"]),
            data=to_bytes(raw["data"]),
            block=_block_ref(raw["blockNumber"], raw["blockHash"]),
            tx_hash=to_bytes(raw["transactionHash"], HASH_BYTES),
            index=quantity(raw["logIndex"]),
        )


@dataclass(frozen=True, slots=True)
class TxReceipt:
    """A mined transaction. `succeeded` is False when it reverted: its gas was paid and nothing else happened."""

    tx_hash: bytes
    block: BlockRef
    succeeded: bool
    gas_used: int
    gas_price_wei: Wei  # paid per gas
    contract_address: str | None  # of a creation
    logs: tuple[Log, ...]

    @property
    def cost_wei(self) -> Wei:
        return Wei(self.gas_used * self.gas_price_wei)

    @classmethod
    def from_rpc(cls, raw: Mapping[str, Any]) -> Self:
        created = raw.get("contractAddress")
        receipt = cls(
            tx_hash=to_bytes(raw["transactionHash"], HASH_BYTES),
            block=_block_ref(raw["blockNumber"], raw["blockHash"]),
            succeeded=quantity(raw["status"]) == 1,
            gas_used=quantity(raw["gasUsed"]),
            gas_price_wei=Wei(quantity(raw.get("effectiveGasPrice") or "0x0")),
            contract_address=created.lower() if created else None,
            logs=tuple(Log.from_rpc(log) for log in raw["logs"]),
        )
        if receipt.cost_wei > MAX_STORED:
            raise ValueError("a cost that no chain asks for")
        return receipt


@dataclass(frozen=True, slots=True)
class SentTransaction:
    """A transaction found in a block, by whoever signed it."""

    hash: bytes
    nonce: int
    to: str | None  # None creates a contract
    block: BlockRef


def _block_ref(number: str, digest: str) -> BlockRef:
    block = BlockRef(quantity(number), to_bytes(digest, HASH_BYTES))
    if block.number > MAX_STORED:
        raise ValueError("a block number that no chain has reached")
    return block


def quantity(text: str) -> int:
    """A number as JSON-RPC writes it."""
    if not QUANTITY.fullmatch(text):
        raise ValueError("no quantity")
    return int(text, 16)


def to_bytes(text: str, length: int | None = None) -> bytes:
    data = bytes.fromhex(text.removeprefix("0x"))
    if length is not None and len(data) != length:
        raise ValueError(f"{len(data)} bytes instead of {length}")
    return data


def to_hex(data: bytes) -> str:
    return "0x" + data.hex()
