"""The screen of a node, drawn from a snapshot: what an operator must see is seen, at every width."""

import io
from typing import Any

import msgspec
import pytest
from rich.console import Console

from openlora.node.cli.status_screen import Moment, screen
from openlora.node.telemetry import snapshot as shown
from openlora.node.telemetry.views import JobView

NOW_S = 100_000.0
OPERATOR = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"

STAKE = shown.Stake(
    stake_wei=str(50 * 10**18),
    bonded_wei=str(2 * 10**18),
    free_wei=str(48 * 10**18),
    bond_wei=str(10**18),
    gas_wei="1000",
    gas_price_wei="1",
    payable_jobs=12,
    withdrawable_wei=str(3 * 10**17),
    read_at_s=NOW_S,
)
BUSY = shown.Snapshot(
    node=shown.Node(
        operator=OPERATOR,
        hot_key=OPERATOR,
        peer_id="12D3",
        addresses=(),
        version="0.1.0",
        started_at_s=NOW_S - 5_400,
    ),
    chain=shown.Chain(chain_id=31337, block_number=1_234_567, answers=True),
    model=shown.Model(name="smollm2\x1b[2J", base_id="0x01", dtype="bfloat16", max_context_tokens=2048),
    stake=STAKE,
    engine=shown.Engine(
        alive=True,
        backend="cpu-amx",
        profile=1,
        running_requests=3,
        waiting_requests=1,
        kv_capacity_tokens=32_768,
        kv_free_tokens=8_192,
        kv_cached_tokens=0,
        cache_hit_tokens=64,
        preemptions_total=0,
        drafted_tokens=0,
        accepted_tokens=0,
        generated_tokens=12_345,
        steps_total=100,
    ),
    queue=shown.Queue(
        waiting_jobs=2,
        active_jobs=3,
        capacity_jobs=8,
        draining=False,
        skipped_jobs={"price_too_low": 7, "taken": 2},
        live=(shown.LiveJob(job_id=41, state="claimed", recipe_id=3, changed_at_s=NOW_S, lease_ends_at_s=NOW_S + 40),),
    ),
    jobs_by_state={"finalized": 30, "lost": 1},
    adapters=shown.Adapters(
        slots=shown.Tier(total_adapters=4, digests=()), disk=shown.Tier(total_adapters=9, digests=()), disk_bytes=1
    ),
    machine=shown.Machine(
        cpu="a processor",
        cpu_cores=2,
        load_1m_processes=1.5,
        ram_bytes=24 << 30,
        ram_available_bytes=6 << 30,
        disk_free_bytes=100 << 30,
        gpus=(shown.Gpu(index=0, name="NVIDIA L4", driver="550", memory_bytes=24 << 30, memory_used_bytes=20 << 30),),
    ),
    network=shown.Network(
        alive=True, seen_nodes=3, connected_peers=2, fetched_bytes=10**6, served_bytes=0, refused_messages={}
    ),
    earnings=shown.Earnings(paid_wei=str(2 * 10**18), paid_by_role_wei={"node": str(2 * 10**18)}, payments_total=30),
    alerts=(
        shown.Alert(
            code=shown.AlertCode.LEASE_ENDING,
            severity=shown.Severity.WARNING,
            message="job 41 is claimed and its lease ends soon",
            job_id=41,
            due_at_s=NOW_S + 40,
        ),
        shown.Alert(
            code=shown.AlertCode.LOW_GAS,
            severity=shown.Severity.WARNING,
            message="the hot key can pay for 12 more jobs; send it gas money",
        ),
    ),
)


def job(number: int, state: str, changed_at_s: float, skip_code: str | None = None) -> Any:
    return msgspec.to_builtins(
        JobView(
            job_id=number,
            state=state,
            skip_code=skip_code,
            reason=None,
            recipe_id=3,
            client="0x" + "0a" * 20,
            claim_block_number=None,
            changed_at_s=changed_at_s,
            recipe=(),
            max_fee_wei="1",
            fee_wei=None,
            in_tokens=None,
            out_tokens=None,
        )
    )


JOBS = (job(41, "claimed", NOW_S - 5), job(40, "skipped", NOW_S - 65, "taken"))


def drawn(state: shown.Snapshot, width: int = 100, tokens_per_s: float | None = 250.0) -> str:
    plain: Any = msgspec.to_builtins(state)
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    console.print(screen(Moment(plain, JOBS, NOW_S, tokens_per_s), width))
    out: Any = console.file
    return str(out.getvalue())


@pytest.mark.parametrize("width", [50, 80, 100, 160])
def test_what_an_operator_must_see(width: int):
    text = drawn(BUSY, width)
    for seen in (
        *(OPERATOR, "needs a look", "block 1,234,567", "up 1 h 30 min"),
        *("lease ends soon", "in 40 s", "can pay for 12 more jobs"),
        *("3 running, 1 waiting", "24,576 of 32,768", "4 loaded, 9 on disk"),
        *("7 price_too_low", "2 taken", "30 finalized", "3 of 8 jobs", "lease ends in 40 s"),
        *("2 OLRA", "0.3 OLRA", "for 12 more jobs", "20 of 24 GiB"),
    ):
        assert seen in " ".join(text.replace("│", " ").split()) or seen in text, seen
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text, "a stranger's name steers no terminal"


def test_speed_is_told_from_the_second_look_on():
    assert "250 tokens/s" in drawn(BUSY)
    assert "tokens/s" not in drawn(BUSY, tokens_per_s=None)


def replaced(**changes: Any) -> shown.Snapshot:
    return msgspec.structs.replace(BUSY, **changes)


def test_health_is_one_word():
    assert "● healthy" in drawn(replaced(alerts=()))
    draining = msgspec.structs.replace(BUSY.queue, draining=True)
    assert "● draining, 1 to finish" in drawn(replaced(queue=draining))
    assert "● drained" in drawn(replaced(queue=msgspec.structs.replace(draining, live=())))
    down = shown.Alert(code=shown.AlertCode.ENGINE_DOWN, severity=shown.Severity.CRITICAL, message="it restarts")
    stopped = msgspec.structs.replace(BUSY.engine, alive=False)
    assert "● in trouble" in drawn(replaced(alerts=(down,), engine=stopped))


def test_what_is_not_known_yet_is_not_invented():
    silent = msgspec.structs.replace(BUSY.network, alive=False)
    text = drawn(replaced(stake=None, network=silent))
    assert "not known yet" in text
    assert "is being restarted" in text
