"""What the chain asks this node to bring to light of a committed job: its output, in time, or the bond is lost.

Whatever was committed is in the node's store until long after the window. A question is read from the chain itself,
at the start for every committed job and then as it is asked; the answer's transaction is journalled by its sender, so a
kill at any point costs nothing but time. While a question is open, no new job is claimed: gas and attention go there.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Final

from openlora.contracts import Outputs, Question, QuestionAsked, QuestionKind
from openlora.node.chain.client import ChainClient
from openlora.node.chain.sender import Sender
from openlora.node.content import Content
from openlora.node.errors import ChainError, ContentError, JournalUnwritable, Reverted
from openlora.node.job import JobId, JobState
from openlora.node.journal import Journal
from openlora.node.tasks import task_group

log = logging.getLogger(__name__)

RETRY_S: Final = 2.0
OUTPUTS: Final = (QuestionKind.PUBLICATION, QuestionKind.OUTPUT)


@dataclass(slots=True)
class Questions:
    """Answers for one operator: `apply` hears the chain's events, `run` answers until cancelled."""

    outputs: Outputs
    chain: ChainClient
    journal: Journal
    sender: Sender
    content: Content
    operator: str
    retry_s: float = RETRY_S
    _open: dict[JobId, int] = field(default_factory=dict)  # asked and not answered, in their order: how often each was
    _under_way: set[JobId] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pending(self) -> bool:
        """Whether something is asked of this node that it has not answered."""
        return bool(self._open)

    def apply(self, event: object) -> None:
        """Takes note of one of the chain's events."""
        if isinstance(event, QuestionAsked) and event.node == self.operator:
            self._ask(JobId(event.job_id))

    async def run(self) -> None:
        """Raises JournalError but for a full disk, which may pass."""
        for job in self.journal.jobs(JobState.COMMITTED):
            self._ask(job.id)
        async with task_group() as group:
            while True:
                self._changed.clear()
                for job_id in [job_id for job_id in self._open if job_id not in self._under_way]:
                    self._under_way.add(job_id)
                    group.create_task(self._answer(job_id), name=f"question-{job_id}")
                await self._changed.wait()

    def _ask(self, job_id: JobId) -> None:
        self._open[job_id] = self._open.get(job_id, 0) + 1
        self._changed.set()

    async def _answer(self, job_id: JobId) -> None:
        """Until there is no question any more: answered, by whomever, or too late. What is asked during a look, which
        may have seen the chain as it was before, is looked for once more."""
        looked = 0
        try:
            while looked != (asked := self._open[job_id]):
                if await self._is_open(job_id):
                    await asyncio.sleep(self.retry_s)
                else:
                    looked = asked
        finally:
            self._under_way.discard(job_id)
        del self._open[job_id]
        self._changed.set()

    async def _is_open(self, job_id: JobId) -> bool:
        """Answers what is asked, if anything. True when that has to be tried again."""
        try:
            question = await self._question(job_id)
            if question.kind not in OUTPUTS or question.node != self.operator:
                if question.kind is QuestionKind.CHUNK and question.node == self.operator:
                    log.error("event=question_unanswerable job_id=%d kind=chunk", job_id)
                return False
            await self._publish(job_id, question)
        except Reverted as refusal:
            log.error("event=publication_refused job_id=%d reason=%r", job_id, str(refusal))
            return refusal.name not in ("TooLate", "NoQuestion")
        except (ChainError, ContentError, JournalUnwritable) as error:
            log.warning("event=question_waits job_id=%d reason=%r", job_id, str(error))
            return True
        return False

    async def _question(self, job_id: JobId) -> Question:
        """As of the newest block or the one that we have read up to: a server may lag behind that."""
        asked = self.outputs.question(job_id)
        newest = await self.chain.call(asked)
        cursor = self.journal.cursor
        if newest.kind is not QuestionKind.NONE or cursor is None:
            return newest
        return await self.chain.call(asked, block=cursor.number)

    async def _publish(self, job_id: JobId, question: Question) -> None:
        output = await self.content.get_document(question.digest)
        await self.sender.send(f"publish:{job_id}:{question.asked_at}", self.outputs.publish_output(job_id, output))
        log.info("event=output_published job_id=%d kind=%s bytes=%d", job_id, question.kind.name.lower(), len(output))
