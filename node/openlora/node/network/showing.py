"""A node shows the jobs it works on to those who pay for them.

On "/openlora/1/infer": `Watch` → `Progress`, until the node is done with the job; or a refusal. The job's client signs
for one peer id, so whoever else sees the request cannot watch with it. A private job's client brings its key in the
same request: the first reply says that the node has taken it.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Final

import base58
import msgspec
from eth_account.signers.local import LocalAccount

from openlora.node.errors import JournalError, RequestError
from openlora.node.job import Job, JobId
from openlora.node.journal import Journal
from openlora.node.malformed import MALFORMED
from openlora.node.network.rates import PeerRates, RateLimits
from openlora.node.private.brought import BroughtKeys
from openlora.node.private.sealing import WRAPPED_BYTES
from openlora.node.progress import Progress, progress
from openlora.node.streams import JobStreams
from openlora.typed_data import Domain, InvalidSignature, sign_digest, signer_of, watch_job_digest

INFER: Final = "/openlora/1/infer"
MAX_PIECE_CHARACTERS: Final = 15_000  # of text in one reply: at most 60 KB in UTF-8


class Watch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="watch"):
    """Show me this job. `signature` is its client's, over WatchJob(jobId, the asker's peer id). `wrapped_key` opens a
    private job at the node that is asked."""

    job_id: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    signature: Annotated[bytes, msgspec.Meta(min_length=65, max_length=65)]
    wrapped_key: Annotated[bytes, msgspec.Meta(min_length=WRAPPED_BYTES, max_length=WRAPPED_BYTES)] | None = None


def signed_watch(domain: Domain, job_id: int, peer: str, key: LocalAccount, wrapped_key: bytes | None = None) -> Watch:
    """The request of the job's client, for its own peer. `domain` is JobQueue's."""
    return Watch(job_id, sign_digest(bytes(key.key), _digest(domain, job_id, peer)), wrapped_key)


@dataclass(frozen=True, slots=True)
class ShowingLimits:
    watchers: int = 48  # at once, of all jobs together
    watchers_per_peer: int = 24
    watchers_per_job: int = 4
    rates: RateLimits = field(default_factory=lambda: RateLimits(per_s=4.0, burst=64))


class Showing:
    """Answers `Watch`: `network.handle(INFER, showing.answer)`. `domain` is JobQueue's."""

    def __init__(
        self,
        journal: Journal,
        streams: JobStreams,
        domain: Domain,
        keys: BroughtKeys,
        limits: ShowingLimits = ShowingLimits(),
    ) -> None:
        self._journal, self._streams, self._domain, self._keys = journal, streams, domain, keys
        self._limits = limits
        self._rates = PeerRates(limits.rates)
        self._watchers: list[tuple[str, int]] = []  # peer, job

    async def answer(self, peer: str, body: bytes) -> AsyncIterator[bytes]:
        """Refuses with a RequestError: rate_limited, malformed, busy, unknown_job, not_your_job, not_private, or
        bad_key."""
        self._rates.check(peer)
        watch = _decode(body)
        self._check_room(peer, watch.job_id)
        job = self._job_of_client(peer, watch)
        if watch.wrapped_key is not None:
            self._keys.bring(job, watch.wrapped_key)
        watcher = (peer, watch.job_id)
        self._watchers.append(watcher)
        try:
            async with aclosing(progress(self._journal, self._streams, JobId(watch.job_id))) as steps:
                async for step in steps:
                    for piece in _pieces(step):
                        yield msgspec.msgpack.encode(piece)
        finally:
            self._watchers.remove(watcher)

    def _check_room(self, peer: str, job_id: int) -> None:
        of_peer = sum(watcher[0] == peer for watcher in self._watchers)
        of_job = sum(watcher[1] == job_id for watcher in self._watchers)
        limits = self._limits
        if (
            len(self._watchers) >= limits.watchers
            or of_peer >= limits.watchers_per_peer
            or of_job >= limits.watchers_per_job
        ):
            raise RequestError("busy", "the node shows as many answers as it can; ask again later")

    def _job_of_client(self, peer: str, watch: Watch) -> Job:
        try:
            job = self._journal.job(JobId(watch.job_id))
        except JournalError:
            raise RequestError("unknown_job", f"the node does not know job {watch.job_id}") from None
        try:
            signer = signer_of(_digest(self._domain, watch.job_id, peer), watch.signature)
        except InvalidSignature:
            signer = None
        if signer != job.spec.client.lower():
            raise RequestError("not_your_job", f"job {watch.job_id} is not yours: its client has not signed for you")
        return job


def _decode(body: bytes) -> Watch:
    try:
        return _request_decoder.decode(body)
    except MALFORMED:
        raise RequestError("malformed", "this is no request that the node knows") from None


def _pieces(step: Progress) -> list[Progress]:
    text = step.text
    if text is None or len(text) <= MAX_PIECE_CHARACTERS:
        return [step]
    starts = range(0, len(text), MAX_PIECE_CHARACTERS)
    return [Progress(step.state, text[start : start + MAX_PIECE_CHARACTERS]) for start in starts]


def _digest(domain: Domain, job_id: int, peer: str) -> bytes:
    return watch_job_digest(domain, job_id, base58.b58decode(peer))


_request_decoder: Final = msgspec.msgpack.Decoder(Watch)
