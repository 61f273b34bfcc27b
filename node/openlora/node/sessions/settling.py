"""Vouchers brought to the chain: many receipts in one transaction, in good time, each once.

A voucher is settled when enough of it is unsettled, when its client wants to close, and before it grows old. The last
one pays for all before it, so what a crash interrupts the next sweep finishes, and the contract takes no voucher twice.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from openlora.contracts import Session, SessionClosing, Sessions, SessionState
from openlora.node.chain.sender import Sender
from openlora.node.config import SessionsConfig
from openlora.node.errors import ChainError, JournalUnwritable, Reverted
from openlora.node.sessions.facts import SessionFacts
from openlora.node.sessions.ledger import Payment, SessionLedger

log = logging.getLogger(__name__)

SWEEP_S: Final = 30.0  # how often sessions with unsettled vouchers are looked at, unless something happens
LAST_CALL_S: Final = 1_800  # before a voucher's deadline: it is settled whatever it is worth
FINAL: Final = frozenset({"VoucherNotNewer", "VoucherExpired", "OverDeposit"})  # this voucher will never be paid out


@dataclass(slots=True)
class Settler:
    """`run` sweeps until cancelled; `wake` and the chain's events make it look at once."""

    sessions: Sessions
    facts: SessionFacts
    ledger: SessionLedger
    sender: Sender
    config: SessionsConfig
    sweep_s: float = SWEEP_S
    clock: Callable[[], float] = time.time
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        self._woken.set()

    def apply(self, event: object) -> None:
        """Takes note of one of the contract's events."""
        if isinstance(event, SessionClosing):
            self.wake()

    async def run(self) -> None:
        """Raises JournalError but for a full disk, which may pass."""
        while True:
            self._woken.clear()
            for payment in self.ledger.unsettled():
                try:
                    await self._consider(payment)
                except (ChainError, JournalUnwritable) as error:
                    session = payment.voucher.session_id.hex()[:16]
                    log.warning("event=session_waits session=%s reason=%r", session, str(error))
            try:
                async with asyncio.timeout(self.sweep_s):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _consider(self, payment: Payment) -> None:
        session = await self.facts.session(payment.voucher.session_id)
        if session.settled >= payment.voucher.cumulative_fee or session.state is SessionState.CLOSED:
            if session.settled < payment.voucher.cumulative_fee:
                log.error("event=voucher_lost session=%s", payment.voucher.session_id.hex())
            self.ledger.mark_settled(payment.voucher)
        elif self._is_due(payment, session):
            await self._settle(payment)

    def _is_due(self, payment: Payment, session: Session) -> bool:
        now_s = self.clock()
        return (
            session.state is SessionState.CLOSING
            or payment.voucher.cumulative_fee - session.settled >= self.config.settle_at_wei
            or now_s - payment.unsettled_since >= self.config.settle_every_s
            or payment.voucher.deadline - now_s <= LAST_CALL_S
        )

    async def _settle(self, payment: Payment) -> None:
        voucher, lines = payment.voucher, payment.account.lines()
        session = voucher.session_id.hex()
        try:
            call = self.sessions.settle(voucher, lines, payment.signature)
            await self.sender.send(f"settle:{session}:{voucher.cumulative_fee}", call)
        except Reverted as refusal:
            log.error("event=settlement_refused session=%s reason=%r", session[:16], str(refusal))
            if refusal.name not in FINAL:
                raise
        else:
            receipts = sum(total.tree.count for total in payment.account.totals.values())
            log.info("event=session_settled session=%s receipts=%d", session[:16], receipts)
        self.ledger.mark_settled(voucher)
