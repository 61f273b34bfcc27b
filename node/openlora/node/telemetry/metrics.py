"""The snapshot as Prometheus text. Engine figures carry vLLM's names, so that routers and dashboards made for it work.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from openlora.contracts import Role
from openlora.node.telemetry.snapshot import AlertCode, Snapshot

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


MAX_LORA: Final = "1024"  # vLLM's count of slots, by which routers see room; ours are bounded by bytes


def metrics(state: Snapshot, now_s: float) -> bytes:
    """One page of metrics, to be served as CONTENT_TYPE.

    Amounts are in wei and, as all Prometheus numbers, floats: good to 16 digits. /v1/state has the exact ones.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(state, now_s))
    return generate_latest(registry)


class _Page(Collector):
    def __init__(self, state: Snapshot, now_s: float) -> None:
        self._state, self._now_s = state, now_s

    def collect(self) -> Iterator[Metric]:
        yield from _engine(self._state)
        yield from _adapters(self._state, self._now_s)
        yield from _jobs(self._state)
        yield from _money(self._state)
        yield from _machine(self._state)
        yield from _alerts(self._state)


def _engine(state: Snapshot) -> Iterator[Metric]:
    engine, name = state.engine, {"model_name": state.model.name}
    used = 1 - engine.kv_free_tokens / engine.kv_capacity_tokens if engine.alive and engine.kv_capacity_tokens else 0.0
    yield _gauge("vllm:num_requests_running", "Requests in the engine's batch.", engine.running_requests, name)
    yield _gauge("vllm:num_requests_waiting", "Requests that wait for the engine.", engine.waiting_requests, name)
    yield _gauge("vllm:kv_cache_usage_perc", "KV cache in use; 1 is all of it.", used, name)
    yield _counter("vllm:num_preemptions", "Requests that gave way to others.", engine.preemptions_total, name)
    yield _counter("vllm:generation_tokens", "Tokens generated.", engine.generated_tokens, name)
    yield _counter("vllm:prefix_cache_hits", "Prompt tokens taken from the cache.", engine.cache_hit_tokens, name)
    yield _counter("vllm:spec_decode_num_draft_tokens", "Tokens computed on a guess.", engine.drafted_tokens, name)
    yield _counter("vllm:spec_decode_num_accepted_tokens", "Right guesses.", engine.accepted_tokens, name)
    yield _gauge("openlora_engine_up", "1 while there is an engine.", engine.alive)


def _adapters(state: Snapshot, now_s: float) -> Iterator[Metric]:
    """vLLM's gauge tells its routers in labels which adapters are loaded; its value is when that was so."""
    names = ",".join(digest.removeprefix("0x") for digest in state.adapters.slots.digests)
    labels = {"max_lora": MAX_LORA, "running_lora_adapters": names, "waiting_lora_adapters": ""}
    yield _gauge("vllm:lora_requests_info", "Adapters loaded, used last first, by digest.", now_s, labels)
    tiers = {"slots": state.adapters.slots.total_adapters, "disk": state.adapters.disk.total_adapters}
    yield _by("openlora_adapters", "Adapters, by tier.", "tier", tiers)
    yield _gauge("openlora_adapters_disk_bytes", "Verified adapters on disk.", state.adapters.disk_bytes)


def _jobs(state: Snapshot) -> Iterator[Metric]:
    yield _by("openlora_jobs", "Jobs of the journal, by state.", "state", state.jobs_by_state)
    yield _by("openlora_jobs_skipped", "Jobs passed over at present, by why.", "code", state.queue.skipped_jobs)
    yield _gauge("openlora_jobs_active", "Jobs under way here.", state.queue.active_jobs)
    yield _gauge("openlora_jobs_capacity", "Jobs that may be under way at once.", state.queue.capacity_jobs)
    leases = [job.lease_ends_at_s for job in state.queue.live if job.lease_ends_at_s is not None]
    yield _gauge("openlora_claims", "Claims with a running lease.", len(leases))
    if leases:
        yield _gauge("openlora_lease_ends_timestamp_seconds", "When the first lease ends.", min(leases))


def _money(state: Snapshot) -> Iterator[Metric]:
    paid = {role.name.lower(): 0.0 for role in Role}  # always, so that a node which was never paid shows it
    paid |= {role: float(amount) for role, amount in state.earnings.paid_by_role_wei.items()}
    yield _by("openlora_earnings_wei", "Token wei paid to the operator; a reorganisation lowers it.", "role", paid)
    if (stake := state.stake) is not None:
        yield _gauge("openlora_stake_wei", "Token wei at stake.", float(stake.stake_wei))
        yield _gauge("openlora_stake_free_wei", "Of it, bound by no claim.", float(stake.free_wei))
        yield _gauge("openlora_withdrawable_wei", "Token wei earned and not withdrawn.", float(stake.withdrawable_wei))
        yield _gauge("openlora_gas_wei", "The hot key's balance, in wei of the chain's coin.", float(stake.gas_wei))
        yield _gauge("openlora_payable_jobs", "Jobs that the hot key can pay gas for.", stake.payable_jobs)


def _machine(state: Snapshot) -> Iterator[Metric]:
    machine, network = state.machine, state.network
    yield _gauge("openlora_chain_up", "1 while an RPC answers.", state.chain.answers)
    yield _gauge("openlora_chain_block", "The block up to which events are applied.", state.chain.block_number or 0)
    yield _gauge("openlora_network_up", "1 while there is a network process.", network.alive)
    yield _gauge("openlora_network_peers", "Peers connected.", network.connected_peers)
    yield _gauge("openlora_disk_free_bytes", "Free where the state folder lies.", machine.disk_free_bytes)
    yield _gauge("openlora_ram_available_bytes", "RAM that new work can have.", machine.ram_available_bytes)
    yield _gauge("openlora_start_timestamp_seconds", "When the agent started.", state.node.started_at_s)
    used = {str(gpu.index): gpu.memory_used_bytes for gpu in machine.gpus}
    yield _by("openlora_gpu_memory_used_bytes", "GPU memory in use, by every process.", "gpu", used)
    yield _by("openlora_gpu_memory_bytes", "GPU memory.", "gpu", {str(g.index): g.memory_bytes for g in machine.gpus})


def _alerts(state: Snapshot) -> Iterator[Metric]:
    """Every code always, so that a rule can tell silence from health."""
    standing = {str(code): sum(alert.code is code for alert in state.alerts) for code in AlertCode}
    yield _by("openlora_alerts", "Standing alerts, by code.", "code", standing)


def _gauge(name: str, told: str, value: float, labels: Mapping[str, str] = NO_LABELS) -> Metric:
    gauge = GaugeMetricFamily(name, told, labels=tuple(labels))
    gauge.add_metric(tuple(labels.values()), value)
    return gauge


def _counter(name: str, told: str, value: float, labels: Mapping[str, str]) -> Metric:
    """`name` without the `_total` that the page adds."""
    counter = CounterMetricFamily(name, told, labels=tuple(labels))
    counter.add_metric(tuple(labels.values()), value)
    return counter


def _by(name: str, told: str, label: str, values: Mapping[str, float]) -> Metric:
    gauge = GaugeMetricFamily(name, told, labels=(label,))
    for key, value in values.items():
        gauge.add_metric((key,), value)
    return gauge
