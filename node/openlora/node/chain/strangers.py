"""Transactions of the hot key that this agent did not send: harmless ones are survived, others end the signing."""

import logging
from collections.abc import Mapping

from openlora.node.chain.client import ChainClient
from openlora.node.chain.outbox import Outbox
from openlora.node.chain.types import SentTransaction, to_hex
from openlora.node.errors import JournalError, RpcBehind, RpcError

log = logging.getLogger(__name__)

PATIENCE_TICKS = 10  # with a server whose answers contradict each other, before another is asked or the signing stops


class Strangers:
    """Looks for them on chain, and records what it finds in the outbox. `contracts`: those that nobody but this agent
    may call with the hot key, name → address."""

    def __init__(self, client: ChainClient, outbox: Outbox, address: str, contracts: Mapping[str, str]) -> None:
        self._client = client
        self._outbox = outbox
        self._address = address
        self._contracts = {contract.lower(): name for name, contract in contracts.items()}
        self._unexplained = 0  # looks in a row that found a nonce used and not by which transaction

    async def find(self, used: int, head: int) -> None:
        """Those that used nonces beyond all of ours, of which the chain has seen `used` at block `head`. Raises
        JournalError as `judge`, and RpcBehind, or after `PATIENCE_TICKS` looks JournalError, where the RPC does not
        show one."""
        for nonce in range(self._outbox.next_nonce(), used):
            try:
                sent = await self._client.transaction_with(self._address, nonce, head)
            except RpcError:
                sent = None
            if sent is None:
                raise self._not_explained(nonce)
            self.judge(sent)
        self._unexplained = 0

    def judge(self, sent: SentTransaction) -> None:
        """Records it. Raises JournalError if it called our contracts."""
        if sent.to in self._contracts:
            raise JournalError(
                f"transaction {to_hex(sent.hash)} called {self._contracts[sent.to]} with the hot key and is not in this"
                " journal: another agent uses the key, or the journal is an old copy; stop the one, restore the other"
            )
        log.warning("event=foreign_tx nonce=%d tx=%s to=%s", sent.nonce, to_hex(sent.hash), sent.to)
        self._outbox.record_foreign(sent)

    def look_anew(self) -> None:
        """Another server is asked from now on."""
        self._unexplained = 0

    def _not_explained(self, nonce: int) -> RpcBehind | JournalError:
        self._unexplained += 1
        if self._unexplained < PATIENCE_TICKS:
            return RpcBehind(f"nonce {nonce} of the hot key was used by a transaction that the RPC does not show yet")
        return JournalError(
            f"the hot key {self._address} has used nonce {nonce} without this journal, in a transaction that no"
            " configured RPC can show: restore the journal, or use a fresh hot key"
        )
