"""Answers what dashboards ask, from the journal, from the network's table and, for recipes' legs, from the chain."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from openlora.contracts import Receipt, Recipe, Role, eip712
from openlora.node.errors import RequestError
from openlora.node.facts import WEIGHT_UNIT, ChainFacts
from openlora.node.fees import Fees, divide
from openlora.node.job import Job, JobId, JobState, SkipCode
from openlora.node.journal import Journal
from openlora.node.network.table import node_view
from openlora.node.registered import Registered
from openlora.node.settlement import FINISH_REASONS
from openlora.node.telemetry.history import History
from openlora.node.telemetry.snapshot import Snapshot
from openlora.node.telemetry.topics import JobPart
from openlora.node.telemetry.views import (
    Bucket,
    EarningsOverTime,
    JobDetail,
    JobPage,
    JobView,
    NodesView,
    PartOfFee,
    ReceiptView,
    Step,
    Term,
)
from openlora.p2p.presence.record import Presence

MAX_NODES: Final = 1_000  # of one table
FINISHES: Final = {number: name for name, number in FINISH_REASONS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Reads; owns nothing. Nothing that it tells is a prompt, an answer or a secret."""

    observe: Callable[[], Awaitable[Snapshot]]
    nodes: Callable[[], Sequence[Presence]]
    journal: Journal
    fees: Fees
    registered: Registered
    facts: ChainFacts
    history: History
    clock: Callable[[], float] = time.time

    # ---- jobs ----

    def jobs(
        self,
        limit: int,
        before: int | None = None,
        state: JobState | None = None,
        skip: SkipCode | None = None,
    ) -> JobPage:
        """One page; `before` is the last page's `next_before`."""
        found = self.journal.page(limit=limit + 1, before=before, state=state, skip=skip)
        page = tuple(self.job_view(job) for job in found[:limit])
        return JobPage(jobs=page, next_before=page[-1].job_id if len(found) > limit else None)

    def job_view(self, job: Job) -> JobView:
        receipt = _receipt(job)
        return JobView(
            **msgspec.structs.asdict(JobPart.of(job)),
            recipe=self._recipe(job.spec.recipe_id),
            max_fee_wei=str(eip712.escrow_wei(job.spec)),
            fee_wei=str(receipt.fee) if receipt else None,
            in_tokens=receipt.in_tokens if receipt else None,
            out_tokens=receipt.out_tokens if receipt else None,
        )

    def job(self, job_id: JobId) -> JobDetail:
        """Raises RequestError for a job that this node has not seen."""
        job = self._job(job_id)
        return JobDetail(
            **msgspec.structs.asdict(self.job_view(job)),
            deadline_s=job.spec.deadline,
            lease_s=job.spec.lease_secs,
            max_in_tokens=job.spec.max_in_tokens,
            max_out_tokens=job.spec.max_out_tokens,
            submitted_block_number=job.submitted.number if job.submitted else None,
            history=tuple(
                Step(
                    state=str(step.state),
                    skip_code=None if step.skip is None else str(step.skip),
                    reason=step.reason,
                    block_number=step.block.number if step.block else None,
                    at_s=step.at,
                )
                for step in self.journal.transitions(job_id)
            ),
        )

    async def receipt(self, job_id: JobId) -> ReceiptView:
        """Raises RequestError where there is none, ChainError when the recipe's legs cannot be read."""
        job = self._job(job_id)
        receipt = _receipt(job)
        if receipt is None or job.signed is None:
            raise RequestError("no_receipt", f"This node has signed no receipt for job {job_id}.", "job_id")
        recipe = await self.facts.recipe(receipt.recipe_id)
        fee = self.fees.of(job_id)
        before_wei = fee.before_wei if fee else self.fees.total_wei(receipt.recipe_id)
        terms = self._terms(map(_hex, recipe.adapters), recipe.weights)
        return ReceiptView(
            job_id=job_id,
            paid=fee is not None,
            block_number=fee.block_number if fee else None,
            receipt_hash=_hex(job.signed.digest),
            node=receipt.node,
            recipe_id=receipt.recipe_id,
            base_id=_hex(recipe.base_id),
            recipe=terms,
            input_digest=_hex(receipt.input_digest),
            output_digest=_hex(receipt.output_digest),
            in_tokens=receipt.in_tokens,
            out_tokens=receipt.out_tokens,
            finish_reason=FINISHES.get(receipt.finish_reason, str(receipt.finish_reason)),
            finished_at_s=receipt.finished_at,
            engine_profile=receipt.engine_profile,
            escrow_wei=str(eip712.escrow_wei(job.spec)),
            refund_wei=str(eip712.escrow_wei(job.spec) - receipt.fee),
            fee_wei=str(receipt.fee),
            use_fee_wei=str(recipe.use_fee),
            parts=await self._parts(recipe, before_wei, receipt, terms),
        )

    async def _parts(
        self, recipe: Recipe, before_wei: int, receipt: Receipt, terms: Sequence[Term]
    ) -> tuple[PartOfFee, ...]:
        base = self.registered.base(_hex(recipe.base_id))
        datanets = await self._datanets(recipe)
        names: dict[Role, Callable[[str], Iterable[str | None]]] = {
            Role.ADAPTER: lambda payee: [term.name for term in self._owned(terms, payee)],
            Role.USE: lambda payee: [term.name for term in self._owned(terms, payee)],
            Role.DATANET: lambda payee: [name for name, payees in datanets if payee in payees],
            Role.BASE: lambda _: [base.name if base else None],
        }
        return tuple(
            PartOfFee(
                role=role.name.lower(),
                payee=payee,
                amount_wei=str(amount_wei),
                names=tuple(name for name in names[role](payee) if name) if role in names else (),
                terms=tuple(self._owned(terms, payee)) if role in (Role.ADAPTER, Role.USE) else (),
            )
            for role, payee, amount_wei in divide(recipe.legs, before_wei, receipt.fee, receipt.node)
        )

    async def _datanets(self, recipe: Recipe) -> list[tuple[str | None, frozenset[str]]]:
        """Name and payees of each datanet that the recipe's adapters name."""
        adapters = await asyncio.gather(*map(self.facts.adapter, recipe.adapters))
        ids = sorted({datanet for adapter in adapters for datanet in adapter.datanets})
        payees = await asyncio.gather(*map(self.facts.datanet_payees, ids))
        names = [known.name if (known := self.registered.datanet(datanet)) else None for datanet in ids]
        return list(zip(names, payees, strict=True))

    def _owned(self, terms: Iterable[Term], payee: str) -> list[Term]:
        owners = {term.digest: self.registered.adapter(term.digest) for term in terms}
        return [term for term in terms if (known := owners[term.digest]) is not None and known.owner == payee]

    def _recipe(self, recipe_id: int) -> tuple[Term, ...] | None:
        recipe = self.registered.recipe(recipe_id)
        return None if recipe is None else self._terms(recipe.adapters, recipe.weights)

    def _terms(self, digests: Iterable[str], weights: Iterable[int]) -> tuple[Term, ...]:
        return tuple(
            Term(digest=digest, name=self.name_of(digest), weight=weight / WEIGHT_UNIT)
            for digest, weight in zip(digests, weights, strict=True)
        )

    def _job(self, job_id: JobId) -> Job:
        job = self.journal.find(job_id)
        if job is None:
            raise RequestError("unknown_job", f"Job {job_id} is not in the journal.", "job_id")
        return job

    # ---- the rest ----

    def name_of(self, digest: str) -> str | None:
        """An adapter's registered name."""
        adapter = self.registered.adapter(digest)
        return adapter.name if adapter else None

    async def earnings(self, bucket_s: int, buckets: int) -> EarningsOverTime:
        """The last `buckets` spans, the present one included; each begins at a multiple of `bucket_s`."""
        since_s = (int(self.clock()) // bucket_s - buckets + 1) * bucket_s
        paid = self.journal.paid_over_time(since_s, bucket_s)
        return EarningsOverTime(
            **msgspec.structs.asdict((await self.observe()).earnings),
            bucket_s=bucket_s,
            since_s=since_s,
            buckets=tuple(
                Bucket(start_s=start_s, paid_by_role_wei={role: str(wei) for role, wei in roles.items()})
                for start_s, roles in paid.items()
            ),
        )

    def network(self) -> NodesView:
        records = sorted(self.nodes(), key=lambda record: record.operator)
        return NodesView(nodes=tuple(map(node_view, records[:MAX_NODES])), total_nodes=len(records))


def _receipt(job: Job) -> Receipt | None:
    return None if job.signed is None else msgspec.json.decode(job.signed.receipt, type=Receipt)


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
