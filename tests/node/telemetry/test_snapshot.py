"""What a node says of itself is what its journal, its engine and the chain say."""

import asyncio
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from openlora.contracts import Paid, Role
from openlora.node.hardware import Gpu, ram_available_bytes
from openlora.node.job import JobId, JobState, SkipCode
from openlora.node.tasks import running
from openlora.node.telemetry import observer as observer_module
from openlora.node.telemetry import snapshot as shown
from openlora.node.telemetry.alerts import Facts, Thresholds, alerts
from openlora.node.telemetry.snapshot import AlertCode, Severity, Snapshot
from tests.node.facts import OPERATOR, RIVAL, claimed, committed, finalized, submitted
from tests.node.telemetry.scene import CHAIN_ID, RICH, observed

UNITS = ("_s", "_bytes", "_tokens", "_wei", "_jobs", "_requests", "_total", "_adapters", "_nodes", "_peers", "_cores")
UNITS += ("_messages", "_percent", "_processes", "jobs_by_state", "_number", "_version", "_id", "index", "profile")


def paid(role: Role, amount: int, payee: str = OPERATOR) -> Paid:
    return Paid(payee=payee, role=role, recipe_id=1, amount=amount)


async def test_the_snapshot_is_what_the_parts_say(tmp_path: Path):
    gpu = Gpu(0, "NVIDIA L4", 24 << 30, "550", 1 << 30)
    async with observed(tmp_path, gpus=(gpu,)) as scene, running(scene.observer.run(), "observer"):
        scene.apply(submitted(1), submitted(2), submitted(3))
        scene.journal.move(JobId(3), JobState.SKIPPED, skip=SkipCode.LOW_DISK)
        scene.apply(claimed(1), claimed(2, RIVAL))
        scene.loaded.held = [b"\x01" * 32, b"\x02" * 32]
        await scene.purse.asked.wait()
        async with asyncio.timeout(5):
            while not (state := await scene.observer.snapshot()).machine.gpus or state.stake is None:
                pass
    assert (state.node.operator, state.chain.chain_id, state.chain.block_number) == (OPERATOR, CHAIN_ID, 2)
    assert state.stake == RICH
    assert (state.engine.alive, state.engine.running_requests) == (True, 0)
    assert state.jobs_by_state == {"claimed": 1, "skipped": 2}
    assert state.queue.skipped_jobs == {"low_disk": 1, "taken": 1}
    assert [(job.job_id, job.state, job.lease_ends_at_s) for job in state.queue.live] == [(1, "claimed", 2_000_000_000)]
    assert state.adapters.slots == shown.Tier(total_adapters=2, digests=("0x" + "02" * 32, "0x" + "01" * 32))
    assert state.machine.gpus[0].memory_used_bytes == 1 << 30
    assert state.machine.ram_available_bytes == pytest.approx(ram_available_bytes(), rel=0.5)
    assert msgspec.json.decode(msgspec.json.encode(state), type=Snapshot) == state


async def test_earnings_follow_the_chain_to_the_wei_and_back(tmp_path: Path):
    async with observed(tmp_path) as scene:
        large = 2**96 - 3  # a Vault counts in 96 bits
        scene.apply(submitted(1), claimed(1), committed(1))
        scene.apply(
            finalized(1), paid(Role.NODE, large), paid(Role.NODE, 2), paid(Role.ADAPTER, 3), paid(Role.NODE, 9, RIVAL)
        )
        earned = (await scene.observer.snapshot()).earnings
        assert earned.paid_by_role_wei == {"adapter": "3", "node": str(large + 2)}
        assert (earned.paid_wei, earned.payments_total) == (str(large + 5), 3)
        scene.reorganise(depth=1)
        assert (await scene.observer.snapshot()).earnings.paid_wei == "0"


async def test_a_silent_child_costs_its_figures_and_not_the_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(observer_module, "CHILD_TIMEOUT_S", 0.05)
    async with observed(tmp_path) as scene:
        scene.network.silent = True
        assert (await scene.observer.snapshot()).engine.alive
        scene.engine.detach()
        scene.network.alive = False
        state = await scene.observer.snapshot()
        assert {alert.code for alert in state.alerts} == {AlertCode.ENGINE_DOWN, AlertCode.NETWORK_DOWN}


async def test_a_silent_chain_is_an_alert_and_the_old_figures_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(observer_module, "CHAIN_EVERY_S", 0.01)
    async with observed(tmp_path) as scene, running(scene.observer.run(), "observer"), asyncio.timeout(5):
        while (await scene.observer.snapshot()).stake is None:
            await scene.purse.asked.wait()
        scene.purse.silent = True
        while (state := await scene.observer.snapshot()).chain.answers:
            pass
    assert (state.stake, [alert.code for alert in state.alerts]) == (RICH, [AlertCode.CHAIN_SILENT])


async def test_a_look_that_fails_in_no_expected_way_is_logged_and_the_next_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(observer_module, "CHAIN_EVERY_S", 0.01)
    async with observed(tmp_path) as scene:
        looks = asyncio.Semaphore(0)

        async def broken() -> shown.Stake:
            looks.release()
            raise ValueError("an RPC that answers nonsense")

        scene.observer.purse = broken
        async with running(scene.observer.run(), "observer"), asyncio.timeout(5):
            await looks.acquire()
            await looks.acquire()
    assert "observation_failed" in caplog.text


def change(part: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(part, **changes)


POOR = change(RICH, free_wei="0", bond_wei="1")
LEASED = shown.LiveJob(job_id=4, state="claimed", recipe_id=1, changed_at_s=0.0, lease_ends_at_s=100.0)


@pytest.mark.parametrize(
    ("part", "changes", "expected"),
    [
        ("stake", RICH, None),
        ("chain", {"clock_ahead_s": -40}, (AlertCode.CLOCK_OFF, Severity.WARNING)),
        ("broker_refusal", "Not authorized", (AlertCode.BROKER_REFUSES, Severity.WARNING)),
        ("stake", change(RICH, payable_jobs=12), (AlertCode.LOW_GAS, Severity.WARNING)),
        ("stake", change(RICH, payable_jobs=0), (AlertCode.LOW_GAS, Severity.CRITICAL)),
        ("stake", POOR, (AlertCode.LOW_STAKE, Severity.CRITICAL)),
        ("stake", change(POOR, bonded_wei="5"), (AlertCode.LOW_STAKE, Severity.WARNING)),
        ("machine", {"disk_free_bytes": 1}, (AlertCode.LOW_DISK, Severity.CRITICAL)),
        ("queue", {"live": (LEASED,)}, (AlertCode.LEASE_ENDING, Severity.WARNING)),
        ("queue", {"live": (change(LEASED, lease_ends_at_s=1_000.0),)}, None),
        ("queue", {"live": (change(LEASED, lease_ends_at_s=None),)}, None),
    ],
)
async def test_alerts(tmp_path: Path, part: str, changes: Any, expected: tuple[AlertCode, Severity] | None):
    async with observed(tmp_path) as scene:
        state = await scene.observer.snapshot()
    facts = {field.name: getattr(state, field.name) for field in fields(Facts)}
    facts[part] = change(facts[part], **changes) if isinstance(changes, dict) else changes
    found = alerts(Facts(**facts), Thresholds(), now_s=60.0)
    assert [(alert.code, alert.severity) for alert in found] == ([] if expected is None else [expected])


async def test_a_lease_ends_by_the_chains_clock(tmp_path: Path):
    async with observed(tmp_path) as scene:
        scene.apply(submitted(1), claimed(1))
        scene.now_s = 2_000_000_000 - 60  # whatever this machine's clock says
        assert (await scene.observer.snapshot()).alerts == ()
        scene.now_s += 30
        assert [alert.code for alert in (await scene.observer.snapshot()).alerts] == [AlertCode.LEASE_ENDING]


def numbers(kind: type) -> list[str]:
    """Names of the fields of a struct, and of the structs in it, that hold numbers."""
    found = []
    for name, hint in get_type_hints(kind).items():
        parts = get_args(hint) if isinstance(hint, UnionType) or get_args(hint) else (hint,)
        for part in parts:
            if isinstance(part, type) and issubclass(part, shown.Part):
                found += numbers(part)
            elif part in (int, float):
                found.append(name)
    return found


def test_every_number_has_its_unit_in_its_name():
    names = numbers(Snapshot)
    assert len(names) > 30
    assert [name for name in names if not name.endswith(UNITS)] == []
