"""A request's tokens and log-probabilities are the same, bit for bit, whatever the engine does beside it or to it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from openlora.node.engine.engine import Engine
from openlora.node.engine.messages import AdapterUse, Cancel, Submit
from tests.node.engine.drafts import always_draft
from tests.node.engine.machines import (
    KEYS,
    TINY,
    UNITS,
    Answer,
    Machine,
    Machines,
    machines_of,
    run,
    status,
    step,
    submit,
)
from tests.node.engine.tiny import write_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, kernels: Path, one_thread: None) -> Machines:
    root = tmp_path_factory.mktemp("tiny")
    return machines_of(write_model(root / "model", **TINY), root, kernels)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, kernels: Path, model_dir: Path, one_thread: None) -> Machines:
    return machines_of(model_dir, tmp_path_factory.mktemp("adapters"), kernels)


# ---- one request, whatever happens beside it and to it --------------------------------------------------------------


def company(size: int, vocabulary: int) -> list[Submit]:
    """Short requests with other adapters, that decode while the long one is computed."""
    rng = random.Random(size)
    return [
        submit(
            f"other{i}",
            rng.choices(range(vocabulary), k=3 + i % 9),
            [AdapterUse(KEYS[i % 5])],
            max_tokens=9,
            logprobs=None,
        )
        for i in range(size)
    ]


def assert_always_the_same(machine: Machine, length: int, chunk: int) -> None:
    """A prompt of `length` tokens with two adapters: alone, among 7 and 33, in chunks of 16 and `chunk`, with prefix
    hits of all lengths, after a preemption in the prompt and one in the answer."""
    vocabulary = machine.config.vocab_size
    prompt = random.Random(1).choices(range(vocabulary), k=length)
    recipe = (AdapterUse("rank8", 0.7), AdapterUse("rank33", -0.3))
    with machine.engine(max_batch_tokens=chunk, prefix_cache=False) as engine:
        alone = run(engine, [submit("x", prompt, recipe)])["x"]
        assert len(alone) == 6
        for others in (6, 32):
            crowd = [*company(others, vocabulary), submit("x", prompt, recipe)]
            assert run(engine, crowd)["x"] == alone, f"among {others + 1}"
        for preempted_after in (0, 2):
            engine.handle(submit("x", prompt, recipe))
            answers: dict[str, Answer] = {}
            while len(answers.get("x", ())) < preempted_after or not engine._scheduler.running:
                step(engine, answers)
            engine._scheduler._preempt(engine._sequences["x"])
            while engine.has_work:
                step(engine, answers)
            assert answers["x"] == alone, f"preempted after {preempted_after} tokens"
    with machine.engine(max_batch_tokens=16, max_running=16) as engine:
        assert run(engine, [submit("x", prompt, recipe)])["x"] == alone, "in chunks of 16"
        hits = status(engine).cache_hit_tokens
        assert run(engine, [submit("x", prompt, recipe)])["x"] == alone, "with every full page found"
        assert status(engine).cache_hit_tokens - hits == (length - 1) // 16 * 16
        run(engine, [submit("half", prompt[: length // 2], recipe, tenant="other")])
        assert run(engine, [submit("x", prompt, recipe, tenant="other")])["x"] == alone, "with half of the pages found"


@pytest.mark.parametrize("unit", UNITS)
def test_a_request_is_always_the_same(tiny: Machines, unit: str) -> None:
    assert_always_the_same(tiny(unit), length=530, chunk=512)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["amx", "avx512"])
def test_a_request_of_a_real_model_is_always_the_same(real: Machines, unit: str) -> None:
    """The other units take minutes for it."""
    assert_always_the_same(real(unit), length=530, chunk=512)


# ---- random mixtures ------------------------------------------------------------------------------------------------


BEGINNINGS = [random.Random(seed).choices(range(211), k=64) for seed in range(3)]
RECIPES: Sequence[Sequence[AdapterUse]] = (
    *((AdapterUse(key),) for key in KEYS),
    (),
    (AdapterUse("rank4", 0.5), AdapterUse("rank33", -0.75)),
    (AdapterUse("rank33", -0.75), AdapterUse("rank4", 0.5)),
    (AdapterUse("rank17", 0.3), AdapterUse("rank1", 1.0), AdapterUse("rank8", -0.2), AdapterUse("rank4", 0.1)),
)


@dataclass
class Mixture:
    """An engine under random arrivals, cancellations and preemptions; whoever ends is compared with itself alone."""

    engine: Engine
    rng: random.Random
    answers: dict[str, Answer] = field(default_factory=dict)
    live: dict[str, Submit] = field(default_factory=dict)
    finished: list[Submit] = field(default_factory=list)
    count: int = 0
    passes: int = 0

    def advance(self) -> None:
        for _ in range(self.rng.choice((0, 0, 1, 1, 4))):
            self._submit()
        if self.live and self.rng.random() < 0.05:
            name = self.rng.choice(list(self.live))
            self.engine.handle(Cancel(request_id=name))
            del self.live[name]
        self.passes += 1
        if self.passes % 10 == 0 and (running := self.engine._scheduler.running):
            self.engine._scheduler._preempt(self.rng.choice(running))
        for token in step(self.engine, self.answers):
            if token.finish_reason is not None:
                self.finished.append(self.live.pop(token.request_id))
        self.engine.check_integrity()

    def _submit(self) -> None:
        rng, name = self.rng, str(self.count)
        self.count += 1
        prompt = BEGINNINGS[rng.randrange(3)][: rng.choice((0, 20, 40, 64))]
        prompt = (*prompt, *rng.choices(range(TINY["vocab_size"]), k=rng.choice((1, 3, 17, 60))))
        recipe = rng.choice(RECIPES)
        self.live[name] = submit(
            name,
            prompt,
            recipe,
            tenant=rng.choice("ab"),
            max_tokens=rng.choice((1, 2, 9, 30)),
            temperature=rng.choice((0.0, 0.5, 1.0, 3.0)),
            top_k=rng.choice((0, 5)),
            top_p=rng.choice((1.0, 0.9)),
            seed=rng.getrandbits(64),
            logprobs=rng.choice((0, 3)),
        )
        if self.engine.handle(self.live[name]):
            del self.live[name]  # its tenant's queue is full


@pytest.mark.parametrize("unit", UNITS)
def test_random_batches_change_no_request(tiny: Machines, unit: str) -> None:
    assert_mixtures_change_nothing(tiny(unit), batches=100)


@pytest.mark.slow
def test_many_random_batches_change_no_request(tiny: Machines, request: pytest.FixtureRequest) -> None:
    """As many as `--mixed-batches` says."""
    assert_mixtures_change_nothing(tiny(""), request.config.getoption("--mixed-batches"))


def assert_mixtures_change_nothing(machine: Machine, batches: int) -> None:
    """Five engines of different limits, `batches` passes together; every answer that was finished is that of its
    request alone."""
    mixtures, states = [], []
    for seed, (kv_tokens, rows, running) in enumerate(
        ((4096, 512, 40), (640, 48, 12), (4096, 16, 16), (640, 100, 24), (640, 33, 6))
    ):
        with machine.engine(kv_tokens=kv_tokens, max_batch_tokens=rows, max_running=running, max_waiting=64) as engine:
            always_draft(engine)
            mixture = Mixture(engine, random.Random(seed))
            for _ in range(batches // 5):
                mixture.advance()
            for name in list(mixture.live):
                engine.handle(Cancel(request_id=name))
            mixtures.append(mixture)
            states.append(status(engine))
    assert sum(state.preemptions for state in states) > 0
    assert sum(state.cache_hit_tokens for state in states) > 0
    assert sum(state.drafted_tokens for state in states) > 0
    assert sum(len(mixture.finished) for mixture in mixtures) >= batches // 10
    with machine.engine(prefix_cache=False, speculation=False) as alone:
        for mixture in mixtures:
            for one in mixture.finished:
                assert run(alone, [one])[one.request_id] == mixture.answers[one.request_id], one
