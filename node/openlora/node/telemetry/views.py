"""What dashboards read beside the snapshot: jobs with their histories, who got what of a fee, earnings over time.

Amounts are decimal text in token wei, times unix seconds. Names are strangers' words.
"""

from openlora.node.network.table import NodeView
from openlora.node.telemetry.snapshot import Earnings, Part, Wei
from openlora.node.telemetry.topics import JobPart


class Term(Part, frozen=True):
    """One adapter of a recipe."""

    digest: str
    name: str | None  # as registered; None where the registry's event has not been read
    weight: float


class JobView(JobPart, frozen=True):
    """A job as the journal has it now. What a receipt tells is None before this node has signed one."""

    recipe: tuple[Term, ...] | None  # none for the base model alone; None where the registration has not been read
    max_fee_wei: Wei  # its escrow
    fee_wei: Wei | None
    in_tokens: int | None
    out_tokens: int | None


class Step(Part, frozen=True):
    """A change of state. `block_number` is that of the event which caused it; None for this node's own decision."""

    state: str
    skip_code: str | None
    reason: str | None
    block_number: int | None
    at_s: float


class JobDetail(JobView, frozen=True):
    """With its history, oldest first: what a reorganisation took back is not in it."""

    deadline_s: int
    lease_s: int
    max_in_tokens: int
    max_out_tokens: int
    submitted_block_number: int | None
    history: tuple[Step, ...]


class JobPage(Part, frozen=True):
    """Newest first. `next_before` asks for the page after; null on the last."""

    jobs: tuple[JobView, ...]
    next_before: int | None


class PartOfFee(Part, frozen=True):
    """What one payee gets in one role. `terms`: the adapters for which, where it is their owner's part."""

    role: str  # node | adapter | datanet | base | protocol | use
    payee: str
    amount_wei: Wei
    names: tuple[str, ...]  # of the adapters, datanets or the base that are paid for here
    terms: tuple[Term, ...]


class ReceiptView(Part, frozen=True):
    """The receipt that this node signed for a job, and where its fee went: the parts sum to fee_wei + use_fee_wei.

    Before the fee is paid (`paid` is false), the parts are what they would be now.
    """

    job_id: int
    paid: bool
    block_number: int | None  # that paid
    receipt_hash: str  # EIP-712
    node: str
    recipe_id: int
    base_id: str
    recipe: tuple[Term, ...]
    input_digest: str
    output_digest: str
    in_tokens: int
    out_tokens: int
    finish_reason: str
    finished_at_s: int
    engine_profile: int
    escrow_wei: Wei
    refund_wei: Wei
    fee_wei: Wei
    use_fee_wei: Wei  # what adapters that are paid per use cost on top
    parts: tuple[PartOfFee, ...]


class Bucket(Part, frozen=True):
    start_s: int
    paid_by_role_wei: dict[str, Wei]


class EarningsOverTime(Earnings, frozen=True):
    """The totals, and what was paid in each span of `bucket_s`; spans without a payment are left out.

    A payment is in its span once the time of its block is known, within seconds of the payment.
    """

    bucket_s: int
    since_s: int
    buckets: tuple[Bucket, ...]


class NodesView(Part, frozen=True):
    """The nodes whose presence is alive, this one included, by operator."""

    nodes: tuple[NodeView, ...]
    total_nodes: int
