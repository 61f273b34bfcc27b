"""A job's progress at this node, as whoever watches it hears it: changes of state, and the answer as it comes."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

import msgspec

from openlora.node.errors import JournalError
from openlora.node.job import LIVE, JobId, JobState
from openlora.node.journal import Journal
from openlora.node.streams import JobStreams

POLL_S: Final = 0.1
UNKNOWN_JOB_WAIT_S: Final = 10.0  # a submission is mined before the follower has read its block
ENDED: Final = frozenset(JobState) - LIVE - {JobState.SEEN} | {JobState.COMMITTED}


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`text` is what was added to the answer; None begins it anew: the engine was restarted."""

    state: JobState
    text: str | None


async def until_known(journal: Journal, job_id: JobId) -> None:
    """Returns once the journal has the job; raises JournalError if it has not after some blocks' time."""
    for _ in range(int(UNKNOWN_JOB_WAIT_S / POLL_S)):
        try:
            journal.job(job_id)
        except JournalError:
            await asyncio.sleep(POLL_S)
        else:
            return
    journal.job(job_id)


async def progress(journal: Journal, streams: JobStreams, job_id: JobId) -> AsyncGenerator[Progress, None]:
    """From now until this node is done with the job; what there is of an answer comes whole. A reader that is slow gets
    larger pieces, and costs nobody else. Raises JournalError for an unknown job."""
    shown, run = "", None
    while True:
        state = journal.job(job_id).state
        if (current := streams.run_of(job_id)) is not None and current != run:
            if run is not None:
                yield Progress(state, None)
            run = current
            async for text in streams.read(job_id):
                yield Progress(journal.job(job_id).state, text)
        elif state != shown:
            shown = state
            yield Progress(state, "")
        elif state in ENDED:
            return
        else:
            await asyncio.sleep(POLL_S)
