"""From an answer to money: the receipt, its one signature, the commit, and finalizing what the window has passed.

A receipt is journalled before it is signed and signed before it is sent, so a restart at any point sends the same
bytes, and no job ever gets two. Finalizing belongs to nobody: anyone may do it, and batches that overlap do not fail
each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress

from openlora.contracts import JobQueue, JobSpec, Receipt, eip712
from openlora.contracts import Settlement as JobSettlement
from openlora.node import documents
from openlora.node.chain.sender import Sender
from openlora.node.chain.types import TxReceipt
from openlora.node.documents import OutputDocument
from openlora.node.job import Job
from openlora.node.journal import Journal
from openlora.typed_data import Domain, sign_digest

NO_ROOT: Final = bytes(32)  # neither fingerprints nor data attribution in this profile
FINISH_REASONS: Final = {"stop": 0, "length": 1}


@dataclass(frozen=True, slots=True)
class Signer:
    """Makes and signs receipts of one lane for one operator. Whoever signs has journalled the digest before."""

    domain: Domain  # JobQueue's or Sessions'
    operator: ChecksumAddress
    hot_key: LocalAccount
    engine_profile: int  # as in `openlora.node.engine.backends`

    def receipt(
        self, spec: JobSpec, output: OutputDocument, work_id: bytes, spec_hash: bytes, seed: int, finished_at: int
    ) -> Receipt:
        """What the node stands by: counts, digests, seed and fee."""
        usage = output.usage
        return Receipt(
            work_id=work_id,
            node=self.operator,
            recipe_id=spec.recipe_id,
            spec_hash=spec_hash,
            input_digest=spec.input_digest,
            output_digest=documents.digest(documents.encode(output)),
            in_tokens=usage.prompt_tokens,
            out_tokens=usage.completion_tokens,
            seed=seed,
            fingerprint_root=NO_ROOT,
            data_attr_root=NO_ROOT,
            engine_profile=self.engine_profile,
            finish_reason=FINISH_REASONS[output.finish_reason],
            finished_at=finished_at,
            fee=eip712.fee_wei(spec, usage.prompt_tokens, usage.completion_tokens),
        )

    def sign(self, receipt_digest: bytes) -> bytes:
        return sign_digest(bytes(self.hot_key.key), receipt_digest)


@dataclass(frozen=True, slots=True)
class Settlement:
    """The queue lane's: signs, and sends through the sole owner of the hot key's nonce."""

    queue: JobQueue
    signer: Signer
    journal: Journal
    sender: Sender

    def receipt(self, job: Job, output: OutputDocument, output_digest: bytes, finished_at: int) -> Receipt:
        """What this node stands by for a claimed job: counts, digests, seed and fee. `output_digest` is that of what is
        stored: the document, or a private job's sealed one."""
        assert job.seed is not None, "only a claimed job has an answer"
        work_id = eip712.work_id(self.queue.address, job.id)
        receipt = self.signer.receipt(job.spec, output, work_id, job.spec_hash, job.seed, finished_at)
        return replace(receipt, output_digest=output_digest)

    def sign(self, job: Job, receipt: Receipt) -> Job:
        """Fixes and signs the job's one receipt: → COMMITTING. Raises JournalError for a second, different one."""
        digest = eip712.receipt_digest(self.signer.domain, receipt)
        self.journal.record_receipt(job.id, digest, msgspec.json.encode(receipt))
        return self.journal.record_signature(job.id, digest, self.signer.sign(digest))

    async def commit(self, job: Job) -> TxReceipt:
        """Sends a job's receipt, signing it first where a crash came between, or waits for what was sent before.

        Raises Reverted when the chain refuses it.
        """
        receipt = _receipt(job)
        self.sign(job, receipt)
        call = self.queue.commit(job.id, job.spec, eip712.answer_of(receipt))
        return await self.sender.send(f"commit:{job.id}", call)

    async def finalize(self, jobs: Sequence[Job], attempt: int = 1) -> None:
        """Pays committed jobs whose windows have passed, in one transaction. Raises Reverted; try again then as another
        `attempt`."""
        batch = sorted(jobs, key=lambda job: (job.spec.recipe_id, job.id))
        ids = tuple(job.id for job in batch)
        call = self.queue.finalize_batch(ids, tuple(_settlement(job) for job in batch))
        await self.sender.send(f"finalize:{','.join(map(str, ids))}:{attempt}", call)


def _settlement(job: Job) -> JobSettlement:
    assert job.signed is not None, "a committed job has its receipt"
    return eip712.settlement_of(job.spec, _receipt(job), job.signed.digest)


def _receipt(job: Job) -> Receipt:
    assert job.signed is not None, "the job has a recorded receipt"
    return msgspec.json.decode(job.signed.receipt, type=Receipt)
