"""Text of running jobs, for whoever listens: each reader gets everything from the first character on."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator

KEPT_AFTER_END = 256


class _Stream:
    def __init__(self, run: int) -> None:
        self.run = run
        self.parts: list[str] = []
        self.ended = False
        self.changed = asyncio.Event()

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class JobStreams:
    """One stream a job, bounded by the job's own token limit; the last 256 ended ones can still be read."""

    def __init__(self) -> None:
        self._streams: OrderedDict[int, _Stream] = OrderedDict()

    def open(self, job_id: int) -> None:
        """Starts a job's stream, or starts it over when the job runs again."""
        previous = self._streams.pop(job_id, None)
        self._streams[job_id] = _Stream(1 if previous is None else previous.run + 1)
        if previous is not None:
            previous.ended = True
            previous.notify()

    def publish(self, job_id: int, text: str) -> None:
        if text:
            stream = self._streams[job_id]
            stream.parts.append(text)
            stream.notify()

    def end(self, job_id: int) -> None:
        stream = self._streams.get(job_id)
        if stream is not None:
            stream.ended = True
            stream.notify()
        ended = [known for known, stream in self._streams.items() if stream.ended]
        for known in ended[:-KEPT_AFTER_END]:
            del self._streams[known]

    def run_of(self, job_id: int) -> int | None:
        """Which attempt at the job the stream shows, from 1; None for a job that has no stream."""
        stream = self._streams.get(job_id)
        return None if stream is None else stream.run

    async def read(self, job_id: int) -> AsyncIterator[str]:
        """The job's text in pieces until it ends; nothing for a job that has no stream."""
        stream = self._streams.get(job_id)
        read = 0
        while stream is not None:
            changed = stream.changed
            piece = "".join(stream.parts[read:])
            read = len(stream.parts)
            if piece:
                yield piece
            elif stream.ended:
                return
            else:
                await changed.wait()
