"""One job, from the queue to its committed receipt.

`run_job` takes a job from wherever the journal has it, so a first run and a restart are the same code: whatever was
sent before is sent again byte for byte or recognised on chain, and an answer that was lost is generated again under the
same seed, which the claim has fixed.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from openlora.contracts import JobFlag, JobQueue, Recipe
from openlora.node import documents
from openlora.node.admission import Admission, Skip
from openlora.node.answering import Answerer, Work
from openlora.node.breaker import Breaker
from openlora.node.chain.sender import Sender
from openlora.node.errors import (
    AdapterError,
    ChainError,
    ContentError,
    EngineDied,
    LeaseTooShort,
    NetworkDown,
    OpenLoraError,
    RequestError,
    Reverted,
)
from openlora.node.facts import ChainFacts
from openlora.node.job import HELD, Job, JobId, JobState, SkipCode
from openlora.node.journal import Journal
from openlora.node.private.brought import NEEDED, BroughtKeys
from openlora.node.private.sealing import Sealed, seal
from openlora.node.settlement import Settlement
from openlora.node.streams import JobStreams
from openlora.node.turns import NotYet, Turns

log = logging.getLogger(__name__)

POLL_S: Final = 0.1
URGENT_S: Final = 1.0  # until claiming is thought of again, while something is urgent
KEY_SHARE: Final = 0.5  # of a private job's lease, for its client to bring the key again after a restart
ADAPTERS_SHARE: Final = 0.5  # of what is left of a lease: then the claim is given back for want of adapters
ANSWER_SHARE: Final = 0.9  # of what is left then: the rest is for the transaction that commits, or gives it back
MIN_DEPTH: Final = 2  # blocks: the queue takes no commit in the claim's own, whose hash makes the seed
OUTDATED: Final = {  # refusals of a receipt that no later one may replace, and why
    "WrongSeed": "a reorganisation moved the claim after its receipt was signed",
    "ClaimForgotten": "the chain has forgotten the hash of the claim's block, which the seed is checked with",
}
UNDECIDED: Final = (JobState.SEEN, JobState.SKIPPED, JobState.LOST)


@dataclass(frozen=True, slots=True)
class Worker:
    """What running a job takes. Many jobs may be under way at once, each in one `run_job`."""

    queue: JobQueue
    journal: Journal
    facts: ChainFacts
    admission: Admission
    turns: Turns
    sender: Sender
    answerer: Answerer
    settlement: Settlement
    keys: BroughtKeys
    confirmations: int  # blocks, the claim's own included, before a receipt is signed
    breaker: Breaker = field(default_factory=Breaker)
    urgent: Callable[[], bool] = lambda: False  # something must be answered on chain before anything is claimed

    @property
    def streams(self) -> JobStreams:
        return self.answerer.streams

    async def run_job(self, job_id: JobId) -> None:
        """Takes a job to COMMITTED, or to an end whose code or reason is in the journal. Raises NotYet while nodes that
        are better placed may claim it."""
        recipe = await self.facts.recipe(self._job(job_id).spec.recipe_id)
        if self._job(job_id).state in UNDECIDED and not await self._decide(job_id, recipe):
            return
        try:
            async with self.answerer.residency.hold(recipe.adapters) as adapters_ready:
                if self._job(job_id).state is JobState.CLAIMING:
                    await self._claim(job_id)
                while self._job(job_id).state is JobState.CLAIMED:
                    async with self._within_lease(job_id, KEY_SHARE, "its client did not bring its key again"):
                        await self._key(job_id)
                    async with self._within_lease(job_id, ADAPTERS_SHARE, "its adapters did not come"):
                        await adapters_ready()
                    async with self._within_lease(job_id, ANSWER_SHARE, "its answer was not finished"):
                        await self._answer(job_id, recipe)
            if self._job(job_id).state is JobState.COMMITTING:
                await self._commit(job_id)
        except (AdapterError, ContentError, NetworkDown, RequestError, EngineDied, LeaseTooShort) as error:
            self.breaker.failed()
            await self._give_up(job_id, str(error))
        except OpenLoraError:
            raise
        except Exception:  # a fault of ours: the claim goes back, and whoever runs the job logs it
            self.breaker.failed()
            await self._give_up(job_id, "a fault of this program")
            raise
        finally:
            self.streams.end(job_id)
            if (job := self._job(job_id)).state not in NEEDED:
                self.keys.forget(job)

    async def _decide(self, job_id: JobId, recipe: Recipe) -> bool:
        """→ CLAIMING, or → SKIPPED with a code; a job that is not open now stays as it is. What costs nothing to ask
        comes first: most jobs of a full market end there."""
        job = self._job(job_id)
        try:
            funds = await self.facts.funds()
            self.admission.check_offer(job.spec, recipe, funds.now_s)
            key = self.keys.of(job)
            if job.spec.flags & JobFlag.PRIVATE and key is None:
                raise Skip(SkipCode.NOT_INVITED)
            if job.signed is not None:
                raise Skip(SkipCode.SIGNED_BEFORE)
            if self.breaker.open:
                raise Skip(SkipCode.BREAKER_OPEN)
            self.admission.check_funds(job.spec, funds)
            if not await self.facts.is_open(job_id):
                return False
            if (wait_s := self.turns.wait_s(job, recipe, time.time())) > 0:
                raise NotYet(wait_s)
            if self.urgent():
                raise NotYet(URGENT_S)
            if job.spec.flags & JobFlag.GUARDED and not await self.facts.may_use(job.spec.recipe_id, job.spec.client):
                raise Skip(SkipCode.NOT_PERMITTED)
            await self.admission.check_content(job.spec, job.input, recipe, key)
        except Skip as skip:
            if job.skip is not skip.code:
                self.journal.move(job_id, JobState.SKIPPED, skip=skip.code)
                log.info("event=job_skipped job_id=%d code=%s", job_id, skip.code)
            return False
        if self._job(job_id).state not in UNDECIDED:
            return False  # the chain decided meanwhile
        self.journal.move(job_id, JobState.CLAIMING)
        return True

    async def _claim(self, job_id: JobId) -> None:
        """→ CLAIMED, or → LOST when the chain refuses: taken, cancelled, or past its deadline."""
        try:
            call = self.queue.claim(job_id, self._job(job_id).spec)
            receipt = await self.sender.send(self._intent("claim", job_id), call)
        except Reverted as refusal:
            if self._job(job_id).state is not JobState.CLAIMED:  # else the chain says itself that it is ours
                self._lose(job_id, refusal)
            return
        if self._job(job_id).state is JobState.CLAIMING:  # else the follower was told of the claim first
            self.journal.move(job_id, JobState.CLAIMED, block=receipt.block)
        log.info("event=job_claimed job_id=%d block=%d", job_id, receipt.block.number)

    # ---- answer ----

    async def _answer(self, job_id: JobId, recipe: Recipe) -> None:
        """→ COMMITTING with a signed receipt; stays CLAIMED when a reorganisation moved the claim, hence the seed."""
        job = self._job(job_id)
        assert job.seed is not None, "only a claimed job is answered"
        key = await self._key(job_id)
        document = await self.admission.input(job.spec, job.input, key)
        output = await self.answerer.answer(Work(job.id, job.spec, recipe, job.seed, document))
        data = documents.encode(output)
        digest = await self.admission.content.put_document(seal(key, data, Sealed.OUTPUT) if key else data)
        receipt = self.settlement.receipt(job, output, digest, await self._finished_at())
        if await self._claim_stands(job):  # from here to the signature nothing awaits
            self.settlement.sign(job, receipt)
            log.info("event=job_answered job_id=%d tokens=%d", job_id, output.usage.completion_tokens)

    async def _key(self, job_id: JobId) -> bytes | None:
        """A private job's, for which we wait only where the node was restarted since its claim."""
        job = self._job(job_id)
        return await self.keys.wait(job) if job.spec.flags & JobFlag.PRIVATE else None

    async def _finished_at(self) -> int:
        """By the chain's clock where that is behind ours: the queue refuses an answer from after its lease."""
        now_s = int(time.time())
        try:
            return min(now_s, await self.facts.now_s())
        except ChainError:
            return now_s

    async def _claim_stands(self, job: Job) -> bool:
        """Whether the claim that fixed the seed is still the job's, once it is as deep as asked, in a block that the
        follower has met too: one receipt is all that a job ever gets."""
        assert job.claim is not None, "only a claimed job is answered"
        while (now := self._job(job.id)).state is JobState.CLAIMED and now.claim == job.claim:
            cursor = self.journal.cursor
            deep = cursor is not None and cursor.number - job.claim.number + 1 >= max(self.confirmations, MIN_DEPTH)
            if deep and self.journal.agrees_with(job.claim):
                return True
            await asyncio.sleep(POLL_S)
        return False

    @asynccontextmanager
    async def _within_lease(self, job_id: JobId, share: float, failure: str) -> AsyncIterator[None]:
        """Raises LeaseTooShort while the claim can still be given back: a lease that runs out costs the bond."""
        left_s = await self._lease_left_s(self._job(job_id))
        timeout = asyncio.timeout(share * left_s)
        try:
            async with timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise LeaseTooShort(f"{failure} in time: its lease had {left_s:.0f} s left") from None

    async def _lease_left_s(self, job: Job) -> float:
        """By the chain's clock where it tells: the claim may have been learnt of long after it was mined, and this
        machine's clock may have been set since."""
        try:
            told_s = await self.facts.lease_left_s(job.id)
        except ChainError:
            told_s = None
        return job.changed_at + job.spec.lease_secs - time.time() if told_s is None else told_s

    # ---- commit, or not ----

    async def _commit(self, job_id: JobId) -> None:
        """→ COMMITTED, or → LOST when the chain refuses, mostly because the lease ran out; → FAILED where the one
        receipt, with the one seed, came too late."""
        try:
            receipt = await self.settlement.commit(self._job(job_id))
        except Reverted as refusal:
            if reason := OUTDATED.get(refusal.name):
                await self._give_up(job_id, reason)
            else:
                self._lose(job_id, refusal)
            return
        self.breaker.worked()
        if self._job(job_id).state is JobState.COMMITTING:
            self.journal.move(job_id, JobState.COMMITTED, block=receipt.block)
        log.info("event=job_committed job_id=%d block=%d", job_id, receipt.block.number)

    async def _give_up(self, job_id: JobId, reason: str) -> None:
        """→ FAILED, the claim given back so that neither bond nor job waits for the lease to end."""
        log.error("event=job_failed job_id=%d reason=%r", job_id, reason)
        if self._job(job_id).state in HELD:
            try:
                await self.sender.send(self._intent("release", job_id), self.queue.release(job_id))
            except Reverted as refusal:  # mostly because the lease is over; the job may be had again
                self._lose(job_id, refusal)
        if self._job(job_id).state in (JobState.CLAIMING, *HELD, JobState.FAILED):
            self.journal.move(job_id, JobState.FAILED, reason=reason)

    def _lose(self, job_id: JobId, refusal: Reverted) -> None:
        """→ LOST; but if the operator has another hot key now, the job is still its own, and that key's to commit."""
        if refusal.name in ("NotAHotKey", "NotTheNode"):
            raise refusal
        log.warning("event=job_lost job_id=%d reason=%r", job_id, str(refusal))
        if self._job(job_id).state in (JobState.CLAIMING, *HELD):
            self.journal.move(job_id, JobState.LOST)

    def _intent(self, deed: str, job_id: JobId) -> str:
        """Names a deed within one lease: a job that lapsed may be claimed, and released, anew, and a reorganisation may
        put another job in its place."""
        leases = sum(step.state is JobState.CLAIMING for step in self.journal.transitions(job_id))
        return f"{deed}:{job_id}:{self._job(job_id).spec_hash[:4].hex()}:{leases}"

    def _job(self, job_id: JobId) -> Job:
        return self.journal.job(job_id)
