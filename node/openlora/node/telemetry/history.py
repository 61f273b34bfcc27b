"""The last half hour in numbers, for graphs that are not empty when a page is opened."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from openlora.node.telemetry.snapshot import Part, Snapshot

EVERY_S: Final = 5.0
KEPT: Final = 360


class Sample(Part, frozen=True):
    """One moment; what a restarted engine or network process counts begins anew."""

    at_s: float
    cpu_load_processes: float  # of the last minute
    ram_used_bytes: int
    gpu_busy_percent: float | None  # of all GPUs that tell, on average
    gpu_memory_used_bytes: int
    kv_used_tokens: int
    kv_cached_tokens: int
    running_requests: int
    waiting_requests: int
    generated_tokens: int  # counts up
    cache_hit_tokens: int  # counts up
    loaded_adapters: int
    fetched_bytes: int  # counts up
    served_bytes: int  # counts up


class HistoryView(Part, frozen=True):
    """Samples, oldest first, as one list a field: `columns["at_s"][i]` belongs to `columns["running_requests"][i]`."""

    every_s: float
    columns: dict[str, list[float | None]]


@dataclass(slots=True)
class History:
    """Owns the samples of this run of the agent."""

    observe: Callable[[], Awaitable[Snapshot]]
    clock: Callable[[], float]
    every_s: float = EVERY_S
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=KEPT))

    async def run(self) -> None:
        """Samples until cancelled."""
        while True:
            self.samples.append(sample(await self.observe(), self.clock()))
            await asyncio.sleep(self.every_s)

    def view(self) -> HistoryView:
        columns = {name: [getattr(moment, name) for moment in self.samples] for name in Sample.__struct_fields__}
        return HistoryView(every_s=self.every_s, columns=columns)


def sample(state: Snapshot, at_s: float) -> Sample:
    engine, machine = state.engine, state.machine
    return Sample(
        at_s=at_s,
        cpu_load_processes=machine.load_1m_processes,
        ram_used_bytes=max(0, machine.ram_bytes - machine.ram_available_bytes),
        gpu_busy_percent=_mean([gpu.busy_percent for gpu in machine.gpus if gpu.busy_percent is not None]),
        gpu_memory_used_bytes=sum(gpu.memory_used_bytes for gpu in machine.gpus),
        kv_used_tokens=max(0, engine.kv_capacity_tokens - engine.kv_free_tokens) if engine.alive else 0,
        kv_cached_tokens=engine.kv_cached_tokens,
        running_requests=engine.running_requests,
        waiting_requests=engine.waiting_requests,
        generated_tokens=engine.generated_tokens,
        cache_hit_tokens=engine.cache_hit_tokens,
        loaded_adapters=state.adapters.slots.total_adapters,
        fetched_bytes=state.network.fetched_bytes,
        served_bytes=state.network.served_bytes,
    )


def _mean(numbers: Sequence[int]) -> float | None:
    return sum(numbers) / len(numbers) if numbers else None
