"""The metrics page: names that routers know, numbers that are the snapshot's."""

from pathlib import Path

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from openlora.contracts import Paid, Role
from openlora.node.telemetry.metrics import metrics
from openlora.node.telemetry.snapshot import Snapshot
from tests.node.facts import OPERATOR, claimed, submitted
from tests.node.telemetry.scene import RICH, observed

NOW_S = 1_700_000_000.5


def samples(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(page.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def some_state(folder: Path) -> Snapshot:
    async with observed(folder) as scene:
        scene.apply(submitted(1), submitted(2))
        scene.apply(claimed(1), Paid(payee=OPERATOR, role=Role.NODE, recipe_id=1, amount=7))
        scene.loaded.held = [b"\x01" * 32, b"\x02" * 32]
        state = await scene.observer.snapshot()
    engine = msgspec.structs.replace(state.engine, running_requests=3, kv_capacity_tokens=1000, kv_free_tokens=250)
    return msgspec.structs.replace(state, engine=engine, stake=RICH)


async def test_engine_figures_have_the_names_and_labels_of_vllm(tmp_path: Path):
    page = samples(metrics(await some_state(tmp_path), NOW_S))
    model = (("model_name", "smollm2"),)
    assert page["vllm:num_requests_running", model] == 3
    assert page["vllm:num_requests_waiting", model] == 0
    assert page["vllm:kv_cache_usage_perc", model] == 0.75
    assert page["vllm:generation_tokens_total", model] == 0
    ((labels, value),) = [(dict(key[1]), value) for key, value in page.items() if key[0] == "vllm:lora_requests_info"]
    assert labels.keys() == {"max_lora", "running_lora_adapters", "waiting_lora_adapters"}
    assert labels["running_lora_adapters"] == f"{'02' * 32},{'01' * 32}"
    assert value == NOW_S


async def test_jobs_claims_money_and_alerts(tmp_path: Path):
    page = samples(metrics(await some_state(tmp_path), NOW_S))
    assert page["openlora_jobs", (("state", "claimed"),)] == 1
    assert page["openlora_jobs", (("state", "seen"),)] == 1
    assert page["openlora_claims", ()] == 1
    assert page["openlora_lease_ends_timestamp_seconds", ()] == 2_000_000_000
    assert page["openlora_earnings_wei", (("role", "node"),)] == 7
    assert page["openlora_earnings_wei", (("role", "adapter"),)] == 0
    assert page["openlora_stake_wei", ()] == 100
    assert page["openlora_payable_jobs", ()] == RICH.payable_jobs
    assert page["openlora_alerts", (("code", "low_gas"),)] == 0
    assert page["openlora_alerts", (("code", "lease_ending"),)] == 0


async def test_a_node_of_which_little_is_known_has_a_page_too(tmp_path: Path):
    state = await some_state(tmp_path)
    idle = msgspec.structs.replace(state.engine, alive=False, kv_free_tokens=0, kv_capacity_tokens=0)
    page = samples(metrics(msgspec.structs.replace(state, engine=idle, stake=None), NOW_S))
    assert page["openlora_engine_up", ()] == 0
    assert ("openlora_stake_wei", ()) not in page
