"""The journal's rows of what the hot key wants done on chain.

An intent is one effect, named by its key. Its attempts are signed versions of it under one nonce, so at most one of
them is ever mined; another nonce comes only where the old one was used up without the effect.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from openlora.node.chain.transaction import Fees, SignedTransaction
from openlora.node.chain.types import SentTransaction, TxReceipt
from openlora.node.job import Wei
from openlora.node.journal import DROP_INTENTS, FIRST_NONCE, Journal
from openlora.node.journal_view import NONCES


class IntentState(StrEnum):
    PENDING = "pending"  # signed; perhaps sent, perhaps even mined
    MINED = "mined"  # in a block, which a reorganisation may still take back
    FINAL = "final"  # in a block so deep that nobody looks any more


@dataclass(frozen=True, slots=True)
class Intent:
    """`receipt` is None exactly while PENDING."""

    key: str
    to: str
    data: bytes
    gas_limit: int
    nonce: int
    state: IntentState
    receipt: TxReceipt | None


@dataclass(frozen=True, slots=True)
class Attempt:
    signed: SignedTransaction
    at: float  # unix seconds of its signing


class Outbox:
    """Every method is one journal transaction, or part of the one around it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    # ---- reading ----------------------------------------------------------------------------------------------------

    def find(self, key: str) -> Intent | None:
        found = self._journal.read(_to_intent, _SELECT_INTENT + " WHERE key = ?", key)
        return found[0] if found else None

    def unsettled(self) -> list[Intent]:
        """Intents that are not final, by nonce."""
        sql = _SELECT_INTENT + " WHERE state IN ('pending', 'mined') ORDER BY nonce"
        return self._journal.read(_to_intent, sql)

    def pending(self) -> list[Intent]:
        sql = _SELECT_INTENT + " WHERE state = 'pending' ORDER BY nonce"
        return self._journal.read(_to_intent, sql)

    def attempts(self, key: str) -> list[Attempt]:
        """Newest first; never empty for an intent."""
        sql = "SELECT hash, nonce, raw, max_fee_wei, tip_wei, at FROM attempts WHERE intent = ? ORDER BY rowid DESC"
        return [
            Attempt(SignedTransaction(digest, nonce, raw, Fees(Wei(max_fee), Wei(tip))), at)
            for digest, nonce, raw, max_fee, tip, at in self._journal.rows(sql, key)
        ]

    def next_nonce(self) -> int:
        """One more than every nonce that we know to be spoken for."""
        after = [int(nonce) + 1 for (nonce,) in self._journal.rows(NONCES) if nonce is not None]
        return max(int(self._journal.meta(FIRST_NONCE) or 0), *after, 0)

    def gas_cost_wei(self) -> Wei:
        """What all mined transactions have cost so far."""
        return Wei(sum(cost for (cost,) in self._journal.rows("SELECT cost_wei FROM intents WHERE cost_wei NOT NULL")))

    def is_foreign(self, nonce: int) -> bool:
        """Whether somebody else's transaction was seen to use this nonce."""
        return bool(self._journal.rows("SELECT 1 FROM foreign_transactions WHERE nonce = ?", nonce))

    # ---- writing ----------------------------------------------------------------------------------------------------

    def begin(self, key: str, to: str, data: bytes, gas_limit: int, signed: SignedTransaction) -> Intent:
        intent = Intent(key, to, data, gas_limit, signed.nonce, IntentState.PENDING, None)
        with self._journal.transaction() as db:
            row = (key, to, data, gas_limit, signed.nonce, IntentState.PENDING, self._journal.now())
            db.execute(
                "INSERT INTO intents (key, to_address, data, gas_limit, nonce, state, at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            self._add(key, signed)
        return intent

    def add_attempt(self, key: str, signed: SignedTransaction, gas_limit: int) -> None:
        """A further version of a pending intent: dearer under its nonce, or under another one if that was used."""
        with self._journal.transaction() as db:
            db.execute("UPDATE intents SET nonce = ?, gas_limit = ? WHERE key = ?", (signed.nonce, gas_limit, key))
            self._add(key, signed)

    def set_mined(self, key: str, receipt: TxReceipt, *, final: bool) -> None:
        state = IntentState.FINAL if final else IntentState.MINED
        with self._journal.transaction() as db:
            row = (state, msgspec.json.encode(receipt), receipt.block.number, receipt.cost_wei, key)
            sql = "UPDATE intents SET state = ?, receipt = ?, block_number = ?, cost_wei = ? WHERE key = ?"
            db.execute(sql, row)

    def set_dropped(self, key: str) -> None:
        with self._journal.transaction() as db:
            db.execute(f"{DROP_INTENTS} WHERE key = ?", (key,))

    def discard(self, key: str) -> None:
        """Forgets an intent whose effect nobody needs any more and whose nonce is used."""
        with self._journal.transaction() as db:
            db.execute("DELETE FROM attempts WHERE intent = ?", (key,))
            db.execute("DELETE FROM intents WHERE key = ?", (key,))

    def record_foreign(self, sent: SentTransaction) -> None:
        with self._journal.transaction() as db:
            row = (sent.nonce, sent.hash, sent.to, sent.block.number)
            db.execute("INSERT OR REPLACE INTO foreign_transactions VALUES (?, ?, ?, ?)", row)

    def _add(self, key: str, signed: SignedTransaction) -> None:
        row = (signed.hash, key, signed.nonce, signed.raw, signed.fees.max_fee_wei, signed.fees.tip_wei)
        with self._journal.transaction() as db:
            db.execute("INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, self._journal.now()))


_SELECT_INTENT = "SELECT key, to_address, data, gas_limit, nonce, state, receipt FROM intents"


def _to_intent(row: tuple[Any, ...]) -> Intent:
    key, to, data, gas_limit, nonce, state, receipt = row
    return Intent(key, to, data, gas_limit, nonce, IntentState(state), _to_receipt(receipt) if receipt else None)


def _to_receipt(encoded: bytes) -> TxReceipt:
    return msgspec.json.decode(encoded, type=TxReceipt)
