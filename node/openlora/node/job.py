"""A job as this node knows it, and how its state may move.

    SEEN ──► SKIPPED            a local decision not to claim; its skip code says why
      │         │
      ▼         ▼
    CLAIMING ──► CLAIMED ──► COMMITTING ──► COMMITTED ──► FINALIZED
      │             │            │             └────────► SLASHED, ANNULLED   refunded by a judge's word
      ▼             ▼            ▼
    LOST          LOST         LOST         the chain gave the job to somebody else, or our lease ran out
                  FAILED       FAILED       we held it and gave it up; the reason says why
    CANCELLED, EXPIRED                      refunded to its client, from any state before COMMITTED

Which claimed jobs are in the engine right now is not here: it would not survive a restart. Nor is "finalizing": a batch
of finalizations belongs to no one job, anybody may send it, and its intent lies with the sender.

A state caused by a block carries the block, so that a reorganisation can take it back (`Journal.unwind`); that is the
only way back against the arrows.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from openlora.contracts import JobSpec, eip712

JobId = NewType("JobId", int)
Wei = NewType("Wei", int)  # smallest unit of the coin or token that the name beside it says


class JobState(StrEnum):
    SEEN = "seen"  # submitted on chain, undecided
    SKIPPED = "skipped"  # not claimed; may be decided anew
    CLAIMING = "claiming"  # the claim may be signed and sent
    CLAIMED = "claimed"  # the chain says it is ours; may be running
    COMMITTING = "committing"  # its one receipt is fixed; the commit may be signed and sent
    COMMITTED = "committed"  # the chain has the receipt; the challenge window runs
    FINALIZED = "finalized"  # paid
    LOST = "lost"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SLASHED = "slashed"  # committed, and found at fault: the client is refunded, the bond lost
    ANNULLED = "annulled"  # committed, and nobody can say: the client is refunded, nobody at fault


class SkipCode(StrEnum):
    """Why a job is not claimed. The value is shown to people and is stable."""

    MODEL_NOT_SERVED = "model_not_served"
    ADAPTER_UNAVAILABLE = "adapter_unavailable"
    ADAPTER_REFUSED = "adapter_refused"  # an adapter of the recipe is none, or not for this base model
    INPUT_UNAVAILABLE = "input_unavailable"
    BAD_INPUT = "bad_input"
    PRICE_TOO_LOW = "price_too_low"
    CLIENT_NOT_ALLOWED = "client_not_allowed"  # not among market.clients
    ADAPTER_NOT_ALLOWED = "adapter_not_allowed"  # one of the recipe's is not among market.adapters
    NOT_PERMITTED = "not_permitted"  # an adapter's owner does not serve this client, or has taken the adapter down
    UNKNOWN_FLAGS = "unknown_flags"  # the spec asks for what this node cannot do, an auditable private job, say
    NOT_INVITED = "not_invited"  # a private job whose client has not brought this node its key
    OUTPUT_TOO_LARGE = "output_too_large"  # to be published in a transaction, as the spec asks
    DEADLINE_TOO_NEAR = "deadline_too_near"
    OVER_CONTEXT = "over_context"
    LOW_DISK = "low_disk"
    LOW_GAS = "low_gas"  # the hot key cannot pay for the transactions
    NO_STAKE = "no_stake"  # too little free stake for the bond
    TAKEN = "taken"  # another node claimed it first
    ANSWERED = "answered"  # … and has committed its answer: the job is over for everybody else
    SIGNED_BEFORE = "signed_before"  # a receipt was signed in an earlier lease; a second one would be equivocation
    BREAKER_OPEN = "breaker_open"  # too many failures lately
    DRAINING = "draining"  # its operator told it to claim nothing


_REFUNDED = {JobState.CANCELLED, JobState.EXPIRED}
_BEFORE_CLAIM = {JobState.SKIPPED, JobState.CLAIMING, JobState.CLAIMED} | _REFUNDED
_GIVEN_UP = {JobState.LOST, JobState.FAILED}

# What the chain says is a fact whatever we thought, hence CLAIMED from SEEN and COMMITTED from FAILED: transactions
# believed dead have landed after a reorganisation. One may also move a claim that was known from its receipt alone,
# hence CLAIMED from CLAIMED. A client cancels under a lease that has run out, and the queue tells of the cancellation
# first, hence CANCELLED from CLAIMED. FAILED from FAILED tells the reason of a release that the chain reported first.
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.SEEN: frozenset(_BEFORE_CLAIM),
    JobState.SKIPPED: frozenset(_BEFORE_CLAIM),
    JobState.CLAIMING: frozenset(_BEFORE_CLAIM | _GIVEN_UP) - {JobState.CLAIMING},
    JobState.CLAIMED: frozenset({JobState.CLAIMED, JobState.COMMITTING} | _REFUNDED | _GIVEN_UP),
    JobState.COMMITTING: frozenset({JobState.COMMITTED} | _REFUNDED | _GIVEN_UP),
    JobState.COMMITTED: frozenset({JobState.FINALIZED, JobState.SLASHED, JobState.ANNULLED}),
    JobState.LOST: frozenset(_BEFORE_CLAIM | {JobState.COMMITTED}),
    JobState.FAILED: frozenset({JobState.FAILED, JobState.COMMITTED} | _REFUNDED),
    JobState.FINALIZED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.EXPIRED: frozenset(),
    JobState.SLASHED: frozenset(),
    JobState.ANNULLED: frozenset(),
}

# Under our claim, as far as the chain has told.
HELD = (JobState.CLAIMED, JobState.COMMITTING)

# What a restart takes up again.
LIVE = frozenset({JobState.CLAIMING, JobState.CLAIMED, JobState.COMMITTING, JobState.COMMITTED})


@dataclass(frozen=True, slots=True)
class BlockRef:
    """A block by number and hash: after a reorganisation the same number is another block."""

    number: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Signed:
    """The one receipt this node stands by for a job. `signature` is None between its recording and its signing."""

    digest: bytes  # EIP-712
    receipt: bytes
    signature: bytes | None


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the journal.

    `input` is the document when it came inline. `submitted` is None once a reorganisation took the submission back (the
    spec hash in every claim keeps that harmless). `claim` is the block that holds our claim, None before CLAIMED.
    """

    id: JobId
    spec: JobSpec
    spec_hash: bytes
    input: bytes | None
    submitted: BlockRef | None
    state: JobState = JobState.SEEN
    skip: SkipCode | None = None  # exactly when SKIPPED
    reason: str | None = None  # exactly when FAILED
    claim: BlockRef | None = None
    signed: Signed | None = None
    changed_at: float = 0.0  # unix seconds of the last transition

    @property
    def seed(self) -> int | None:
        """The sampling seed, 64 bits: fixed by the claim, unknown before it."""
        return None if self.claim is None else eip712.job_seed(self.spec_hash, self.claim.hash)
