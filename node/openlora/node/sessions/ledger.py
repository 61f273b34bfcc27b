"""The journal's rows of the signed lane: orders, the receipts signed for them, and the last voucher of each session."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import msgspec

from openlora.contracts import Account, Charge, JobSpec, Receipt, Voucher, eip712
from openlora.node.errors import JournalError, RequestError
from openlora.node.job import Signed
from openlora.node.journal import Journal
from openlora.node.wei import tokens


class OrderState(StrEnum):
    ACCEPTED = "accepted"  # may be running; a restart answers it when its client asks again
    ANSWERED = "answered"  # its one receipt is fixed, and is owed for
    PAID = "paid"  # a voucher covers it
    FAILED = "failed"  # costs nothing, and may be asked for again


OUTSTANDING: Final = (OrderState.ACCEPTED, OrderState.ANSWERED)


@dataclass(frozen=True, slots=True)
class Order:
    """One order of a session. `digest` is its EIP-712 digest, which its client signed."""

    digest: bytes
    session: bytes
    number: int
    spec: JobSpec
    signature: bytes
    input: bytes | None  # the document, when it came inline
    state: OrderState = OrderState.ACCEPTED
    reason: str | None = None  # exactly when FAILED
    signed: Signed | None = None

    @property
    def key(self) -> int:
        """Names its stream."""
        return int.from_bytes(self.digest, "big")

    @property
    def seed(self) -> int:
        return eip712.order_seed(self.digest)

    @property
    def receipt(self) -> Receipt:
        assert self.signed is not None, "an answered order has its receipt"
        return msgspec.json.decode(self.signed.receipt, type=Receipt)

    @property
    def charge(self) -> Charge:
        """What it adds to the session's account."""
        assert self.signed is not None, "an answered order has its receipt"
        return Charge(self.spec.recipe_id, self.receipt.fee, self.signed.digest)

    @property
    def liability_wei(self) -> int:
        """The most that its client may owe for it."""
        return self.receipt.fee if self.signed is not None else eip712.escrow_wei(self.spec)


@dataclass(frozen=True, slots=True)
class Payment:
    """The last voucher of a session and what it pays for."""

    voucher: Voucher
    signature: bytes
    account: Account
    settled: bool  # the chain has paid it out
    unsettled_since: float  # unix seconds of the first payment that the chain has not paid out


class SessionLedger:
    """Every method is one journal transaction, or part of the one around it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    # ---- orders ----

    def order(self, digest: bytes) -> Order | None:
        found = self._journal.read(_to_order, _SELECT_ORDER + " WHERE digest = ?", digest)
        return found[0] if found else None

    def last_number(self, session: bytes) -> int:
        """The highest number of an order accepted in the session; 0 before the first."""
        return int(self._journal.rows("SELECT coalesce(max(number), 0) FROM orders WHERE session = ?", session)[0][0])

    def outstanding(self, session: bytes) -> list[Order]:
        """Accepted and not paid, by number."""
        where = " WHERE session = ? AND state IN (?, ?) ORDER BY number"
        return self._journal.read(_to_order, _SELECT_ORDER + where, session, *OUTSTANDING)

    def answered(self) -> int:
        """Orders that are owed for, of all sessions."""
        return int(self._journal.rows("SELECT count(*) FROM orders WHERE state = ?", OrderState.ANSWERED)[0][0])

    def accept(self, order: Order, deposit_wei: int, max_unpaid_wei: int) -> None:
        """Records an order that has a new number or FAILED before: the checks and the record are one transaction.

        The deposit must cover it beside all that is paid or owed, and nothing may be unpaid, unless all that is unpaid
        stays within `max_unpaid_wei` with it. Raises RequestError: replayed, unpaid, deposit_exhausted.
        """
        with self._journal.transaction() as db:
            known = self.order(order.digest)
            if known is not None and known.state is not OrderState.FAILED:
                raise RequestError("busy", "this order was accepted a moment ago; ask for it again")
            if known is None and order.number <= (last := self.last_number(order.session)):
                raise RequestError("replayed", f"order {order.number} of this session was used; the next is {last + 1}")
            owed_wei = sum(other.liability_wei for other in self.outstanding(order.session))
            if owed_wei and owed_wei + order.liability_wei > max_unpaid_wei:
                raise RequestError(
                    "unpaid", "earlier orders of this session are not paid; send a voucher for them first"
                )
            payment = self.payment(order.session)
            left_wei = deposit_wei - owed_wei - (payment.account.fee if payment else 0)
            if order.liability_wei > left_wei:
                cost, left = tokens(order.liability_wei), tokens(left_wei)
                raise RequestError(
                    "deposit_exhausted",
                    f"the order may cost {cost} OLRA and {left} are left of the deposit; top it up",
                )
            if known is not None:
                again = "UPDATE orders SET state = ?, reason = NULL WHERE digest = ?"
                db.execute(again, (OrderState.ACCEPTED, order.digest))
                return
            row = (order.digest, order.session, order.number, msgspec.json.encode(order.spec), order.signature)
            db.execute(
                "INSERT INTO orders (digest, session, number, spec, signature, input, state, at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, order.input, OrderState.ACCEPTED, self._journal.now()),
            )

    def fail(self, digest: bytes, reason: str) -> None:
        """ACCEPTED → FAILED; an order that has its receipt stays answered."""
        with self._journal.transaction() as db:
            failed = "UPDATE orders SET state = ?, reason = ? WHERE digest = ? AND state = ?"
            db.execute(failed, (OrderState.FAILED, reason, digest, OrderState.ACCEPTED))

    def record_receipt(self, digest: bytes, receipt_digest: bytes, receipt: bytes) -> Order:
        """Fixes the one receipt of an order before it is signed: → ANSWERED. The same one again changes nothing.

        Raises JournalError for any other: two signed receipts for one order are equivocation, and cost the stake.
        """
        with self._journal.transaction() as db:
            order = self._known(digest)
            if order.signed is not None and order.signed.digest != receipt_digest:
                raise JournalError(f"order {digest.hex()[:16]}… has a receipt; another one is never signed")
            if order.signed is None:
                fixed = "UPDATE orders SET state = ?, reason = NULL, receipt_digest = ?, receipt = ? WHERE digest = ?"
                db.execute(fixed, (OrderState.ANSWERED, receipt_digest, receipt, digest))
            return self._known(digest)

    def record_signature(self, digest: bytes, signature: bytes) -> Order:
        """Adds the signature of the recorded receipt."""
        with self._journal.transaction() as db:
            db.execute(
                "UPDATE orders SET receipt_signature = ? WHERE digest = ? AND receipt IS NOT NULL", (signature, digest)
            )
            return self._known(digest)

    # ---- vouchers ----

    def payment(self, session: bytes) -> Payment | None:
        found = self._journal.read(_to_payment, f"{_SELECT_PAYMENT} WHERE session = ?", session)
        return found[0] if found else None

    def unsettled(self) -> list[Payment]:
        """Last vouchers that the chain has not paid out, the longest waiting first."""
        return self._journal.read(_to_payment, f"{_SELECT_PAYMENT} WHERE NOT settled ORDER BY unsettled_since")

    def pay(self, orders: Sequence[Order], voucher: Voucher, signature: bytes, account: Account) -> None:
        """Records a voucher that was checked, and that `orders` are paid by it: one transaction."""
        with self._journal.transaction() as db:
            before = self.payment(voucher.session_id)
            since = before.unsettled_since if before is not None and not before.settled else self._journal.now()
            db.execute(
                "INSERT OR REPLACE INTO vouchers VALUES (?, ?, ?, ?, 0, ?)",
                (voucher.session_id, msgspec.json.encode(voucher), signature, msgspec.json.encode(account), since),
            )
            for order in orders:
                db.execute("UPDATE orders SET state = ? WHERE digest = ?", (OrderState.PAID, order.digest))

    def mark_settled(self, voucher: Voucher) -> None:
        """The chain has paid this voucher out, or never will; nothing if a newer one has come meanwhile."""
        with self._journal.transaction() as db:
            settled = "UPDATE vouchers SET settled = 1 WHERE session = ? AND voucher = ?"
            db.execute(settled, (voucher.session_id, msgspec.json.encode(voucher)))

    def _known(self, digest: bytes) -> Order:
        order = self.order(digest)
        if order is None:
            raise JournalError(f"order {digest.hex()[:16]}… is not in the journal")
        return order


_SELECT_ORDER = (
    "SELECT digest, session, number, spec, signature, input, state, reason, receipt_digest, receipt, receipt_signature"
    " FROM orders"
)
_SELECT_PAYMENT = "SELECT voucher, signature, account, settled, unsettled_since FROM vouchers"


def _to_order(row: tuple[Any, ...]) -> Order:
    digest, session, number, spec, signature, document, state, reason, receipt_digest, receipt, receipt_signature = row
    return Order(
        digest=digest,
        session=session,
        number=number,
        spec=msgspec.json.decode(spec, type=JobSpec),
        signature=signature,
        input=document,
        state=OrderState(state),
        reason=reason,
        signed=None if receipt is None else Signed(receipt_digest, receipt, receipt_signature),
    )


def _to_payment(row: tuple[Any, ...]) -> Payment:
    voucher, signature, account, settled, since = row
    return Payment(
        voucher=msgspec.json.decode(voucher, type=Voucher),
        signature=signature,
        account=msgspec.json.decode(account, type=Account),
        settled=bool(settled),
        unsettled_since=since,
    )
