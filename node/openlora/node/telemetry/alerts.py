"""What an operator should look at now."""

from collections.abc import Iterator
from dataclasses import dataclass

from openlora.node.telemetry.snapshot import (
    Alert,
    AlertCode,
    Chain,
    Engine,
    LiveJob,
    Machine,
    Network,
    Queue,
    Severity,
    Stake,
)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Below these an operator is told."""

    lease_left_s: float = 45.0
    payable_jobs: int = 20
    disk_free_bytes: int = 2 << 30


@dataclass(frozen=True, slots=True)
class Facts:
    """What alerts are judged by."""

    chain: Chain
    stake: Stake | None
    engine: Engine
    network: Network
    machine: Machine
    queue: Queue
    broker_refusal: str


def alerts(facts: Facts, limits: Thresholds, now_s: float) -> tuple[Alert, ...]:
    """The alerts of this moment, those that cost most first. One text stays the same while its cause does."""
    found = (*_parts(facts), *_money(facts, limits), *_leases(facts, limits, now_s))
    return tuple(sorted(found, key=lambda alert: alert.severity is not Severity.CRITICAL))


def _parts(facts: Facts) -> Iterator[Alert]:
    if not facts.engine.alive:
        yield _critical(AlertCode.ENGINE_DOWN, "the inference engine is restarting; the log says why it ended")
    if not facts.network.alive:
        yield _critical(AlertCode.NETWORK_DOWN, "the network process is restarting; the log says why it ended")
    if not facts.chain.answers:
        yield _critical(AlertCode.CHAIN_SILENT, "no RPC answers: no job is claimed or committed; check chain.rpc_urls")
    if facts.chain.clock_ahead_s:
        where = "ahead of" if facts.chain.clock_ahead_s > 0 else "behind"
        yield Alert(
            code=AlertCode.CLOCK_OFF,
            severity=Severity.WARNING,
            message=f"this machine's clock is {where} the chain's: let it keep time with `timedatectl set-ntp true`",
        )
    if facts.broker_refusal:
        yield Alert(
            code=AlertCode.BROKER_REFUSES,
            severity=Severity.WARNING,
            message=f"the MQTT broker refuses what this node publishes ({facts.broker_refusal}): its ACL must let the"
            " node's user write the node's topics",
        )


def _money(facts: Facts, limits: Thresholds) -> Iterator[Alert]:
    if facts.machine.disk_free_bytes < limits.disk_free_bytes:
        wanted_mib = limits.disk_free_bytes >> 20
        yield _critical(
            AlertCode.LOW_DISK, f"less than {wanted_mib:,} MiB are free: no job is claimed; free disk space"
        )
    if (stake := facts.stake) is None:
        return
    if int(stake.free_wei) < int(stake.bond_wei):
        held = "until a job is over" if int(stake.bonded_wei) else "until you stake more"
        severity = Severity.WARNING if int(stake.bonded_wei) else Severity.CRITICAL
        yield Alert(
            code=AlertCode.LOW_STAKE,
            severity=severity,
            message=f"the free stake does not cover the bond of another claim {held}",
        )
    if stake.payable_jobs < limits.payable_jobs:
        yield Alert(
            code=AlertCode.LOW_GAS,
            severity=Severity.WARNING if stake.payable_jobs else Severity.CRITICAL,
            message=f"the hot key can pay for {stake.payable_jobs} more jobs; send it gas money",
        )


def _leases(facts: Facts, limits: Thresholds, now_s: float) -> Iterator[Alert]:
    for job in facts.queue.live:
        if job.lease_ends_at_s is not None and job.lease_ends_at_s - now_s < limits.lease_left_s:
            yield _lease_ending(job, job.lease_ends_at_s)


def _lease_ending(job: LiveJob, ends_at_s: float) -> Alert:
    return Alert(
        code=AlertCode.LEASE_ENDING,
        severity=Severity.WARNING,
        message=f"job {job.job_id} is {job.state} and its lease ends soon: then its bond is lost",
        job_id=job.job_id,
        due_at_s=ends_at_s,
    )


def _critical(code: AlertCode, message: str) -> Alert:
    return Alert(code=code, severity=Severity.CRITICAL, message=message)
