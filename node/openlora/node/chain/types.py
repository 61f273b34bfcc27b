"""What JSON-RPC answers, decoded once. Hashes and data are bytes, quantities are ints, addresses lower-case hex."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from openlora.node.job import BlockRef, Wei


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
        base_fee = Wei(int(raw.get("baseFeePerGas") or "0x0", 16))
        parent, timestamp = to_bytes(raw["parentHash"]), int(raw["timestamp"], 16)
        return cls(int(raw["number"], 16), to_bytes(raw["hash"]), parent, timestamp, base_fee)


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
            block=BlockRef(int(raw["blockNumber"], 16), to_bytes(raw["blockHash"])),
            tx_hash=to_bytes(raw["transactionHash"]),
            index=int(raw["logIndex"], 16),
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
        return cls(
            tx_hash=to_bytes(raw["transactionHash"]),
            block=BlockRef(int(raw["blockNumber"], 16), to_bytes(raw["blockHash"])),
            succeeded=int(raw["status"], 16) == 1,
            gas_used=int(raw["gasUsed"], 16),
            gas_price_wei=Wei(int(raw.get("effectiveGasPrice") or "0x0", 16)),
            contract_address=created.lower() if created else None,
            logs=tuple(Log.from_rpc(log) for log in raw["logs"]),
        )


@dataclass(frozen=True, slots=True)
class SentTransaction:
    """A transaction found in a block, by whoever signed it."""

    hash: bytes
    nonce: int
    to: str | None  # None creates a contract
    block: BlockRef


def to_bytes(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def to_hex(data: bytes) -> str:
    return "0x" + data.hex()
