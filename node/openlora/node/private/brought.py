"""The keys that clients have brought to this node, in memory alone: after a restart they have to be brought again."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from eth_typing import ChecksumAddress

from openlora.contracts import JobFlag
from openlora.node.errors import RequestError
from openlora.node.job import Job, JobId, JobState
from openlora.node.private.sealing import Recipient, unwrap
from openlora.typed_data import Domain

MAX_KEYS: Final = 4096  # the oldest goes first; each is for a job that its client has paid to submit
NEEDED: Final = frozenset({JobState.SEEN, JobState.SKIPPED, JobState.LOST, JobState.CLAIMING, JobState.CLAIMED})


@dataclass(frozen=True, slots=True)
class BroughtKeys:
    """One document key a job, the first that came. `domain` is JobQueue's; `arrived` is told of the job."""

    private: X25519PrivateKey = field(repr=False)
    domain: Domain
    operator: ChecksumAddress
    arrived: Callable[[JobId], None]
    _keys: OrderedDict[bytes, bytes] = field(default_factory=OrderedDict, repr=False)  # by spec hash
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    def bring(self, job: Job, wrapped: bytes) -> None:
        """Takes a key that the job's client has sent, while there is use for one. A second changes nothing: the job may
        have been claimed for what the first opens. Raises RequestError."""
        if not job.spec.flags & JobFlag.PRIVATE:
            raise RequestError("not_private", f"job {job.id} is not private; watch it without a key")
        recipient = Recipient(self.domain.chain_id, self.domain.verifying_contract, job.id, self.operator)
        key = unwrap(wrapped, self.private, recipient)
        if job.spec_hash in self._keys or job.state not in NEEDED:
            return
        if len(self._keys) >= MAX_KEYS:
            self._keys.popitem(last=False)
        self._keys[job.spec_hash] = key
        self._came.set()
        self.arrived(job.id)

    def of(self, job: Job) -> bytes | None:
        return self._keys.get(job.spec_hash)

    async def wait(self, job: Job) -> bytes:
        """The job's key, as soon as it is here."""
        while (key := self.of(job)) is None:
            self._came.clear()
            await self._came.wait()
        return key

    def forget(self, job: Job) -> None:
        self._keys.pop(job.spec_hash, None)
