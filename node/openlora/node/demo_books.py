"""What came of the demonstration: its figures, and its books."""

from collections.abc import Callable
from dataclasses import dataclass

from openlora.node.audit import VaultAudit
from openlora.node.books import Books
from openlora.node.penalties import Penalties


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demonstration measured; the last line of `openlora demo --json`."""

    ok: bool
    nodes: int
    jobs: int
    finalized: int
    requeued: int
    tokens: int
    travelled_bytes: int
    escrow_wei: int
    paid_wei: int
    refunded_wei: int
    session_receipts: int
    published: int
    refused_proofs: int
    lost_bond_wei: int
    slashed_wei: int
    use_fees_wei: int
    vault_wei: int
    first_paid_job_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Ledger:
    """The books of the demonstration and who is who in them."""

    books: Books
    penalties: Penalties
    vault: VaultAudit
    name_of: Callable[[str], str]

    @property
    def balanced(self) -> bool:
        """Whether nothing is open or missing, and all credits in the Vault are what the events say, to the wei."""
        books, penalties = self.books, self.penalties
        as_told = all(
            wei == books.earned_by(account) + penalties.won_by(account) for account, wei in self.vault.credits.items()
        )
        nothing_open = not books.open_wei and not penalties.waiting_wei
        return books.balanced and self.vault.balanced and as_told and nothing_open
