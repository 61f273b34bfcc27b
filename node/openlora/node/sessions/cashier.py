"""Vouchers at a node: checked against what is owed, journalled, and shown to their client again."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from eth_typing import ChecksumAddress

from openlora.contracts import Account, Session, SessionState, Voucher, eip712
from openlora.node.config import SessionsConfig
from openlora.node.errors import RequestError
from openlora.node.sessions.facts import SessionFacts
from openlora.node.sessions.ledger import Order, OrderState, SessionLedger
from openlora.node.sessions.messages import (
    HowStands,
    OwedOrder,
    Pay,
    Reply,
    Standing,
    Thanks,
    TreePeaks,
    packed,
    packed_lines,
    standing_digest,
    unpacked,
)
from openlora.node.settlement import Signer

log = logging.getLogger(__name__)

MAX_CHECKS: Final = 16  # requests at once that ask the chain
VOUCHER_MARGIN_S: Final = 3_600  # a voucher lives longer than the node may take to settle it, by this


@dataclass(slots=True)
class Checks:
    """What of a stranger's request takes the chain to check, a bounded number at once. Raises RequestError("busy")."""

    facts: SessionFacts
    _under_way: int = 0

    async def session(self, session_id: bytes) -> Session:
        with self._place():
            return await self.facts.session(session_id)

    async def confirmed(self, session_id: bytes) -> Session:
        with self._place():
            return await self.facts.confirmed(session_id)

    async def signature(self, client: ChecksumAddress, digest: bytes, signature: bytes) -> None:
        """Raises RequestError("bad_signature")."""
        with self._place():
            signed = await self.facts.has_signed(client, digest, signature)
        if not signed:
            raise RequestError(
                "bad_signature", "the client has not signed this, for this chain and contract, with a low s; sign it"
            )

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._under_way >= MAX_CHECKS:
            raise RequestError("busy", "the node checks as many requests as it can; ask again soon")
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1


@dataclass(frozen=True, slots=True)
class Cashier:
    """Takes payment for orders that were answered."""

    ledger: SessionLedger
    checks: Checks
    signer: Signer  # in Sessions' domain
    config: SessionsConfig
    on_payment: Callable[[], None]  # a voucher was journalled

    async def pay(self, request: Pay) -> Reply:
        voucher = unpacked(Voucher, request.voucher)
        orders = [self._owed(digest, voucher.session_id) for digest in dict.fromkeys(request.orders)]
        digest = eip712.voucher_digest(self.signer.domain, voucher)
        await self.checks.signature(orders[0].spec.client, digest, request.signature)
        # From here on nothing awaits: what is owed cannot change between its check and its record.
        orders = [self._owed(order.digest, voucher.session_id) for order in orders]
        account = self._account(voucher.session_id).charged(order.charge for order in orders)
        due = eip712.voucher_for(voucher.session_id, account.lines(), voucher.deadline)
        if voucher.cumulative_fee < due.cumulative_fee:
            raise RequestError(
                "voucher_too_low", f"the voucher is for {voucher.cumulative_fee} wei; {due.cumulative_fee} are due"
            )
        if voucher != due:
            raise RequestError(
                "voucher_mismatch", "the voucher does not add those receipts to the last one; rebuild it"
            )
        if voucher.deadline < time.time() + self.config.settle_every_s + VOUCHER_MARGIN_S:
            raise RequestError("voucher_too_short", "the voucher ends before the node would settle it; give it a month")
        self.ledger.pay(orders, voucher, request.signature, account)
        log.info("event=voucher session=%s fee=%d", voucher.session_id.hex()[:16], voucher.cumulative_fee)
        self.on_payment()
        return Thanks()

    def _owed(self, digest: bytes, session: bytes) -> Order:
        order = self.ledger.order(digest)
        if order is None or order.session != session or order.state is not OrderState.ANSWERED:
            raise RequestError("not_owed", f"order {digest.hex()[:16]}… of this session is not owed for; leave it out")
        return order

    def _account(self, session: bytes) -> Account:
        payment = self.ledger.payment(session)
        return payment.account if payment else Account()

    async def standing(self, peer: str, request: HowStands) -> Reply:
        session = await self.checks.session(request.session)
        if session.state is SessionState.NONE or session.node != self.signer.operator:
            raise RequestError("unknown_session", "no such session with this node is on chain; check its id")
        digest = standing_digest(self.signer.domain, request.session, peer)
        await self.checks.signature(session.client, digest, request.signature)
        payment, owed = self.ledger.payment(request.session), self.ledger.outstanding(request.session)
        account = payment.account if payment else Account()
        return Standing(
            last_number=self.ledger.last_number(request.session),
            voucher=packed(payment.voucher) if payment else b"",
            lines=packed_lines(account.lines()),
            signature=payment.signature if payment else b"",
            trees=tuple(
                TreePeaks(recipe, total.tree.count, total.tree.peaks)
                for recipe, total in sorted(account.totals.items())
            ),
            owed=tuple(OwedOrder(packed(order.spec), order.signature) for order in owed),
        )
