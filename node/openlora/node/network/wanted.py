"""What this node keeps for others: only what the chain names, so that nobody fills its disk for free."""

import time
from dataclasses import dataclass

from openlora.node.content import adapter_digest, document_cid
from openlora.node.errors import ContentError
from openlora.node.facts import ChainFacts
from openlora.node.job import JobState
from openlora.node.journal import Journal

UNANSWERED = (JobState.SEEN, JobState.SKIPPED, JobState.LOST)


@dataclass(frozen=True, slots=True)
class Wanted:
    """For `Keeper`: adapters registered for the base that is served, and inputs of jobs that wait for an answer."""

    facts: ChainFacts
    journal: Journal
    base_id: bytes

    async def __call__(self, cid: str) -> str | None:
        """Why the node wants `cid`, or None. Raises ChainError."""
        try:
            digest = adapter_digest(cid)
        except ContentError:  # one raw block, or no CID at all
            return self._input_of(cid)
        adapter = await self.facts.adapter(digest)
        usable = adapter.base_id == self.base_id and not adapter.deprecated and not adapter.taken_down
        return "a registered adapter" if usable else None

    def _input_of(self, cid: str) -> str | None:
        now_s = time.time()
        for job in self.journal.jobs(*UNANSWERED, newest_first=True):
            if job.spec.deadline > now_s and document_cid(job.spec.input_digest) == cid:
                return f"the input of job {job.id}"
        return None
