"""One-off transactions of people: command-line verbs and deployments. No journal: a person sees what happened."""

import asyncio
from contextlib import suppress
from typing import Any

from eth_account.signers.local import LocalAccount

from openlora.contracts import Call
from openlora.node.chain.client import ChainClient
from openlora.node.chain.transaction import FeePolicy, SignedTransaction, gas_limit_of, sign
from openlora.node.chain.types import TxReceipt, to_hex
from openlora.node.errors import ChainError, Reverted, RpcDown, RpcError

POLL_S = 0.2
RESEND_EVERY = 50  # polls


async def transact(
    client: ChainClient, account: LocalAccount, call: Call[Any], *, timeout_s: float = 120.0
) -> TxReceipt:
    """Sends `call` from `account` and waits until it is mined.

    Raises Reverted, before anything is signed if it would revert now; ChainError naming the transaction when it is not
    mined in time, for it may be later.
    """
    await client.call(call, sender=account.address)  # reverts with a better reason than an estimate gives
    return await _send(client, account, call.to, call.data, call.name, 0, timeout_s)


async def create(
    client: ChainClient, account: LocalAccount, data: bytes, name: str, *, timeout_s: float = 120.0
) -> TxReceipt:
    """Creates a contract from its creation code and arguments; the receipt has its address. Raises as `transact`."""
    return await _send(client, account, None, data, name, 0, timeout_s)


async def transfer(
    client: ChainClient, account: LocalAccount, to: str, value_wei: int, *, timeout_s: float = 120.0
) -> TxReceipt:
    """Sends coin. Raises as `transact`."""
    return await _send(client, account, to, b"", "transfer", value_wei, timeout_s)


async def _send(
    client: ChainClient, account: LocalAccount, to: str | None, data: bytes, name: str, value_wei: int, timeout_s: float
) -> TxReceipt:
    estimate = await client.estimate_gas(to, data, account.address, name=name, value=value_wei)
    fees = await FeePolicy().quote(client)
    nonce = await client.nonce(account.address, "pending")
    gas_limit = gas_limit_of(estimate)
    signed = sign(
        account, client.chain_id, to=to, data=data, nonce=nonce, gas_limit=gas_limit, fees=fees, value=value_wei
    )
    await _hand_over(client, account, signed, name)
    try:
        async with asyncio.timeout(timeout_s):
            receipt = await _until_mined(client, signed)
    except TimeoutError:
        raise ChainError(
            f"{name}: {to_hex(signed.hash)} is not mined after {timeout_s:g} s; look for it before repeating"
        ) from None
    if not receipt.succeeded:
        raise Reverted("", f"{name} reverted on chain in transaction {to_hex(signed.hash)}")
    return receipt


async def _hand_over(client: ChainClient, account: LocalAccount, signed: SignedTransaction, name: str) -> None:
    """A server that gave no answer, or knows the transaction already, may have it: a person must not send another."""
    try:
        await client.send_raw(signed.raw)
    except RpcError:
        if await client.nonce(account.address, "pending") <= signed.nonce:
            raise
    except RpcDown as error:
        raise RpcDown(
            f"{name}: {to_hex(signed.hash)} may be under way: look for it before repeating; {error}"
        ) from None


async def _until_mined(client: ChainClient, signed: SignedTransaction) -> TxReceipt:
    """Pools forget transactions, and reorganisations drop them: the same bytes go again now and then."""
    while True:
        for _ in range(RESEND_EVERY):
            receipt = await client.receipt(signed.hash)
            if receipt is not None:
                return receipt
            await asyncio.sleep(POLL_S)
        with suppress(RpcError):  # known already, mostly
            await client.send_raw(signed.raw)
