"""What a node publishes over MQTT, and where: `<prefix>/<chain id>/<operator>/…`, all JSON.

    state         retained; the whole snapshot. The last will: `online` is false and `state` null.
    birth         retained; who speaks, signed by the hot key
    gpu/<n>       retained; one GPU
    adapters      retained; by tier
    earnings      retained
    alerts        retained; those standing, maybe none
    jobs/<id>     one job whenever its state changes

Every message carries the session of its agent and a number that rises by one with each message of the session, so a
reader sees what it missed, and by the session's birth who is speaking.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from openlora.node.job import Job
from openlora.node.telemetry import snapshot as shown
from openlora.node.telemetry.snapshot import Part, Snapshot

PREFIX: Final = "openlora/v1"


class Message(Part, frozen=True):
    """Root of all messages."""

    session: str  # 32 random bytes in hexadecimal, new with each start of the agent
    sequence_number: int  # from 1
    at_s: float  # when this was so, in unix seconds


class StateMessage(Message, frozen=True):
    online: bool
    dropped_messages: int  # changes of jobs that this session lost while the broker was away
    state: Snapshot | None  # None once the node is offline


class BirthMessage(Message, frozen=True):
    """`signature`: EIP-712, the hot key's, over TelemetryBirth(operator, session, startedAt) in `registry`'s domain."""

    operator: str
    hot_key: str  # its address, which `registry` knows as the operator's
    chain_id: int
    registry: str  # NodeRegistry
    started_at_s: int
    signature: str


class GpuMessage(Message, frozen=True):
    gpu: shown.Gpu


class AdaptersMessage(Message, frozen=True):
    adapters: shown.Adapters


class EarningsMessage(Message, frozen=True):
    earnings: shown.Earnings


class AlertsMessage(Message, frozen=True):
    alerts: tuple[shown.Alert, ...]


class JobPart(Part, frozen=True):
    """What is public of a job, and what this node decided."""

    job_id: int
    state: str
    skip_code: str | None
    reason: str | None  # why it failed
    recipe_id: int
    client: str
    claim_block_number: int | None
    changed_at_s: float

    @classmethod
    def of(cls, job: Job) -> "JobPart":
        return cls(
            job_id=job.id,
            state=str(job.state),
            skip_code=None if job.skip is None else str(job.skip),
            reason=job.reason,
            recipe_id=job.spec.recipe_id,
            client=job.spec.client,
            claim_block_number=job.claim.number if job.claim else None,
            changed_at_s=job.changed_at,
        )


class JobMessage(Message, frozen=True):
    job: JobPart


TOPICS: Final[dict[str, type[Message]]] = {
    "state": StateMessage,
    "birth": BirthMessage,
    "gpu/<n>": GpuMessage,
    "adapters": AdaptersMessage,
    "jobs/<jobId>": JobMessage,
    "earnings": EarningsMessage,
    "alerts": AlertsMessage,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where one node's topics lie."""

    chain_id: int
    operator: str
    prefix: str = PREFIX

    def topic(self, name: str) -> str:
        return f"{self.prefix}/{self.chain_id}/{self.operator.lower()}/{name}"


def encode(message: Message) -> bytes:
    return msgspec.json.encode(message)
