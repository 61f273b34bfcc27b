"""EIP-1559 transactions: what they may cost, and their signed bytes."""

import asyncio
from dataclasses import dataclass
from typing import Any

from eth_account.signers.local import LocalAccount
from eth_typing import HexStr
from eth_utils.address import to_checksum_address

from openlora.node.chain.client import ChainClient
from openlora.node.errors import GasTooDear
from openlora.node.job import Wei

GWEI = 10**9
GAS_MARGIN = 1.5
SPARED_BUMPS = 3  # that a suggested tip leaves room for: pools take no dearer transaction without a dearer tip
MAX_GAS = 1 << 24  # of a transaction (EIP-7825): one with more is never mined, and all later nonces wait behind it


def gas_limit_of(estimate: int) -> int:
    """What to allow a transaction whose run would use `estimate` gas now. Others' transactions may empty a slot that
    both write before it is mined, which makes it dearer by 17,100 gas; what is not used is not paid."""
    return int(estimate * GAS_MARGIN)


@dataclass(frozen=True, slots=True)
class Fees:
    """Per gas. The sender pays min(max_fee, base fee + tip)."""

    max_fee_wei: Wei
    tip_wei: Wei


@dataclass(frozen=True, slots=True)
class FeePolicy:
    """Bids twice the base fee plus the suggested tip, which holds through five full blocks, and never above the caps:
    a server's suggestion is no reason to give away the purse. It is followed to 0.7 of the tip's cap."""

    cap_wei: int = 500 * GWEI  # per gas, all included
    tip_cap_wei: int = 50 * GWEI

    async def quote(self, client: ChainClient) -> Fees:
        """Raises GasTooDear when the present base fee leaves no room under the cap."""
        block, suggested = await asyncio.gather(client.block("latest"), client.suggested_tip())
        base, tip = block.base_fee_wei, max(1, min(suggested, self.tip_cap_wei * 8**SPARED_BUMPS // 9**SPARED_BUMPS))
        if base + tip > self.cap_wei:
            needed, cap = (base + tip) / GWEI, self.cap_wei / GWEI
            raise GasTooDear(f"gas costs {needed:.3f} gwei, and chain.max_gas_gwei is {cap:.3f}; wait, or raise it")
        return Fees(Wei(min(2 * base + tip, self.cap_wei)), Wei(tip))

    def bump(self, old: Fees, fresh: Fees) -> Fees | None:
        """Fees that replace `old` in every pool: at least 12.5 % more of both. None when a cap forbids it."""
        max_fee = max(fresh.max_fee_wei, _more(old.max_fee_wei))
        tip = max(fresh.tip_wei, _more(old.tip_wei))
        if max_fee > self.cap_wei or tip > self.tip_cap_wei:
            return None
        return Fees(Wei(max_fee), Wei(tip))


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    hash: bytes
    nonce: int
    raw: bytes
    fees: Fees


def sign(
    account: LocalAccount,
    chain_id: int,
    *,
    to: str | None,
    data: bytes,
    nonce: int,
    gas_limit: int,
    fees: Fees,
    value: int = 0,
) -> SignedTransaction:
    """Deterministic (RFC 6979): the same fields give the same bytes. Takes 0.5 ms, so it runs on the event loop."""
    fields: dict[str, Any] = {
        "type": 2,
        "chainId": chain_id,
        "nonce": nonce,
        "to": to_checksum_address(HexStr(to)) if to else b"",
        "value": value,
        "data": data,
        "gas": gas_limit,
        "maxFeePerGas": fees.max_fee_wei,
        "maxPriorityFeePerGas": fees.tip_wei,
    }
    signed = account.sign_transaction(fields)
    return SignedTransaction(bytes(signed.hash), nonce, bytes(signed.raw_transaction), fees)


def _more(fee_wei: int) -> int:
    return -(-fee_wei * 9 // 8)
