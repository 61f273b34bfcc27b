"""Answers of the compiled decoder with drafts are those without, bit for bit, whatever the drafts are."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from openlora.node.engine.engine import Engine
from openlora.node.engine.messages import AdapterLoaded, AdapterUse, Cancel, LoadAdapter, Refused, Submit, Token
from openlora.node.engine.models.config import DecoderConfig
from tests.node.engine.drafts import always_draft, tell
from tests.node.engine.machines import (
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
from tests.node.engine.tiny import write_adapter, write_model

RECIPES: Sequence[Sequence[AdapterUse]] = (
    (),
    (AdapterUse("rank8"),),
    (AdapterUse("rank4", 0.5), AdapterUse("rank33", -0.75)),
    (AdapterUse("rank17", 0.3), AdapterUse("rank1", 1.0), AdapterUse("rank8", -0.2)),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, kernels: Path, one_thread: None) -> Machines:
    root = tmp_path_factory.mktemp("tiny")
    return machines_of(write_model(root / "model", **TINY), root, kernels)


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory, kernels: Path, one_thread: None) -> Machines:
    root = tmp_path_factory.mktemp("rounded")
    return machines_of(write_model(root / "model", **TINY), root, kernels, form="int8")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, kernels: Path, model_dir: Path, one_thread: None) -> Machines:
    return machines_of(model_dir, tmp_path_factory.mktemp("adapters"), kernels)


@contextmanager
def drafting(machine: Machine, **limits: int | bool) -> Iterator[Engine]:
    with machine.engine(**limits) as engine:
        always_draft(engine)
        yield engine


def requests(vocabulary: int, count: int = 33) -> list[Submit]:
    """Of every kind, some beyond several pages."""
    rng = random.Random(count)
    return [
        submit(
            str(number),
            rng.choices(range(vocabulary), k=rng.choice((1, 5, 14, 15, 16, 17, 40))),
            RECIPES[number % len(RECIPES)],
            max_tokens=rng.choice((1, 2, 9, 24, 40)),
            temperature=(0.0, 0.7, 1.0, 2.0)[number % 4],
            top_k=rng.choice((0, 5)),
            top_p=rng.choice((1.0, 0.9)),
            seed=rng.getrandbits(64),
            logprobs=rng.choice((None, 0, 3)),
            ignore_eos=number % 3 > 0,
        )
        for number in range(count)
    ]


def ids(answer: Answer) -> list[int]:
    return [token for token, _, _ in answer]


def told(engine: Engine, submits: Sequence[Submit], answers: dict[str, Answer], wrong: float) -> dict[str, Answer]:
    """Run the requests with drafts made of their answers."""
    for one in submits:
        assert engine.handle(one) == []
        tell(engine, one.request_id, [*ids(answers[one.request_id]), *[0] * 8], wrong=wrong)
    return run(engine, [])


def assert_drafts_change_nothing(machine: Machine) -> None:
    submits = requests(machine.config.vocab_size)
    with machine.engine(speculation=False, prefix_cache=False) as engine:
        expected = run(engine, submits)
        assert status(engine).drafted_tokens == 0
        steps, generated = status(engine).steps, status(engine).generated_tokens
    with drafting(machine) as engine:
        for wrong in (0.0, 0.3, 1.0):
            before = status(engine)
            assert told(engine, submits, expected, wrong) == expected
            after = status(engine)
            assert after.drafted_tokens > before.drafted_tokens
            assert (after.accepted_tokens > before.accepted_tokens) == (wrong < 1)
            assert (after.steps - before.steps < steps) == (wrong < 1)
            assert after.generated_tokens - before.generated_tokens == generated
        for count in (1, 7):
            assert told(engine, submits[-count:], expected, 0.3) == {
                s.request_id: expected[s.request_id] for s in submits[-count:]
            }
        assert status(engine).cache_hit_tokens > 0


@pytest.mark.parametrize("unit", [*UNITS, "avx512-bf16"])
def test_drafts_change_nothing(tiny: Machines, unit: str) -> None:
    assert_drafts_change_nothing(tiny(unit))


@pytest.mark.parametrize("unit", UNITS)
def test_drafts_change_nothing_on_rounded_weights(rounded: Machines, unit: str) -> None:
    assert_drafts_change_nothing(rounded(unit))


@pytest.mark.slow
def test_drafts_change_nothing_of_a_real_model(real: Machines) -> None:
    assert_drafts_change_nothing(real(""))


def test_drafts_change_nothing_where_pages_are_short(tiny: Machines) -> None:
    """Requests are preempted in their answers, and drafts cut for want of pages."""
    submits = [one for one in requests(TINY["vocab_size"]) if one.sampling.max_tokens > 2]
    with tiny("").engine(speculation=False) as engine:
        expected = run(engine, submits)
    with drafting(tiny(""), kv_tokens=96, max_batch_tokens=33, max_running=12) as engine:
        assert told(engine, submits, expected, 0.2) == expected
        assert status(engine).preemptions > 0


@pytest.mark.slow
def test_answers_that_repeat_themselves_take_fewer_passes(real: Machines) -> None:
    """With the lookup that serves, and the passes' own times."""
    submits = [submit(str(n), range(100 * n, 100 * n + 20), (), temperature=0.0, max_tokens=80) for n in range(2)]
    with real("").engine(speculation=False) as engine:
        expected = run(engine, submits)
    with real("").engine() as engine:
        assert run(engine, submits) == expected
        assert status(engine).steps < 80
        assert 0 < status(engine).accepted_tokens <= status(engine).drafted_tokens


# ---- a request's end ------------------------------------------------------------------------------------------------


def test_nothing_follows_an_end_inside_a_draft(tiny: Machines) -> None:
    machine, prompt = tiny(""), [7, 8, 9]
    with machine.engine(speculation=False) as engine:
        free = ids(run(engine, [submit("x", prompt, (), max_tokens=20)])["x"])
    at = next(i for i in range(2, 6) if free[i] not in free[:i])
    with drafting(machine) as engine:
        for ending, length in (({"max_tokens": 4}, 4), ({"max_tokens": 20, "stop_token_ids": (free[at],)}, at + 1)):
            engine.handle(submit("x", prompt, (), **ending))
            tell(engine, "x", [*free, *[0] * 8], wrong=0.0)
            tokens: list[Token] = []
            while engine.has_work:
                done = engine.step()
                assert done is not None
                tokens += done.tokens
            assert len(done.tokens) > 1
            assert [token.token_id for token in tokens] == free[:length]
            assert [token.finish_reason for token in tokens[-2:]] == [None, "length" if length == 4 else "stop"]


def test_nothing_follows_a_cancel_between_drafts(tiny: Machines) -> None:
    with tiny("").engine(speculation=False) as engine:
        expected = run(engine, [submit("x", [7, 8, 9], (), max_tokens=30)])
    with drafting(tiny("")) as engine:
        engine.handle(submit("x", [7, 8, 9], (), max_tokens=30))
        tell(engine, "x", [*ids(expected["x"]), *[0] * 8], wrong=0.0)
        found: dict[str, Answer] = {}
        while len(found.get("x", ())) < 2:
            step(engine, found)
        assert found["x"] == expected["x"][: len(found["x"])]
        engine.handle(Cancel(request_id="x"))
        assert engine.step() is None
        assert status(engine).kv_tokens_free == engine.info.kv_tokens


# ---- numbers that overflow ------------------------------------------------------------------------------------------

POISON = 100  # the token after which the adapter overflows


@pytest.fixture(scope="module")
def touchy(tmp_path_factory: pytest.TempPathFactory, kernels: Path, one_thread: None) -> Machines:
    """Only POISON's embedding has a first component, nothing adds to it, and "poison" multiplies it to infinity."""
    root = tmp_path_factory.mktemp("touchy")
    model = write_model(root / "model", **TINY)
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, 0] = 0
    tensors["model.embed_tokens.weight"][POISON, 0] = 1
    tensors["lm_head.weight"][POISON] = 0  # never the most probable
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[0] = 0
    save_file(tensors, model / "model.safetensors")
    machine = machines_of(model, root, kernels)
    poison = write_adapter(root / "poison", DecoderConfig.from_path(model), 0, targets=("v_proj",))
    factors = load_file(poison / "adapter_model.safetensors")
    for name, tensor in factors.items():
        if name.endswith("lora_A.weight"):
            tensor[:, 1:] = 0
        tensor[tensor != 0] = 1e30
    save_file(factors, poison / "adapter_model.safetensors")
    return machine


@pytest.mark.parametrize("unit", UNITS)
def test_a_draft_that_overflows_is_as_if_it_had_not_been(touchy: Machines, unit: str) -> None:
    machine = touchy(unit)
    prompt, recipe = [5, 6, 7, 8, 9], (AdapterUse("poison"),)
    submits = [submit(str(n), prompt[n:], recipe, temperature=0.0, max_tokens=30) for n in range(3)]
    submits.append(submit("other", prompt, (), max_tokens=30))
    with machine.engine(speculation=False) as engine:
        load(engine, machine)
        expected = run(engine, submits)
        engine.handle(submit("x", [5, POISON, 6], recipe))
        engine.step()
        assert [refused.code for refused in engine.take_refused()] == ["not_finite"]
    with drafting(machine) as engine:
        load(engine, machine)
        for one in submits:
            engine.handle(one)
            answer = ids(expected[one.request_id])
            tell(engine, one.request_id, [*answer[:9], POISON, *answer[10:], *[0] * 8], wrong=0.0)
        assert run(engine, []) == expected
        now = status(engine)
        assert now.preemptions == 3
        assert now.accepted_tokens > 0
        assert run(engine, submits) == expected  # in the pages that held NaN


def test_an_answer_that_overflows_is_refused_after_the_same_tokens(touchy: Machines) -> None:
    machine, recipe = touchy(""), (AdapterUse("poison"),)
    seeds = [submit(str(n), [5, 6], recipe, temperature=30.0, seed=n, max_tokens=200) for n in range(8)]

    def answers(engine: Engine, told_answers: dict[str, Answer]) -> tuple[dict[str, Answer], list[Refused]]:
        load(engine, machine)
        found: dict[str, Answer] = {}
        refused: list[Refused] = []
        for one in seeds:
            engine.handle(one)
            if one.request_id in told_answers:
                tell(engine, one.request_id, [*ids(told_answers[one.request_id]), *[0] * 8], wrong=0.0)
        while engine.has_work:
            for token in getattr(engine.step(), "tokens", ()):
                found.setdefault(token.request_id, []).append((token.token_id, token.logprob, token.top))
            refused += engine.take_refused()
        return found, sorted(refused, key=lambda one: one.request_id)

    with machine.engine(speculation=False) as engine:
        expected, refused = answers(engine, {})
    assert 0 < len(refused) < len(seeds)
    with drafting(machine) as engine:
        assert answers(engine, expected) == (expected, refused)


def load(engine: Engine, machine: Machine) -> None:
    (loaded,) = engine.handle(LoadAdapter(key="poison", path=str(machine.adapters / "poison")))
    assert isinstance(loaded, AdapterLoaded), loaded
