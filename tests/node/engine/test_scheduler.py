"""The scheduler driven without a model: a pass computes its chunks and makes up the next tokens."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora.node.engine.blocks import BlockAllocator
from openlora.node.engine.messages import Sampling
from openlora.node.engine.scheduler import EngineLimits, Scheduler
from openlora.node.engine.sequence import Chunk, Sequence
from openlora.node.errors import ConfigError, Overloaded


def request(name: str, prompt: int, output: int) -> Sequence:
    return Sequence(name, list(range(prompt)), prompt, Sampling(max_tokens=output))


class Driver:
    """Runs a scheduler to the end and checks every pass."""

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.blocks = BlockAllocator(limits.kv_tokens // limits.page_tokens, limits.page_tokens)
        self.scheduler = Scheduler(limits, self.blocks)
        self.finished: list[str] = []
        self.preemptions = 0

    def add(self, *sequences: Sequence) -> None:
        for sequence in sequences:
            self.scheduler.add(sequence)

    def step(self) -> list[Chunk]:
        computed = {id(s): s.computed for s in self.scheduler.running}
        chunks = self.scheduler.schedule()
        self.preemptions += sum(1 for s in self.scheduler.waiting if computed.get(id(s)))
        self._check(chunks)
        for chunk in chunks:
            chunk.sequence.computed = chunk.end
            if chunk.outputs:
                self._append(chunk.sequence)
        self.scheduler.check_integrity()
        return chunks

    def run(self) -> None:
        while self.step():
            pass

    def _check(self, chunks: list[Chunk]) -> None:
        assert sum(chunk.length for chunk in chunks) <= self.limits.max_batch_tokens
        assert len(self.scheduler.running) <= self.limits.max_running
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            assert chunk.length >= 1
            assert chunk.start == chunk.sequence.computed
            assert chunk.end <= len(chunk.sequence.pages) * self.limits.page_tokens

    def _append(self, sequence: Sequence) -> None:
        sequence.tokens.append(0)
        assert sequence.sampling is not None
        if sequence.generated == sequence.sampling.max_tokens:
            self.finished.append(sequence.request_id)
            self.scheduler.remove(sequence)


def test_a_long_prompt_goes_in_chunks_beside_decode_rows() -> None:
    driver = Driver(EngineLimits(kv_tokens=1024, max_batch_tokens=32, max_running=8))
    driver.add(request("short", 4, 10))
    driver.step()
    driver.add(request("long", 100, 2))
    shapes = [[(c.sequence.request_id, c.length) for c in driver.step()] for _ in range(5)]
    assert shapes[:4] == [[("short", 1), ("long", n)] for n in (31, 31, 31, 7)]
    assert shapes[4] == [("short", 1), ("long", 1)]


def test_admission_is_first_come_first_served() -> None:
    driver = Driver(EngineLimits(kv_tokens=64, max_batch_tokens=64, max_running=8))
    driver.add(request("a", 16, 4), request("big", 48, 2), request("c", 4, 2))
    assert [c.sequence.request_id for c in driver.step()] == ["a"]  # c would fit, but not before big
    driver.run()
    assert driver.finished == ["a", "big", "c"]


def test_the_last_admitted_gives_way_and_still_finishes() -> None:
    driver = Driver(EngineLimits(kv_tokens=64, page_tokens=4, max_batch_tokens=64, max_running=4))
    driver.add(request("a", 20, 40), request("b", 20, 40))
    driver.run()
    assert driver.preemptions >= 1
    assert driver.finished == ["a", "b"]
    assert driver.blocks.free == 16


def test_a_full_queue_refuses() -> None:
    driver = Driver(EngineLimits(max_waiting=2, max_waiting_tokens=50))
    driver.add(request("a", 20, 1))
    with pytest.raises(Overloaded) as refused:
        driver.add(request("b", 31, 1))
    assert refused.value.code == "overloaded"
    driver.add(request("b", 30, 1))
    with pytest.raises(Overloaded):
        driver.add(request("c", 0, 1))
    driver.step()  # both run now
    driver.add(request("c", 1, 1))


def test_removing_frees_pages_wherever_the_sequence_is() -> None:
    driver = Driver(EngineLimits(kv_tokens=64, max_running=1))
    running, waiting = request("a", 30, 9), request("b", 30, 9)
    driver.add(running, waiting)
    driver.step()
    driver.scheduler.remove(waiting)
    driver.scheduler.remove(running)
    driver.scheduler.check_integrity()
    assert driver.blocks.free == 4
    assert driver.step() == []


def test_limits_are_checked_together() -> None:
    with pytest.raises(ConfigError, match="kv_tokens, max_waiting"):
        EngineLimits(kv_tokens=0, max_waiting=-1)
    with pytest.raises(ConfigError, match="max_running"):
        EngineLimits(max_running=9, max_batch_tokens=8)


@dataclass(frozen=True)
class Arrival:
    step: int
    prompt: int
    output: int
    cancel_after: int | None


arrivals = st.builds(
    Arrival,
    step=st.integers(0, 20),
    prompt=st.integers(1, 60),
    output=st.integers(1, 40),
    cancel_after=st.none() | st.integers(0, 20),
)


@settings(max_examples=150)
@given(
    requests=st.lists(arrivals, max_size=12),
    pages=st.integers(25, 60),
    max_batch_tokens=st.integers(6, 64),
    max_running=st.integers(1, 6),
)
def test_everything_not_cancelled_finishes(
    requests: list[Arrival], pages: int, max_batch_tokens: int, max_running: int
) -> None:
    driver = Driver(
        EngineLimits(kv_tokens=pages * 4, page_tokens=4, max_batch_tokens=max_batch_tokens, max_running=max_running)
    )
    live: dict[str, Sequence] = {}
    for step in range(45):
        for i, arrival in enumerate(requests):
            if arrival.step == step:
                live[str(i)] = request(str(i), arrival.prompt, arrival.output)
                driver.add(live[str(i)])
            cancelled = arrival.cancel_after is not None and arrival.step + arrival.cancel_after == step
            if cancelled and str(i) not in driver.finished:
                driver.scheduler.remove(live[str(i)])
                driver.finished.append(str(i))
        driver.step()
    driver.run()
    assert sorted(driver.finished) == sorted(str(i) for i in range(len(requests)))
    assert driver.blocks.free == pages
