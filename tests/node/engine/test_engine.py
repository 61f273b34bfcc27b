"""The engine on a tiny random model: commands, isolation, and equality however the work is cut."""

import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openlora.kernels.ops import BACKENDS, LoraPlan, Ops
from openlora.kernels.types import LoraEntries
from openlora.node.engine.checkpoint import Checkpoint
from openlora.node.engine.engine import Engine, EngineLimits, ScoreRequest
from openlora.node.engine.loader import load_weights
from openlora.node.engine.messages import (
    AdapterLoaded,
    AdapterRefused,
    AdapterUnloaded,
    AdapterUse,
    Cancel,
    GetStatus,
    LoadAdapter,
    Refused,
    Sampling,
    Status,
    Submit,
    Token,
    UnloadAdapter,
)
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.models.decoder import Decoder
from openlora.node.engine.runner import OpsRunner
from tests.node.engine.tiny import write_adapter, write_model

GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=2)
SMALL = EngineLimits(kv_tokens=4096, page_tokens=4, max_batch_tokens=512)
pytestmark = pytest.mark.usefixtures("one_thread")

KEYS = ("a", "b", "c", "head")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, and adapters a (rank 4), b (rank 7), c (attention alone), head (rank 2, lm_head too)."""
    root = tmp_path_factory.mktemp("tiny")
    config = DecoderConfig.from_path(write_model(root / "model"))
    write_adapter(root / "a", config, 1)
    write_adapter(root / "b", config, 2, rank=7)
    write_adapter(root / "c", config, 3, rank=2, targets=("q_proj", "v_proj"))
    write_adapter(root / "head", config, 4, rank=2, targets=("down_proj", "lm_head"))
    return root


def load(files: Path, limits: EngineLimits = SMALL, keys: Iterable[str] = KEYS) -> Engine:
    engine = Engine.load(files / "model", limits=limits)
    for key in keys:
        (answer,) = engine.handle(LoadAdapter(key=key, path=str(files / key)))
        assert isinstance(answer, AdapterLoaded)
    return engine


@pytest.fixture
def engine(files: Path) -> Engine:
    return load(files)


def prompt_of(seed: int, length: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(3, 97), k=length))


def mixed_requests() -> list[Submit]:
    """Sixteen: base-only, single adapters, ensembles, prompts of 1 to 40 tokens."""
    recipes: list[tuple[AdapterUse, ...]] = [
        (),
        (AdapterUse("a"),),
        (AdapterUse("b", 0.5),),
        (AdapterUse("c"),),
        (AdapterUse("head"),),
        (AdapterUse("a", 0.5), AdapterUse("b", -0.25)),
        (AdapterUse("head", 0.3), AdapterUse("c", 2.0), AdapterUse("a", 0.1)),
        (AdapterUse("a", 0.0),),
    ]
    return [
        Submit(
            request_id=f"r{i}",
            prompt=prompt_of(i, 1 + i * 37 % 40),
            sampling=GREEDY,
            adapters=recipes[i % len(recipes)],
        )
        for i in range(16)
    ]


def run(engine: Engine, submits: Iterable[Submit]) -> dict[str, list[Token]]:
    """Submit all and step to the end."""
    for submit in submits:
        assert engine.handle(submit) == []
    tokens: dict[str, list[Token]] = defaultdict(list)
    while engine.has_work:
        step = engine.step()
        assert step is not None
        engine.check_integrity()
        for token in step.tokens:
            tokens[token.request_id].append(token)
    assert engine.step() is None
    return tokens


def ids(tokens: Iterable[Token]) -> list[int]:
    return [token.token_id for token in tokens]


def assert_same(found: dict[str, list[Token]], expected: dict[str, list[Token]]) -> None:
    assert found.keys() == expected.keys()
    for name, tokens in expected.items():
        assert ids(found[name]) == ids(tokens), name
        logprobs = [token.logprob for token in tokens]
        assert [token.logprob for token in found[name]] == pytest.approx(logprobs, abs=1e-4), name


def solo(files: Path, submits: Iterable[Submit]) -> dict[str, list[Token]]:
    """Each request in an engine of its own batch."""
    engine = load(files)
    return {submit.request_id: run(engine, [submit])[submit.request_id] for submit in submits}


# ---- equality -------------------------------------------------------------------------------------------------------


def test_a_mixed_batch_equals_each_request_alone(files: Path, engine: Engine) -> None:
    assert_same(run(engine, mixed_requests()), solo(files, mixed_requests()))


def test_adapters_change_the_tokens(files: Path) -> None:
    same_prompt = [
        Submit(request_id=s.request_id, prompt=prompt_of(0, 9), sampling=GREEDY, adapters=s.adapters)
        for s in mixed_requests()[:7]
    ]
    outputs = [tuple(ids(tokens)) for tokens in solo(files, same_prompt).values()]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize("max_batch_tokens", [1, 3, 17])
def test_prompts_in_chunks_equal_prompts_whole(files: Path, max_batch_tokens: int) -> None:
    limits = EngineLimits(kv_tokens=4096, page_tokens=4, max_batch_tokens=max_batch_tokens, max_running=1)
    if max_batch_tokens > 1:
        limits = EngineLimits(kv_tokens=4096, page_tokens=4, max_batch_tokens=max_batch_tokens, max_running=3)
    assert_same(run(load(files, limits), mixed_requests()), run(load(files), mixed_requests()))


def test_preempted_requests_go_on_as_if_nothing_had_happened(files: Path) -> None:
    engine = load(files, EngineLimits(kv_tokens=80, page_tokens=4, max_batch_tokens=64))
    sampling = Sampling(max_tokens=40, temperature=0.8, seed=5, ignore_eos=True, logprobs=0)
    submits = [
        Submit(request_id=f"r{i}", prompt=prompt_of(i, 8), sampling=sampling, adapters=recipe)
        for i, recipe in enumerate([(), (AdapterUse("a"),), (AdapterUse("b"), AdapterUse("c"))])
    ]
    for submit in submits:
        engine.handle(submit)
    tokens: dict[str, list[Token]] = defaultdict(list)
    began, sent_back = 0, 0
    while engine.has_work:
        step = engine.step()
        assert step is not None
        engine.check_integrity()
        for token in step.tokens:
            tokens[token.request_id].append(token)
        (status,) = engine.handle(GetStatus())
        assert isinstance(status, Status)
        began = max(began, status.running)
        sent_back += status.waiting
    assert (began, sent_back > 0) == (3, True)
    assert_same(tokens, solo(files, submits))


def test_decoding_equals_teacher_forcing(engine: Engine) -> None:
    submits = mixed_requests()
    decoded = run(engine, submits)
    scored = engine.score([ScoreRequest((*s.prompt, *ids(decoded[s.request_id])), s.adapters) for s in submits])
    engine.check_integrity()
    for submit, logprobs in zip(submits, scored, strict=True):
        tokens = decoded[submit.request_id]
        rows = logprobs[len(submit.prompt) - 1 : -1]
        assert rows.argmax(dim=1).tolist() == ids(tokens)
        for row, token in zip(rows, tokens, strict=True):
            assert token.logprob == pytest.approx(float(row[token.token_id]), abs=1e-4)
            assert [i for i, _ in token.top] == row.topk(2).indices.tolist()


def test_a_sampled_request_does_not_depend_on_its_company(files: Path, engine: Engine) -> None:
    def submit(name: str, seed: int) -> Submit:
        sampling = Sampling(max_tokens=20, temperature=1.0, top_p=0.95, seed=seed, ignore_eos=True)
        return Submit(request_id=name, prompt=prompt_of(1, 10), sampling=sampling)

    alone = ids(run(engine, [submit("x", 2**64 - 1)])["x"])
    crowd = run(engine, [*mixed_requests(), submit("x", 2**64 - 1), submit("y", 3)])
    assert ids(crowd["x"]) == alone != ids(crowd["y"])


def test_a_head_adapter_equals_its_merged_weights(files: Path, tmp_path: Path) -> None:
    tensors = load_file(files / "model" / "model.safetensors")
    factors = load_file(files / "head" / "adapter_model.safetensors")
    for name in [name for name in factors if name.endswith("lora_A.weight")]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = factors[name.replace("lora_A", "lora_B")]
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"] + 0.5 * b @ factors[name]  # alpha/r = 1/2
    (tmp_path / "config.json").write_bytes((files / "model" / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    tokens = prompt_of(5, 30)
    (merged,) = Engine.load(tmp_path, limits=SMALL).score([ScoreRequest(tokens)])
    base, with_head = load(files).score([ScoreRequest(tokens), ScoreRequest(tokens, (AdapterUse("head"),))])
    torch.testing.assert_close(with_head, merged, rtol=1e-4, atol=1e-4)
    assert (base - merged).abs().max() > 0.1


class NoLora(Ops):
    """Fails where LoRA code would run."""

    def plan_lora(self, entries: LoraEntries) -> LoraPlan:
        raise AssertionError("a base-only batch must not prepare adapters")


def test_base_only_batches_run_no_lora_code(files: Path) -> None:
    config = DecoderConfig.from_path(files / "model")
    ops = NoLora(BACKENDS["reference"])
    model = Decoder(config, load_weights(files / "model", config, "float32"), ops)
    runner = OpsRunner(model, ops, SMALL.pages, SMALL.page_tokens)
    engine = Engine(config, runner, SMALL, Checkpoint(files / "model", config))
    engine.handle(LoadAdapter(key="a", path=str(files / "a")))
    base_only = [s for s in mixed_requests() if not s.adapters]
    assert_same(run(engine, base_only), solo(files, base_only))
    engine.handle(mixed_requests()[1])
    with pytest.raises(AssertionError, match="base-only"):
        engine.step()


# ---- a request's end ------------------------------------------------------------------------------------------------


def test_what_ends_a_request(engine: Engine) -> None:
    free = ids(run(engine, [Submit(request_id="x", prompt=prompt_of(2, 5), sampling=GREEDY)])["x"])
    stop_at = next(i for i, token in enumerate(free) if token not in free[:i] and i > 0)

    def end(sampling: Sampling) -> tuple[list[int], str | None]:
        tokens = run(engine, [Submit(request_id="x", prompt=prompt_of(2, 5), sampling=sampling)])["x"]
        assert all(token.finish_reason is None for token in tokens[:-1])
        return ids(tokens), tokens[-1].finish_reason

    assert end(Sampling(max_tokens=3, temperature=0, ignore_eos=True)) == (free[:3], "length")
    stop = Sampling(max_tokens=12, temperature=0, ignore_eos=True, stop_token_ids=(free[stop_at],))
    assert end(stop) == (free[: stop_at + 1], "stop")


def test_the_models_own_end_token(files: Path, tmp_path: Path) -> None:
    free = ids(run(load(files), [Submit(request_id="x", prompt=prompt_of(2, 5), sampling=GREEDY)])["x"])
    write_model(tmp_path, eos_token_id=[free[1], 96])
    engine = Engine.load(tmp_path, limits=SMALL)
    assert engine.info.eos_token_ids == tuple(sorted((free[1], 96)))
    until = Submit(request_id="x", prompt=prompt_of(2, 5), sampling=Sampling(max_tokens=12, temperature=0))
    tokens = run(engine, [until])["x"]
    assert ids(tokens) == free[: free.index(free[1]) + 1]
    assert tokens[-1].finish_reason == "stop"


def test_logprobs_are_reported_only_when_asked_for(engine: Engine) -> None:
    def first(logprobs: int | None) -> Token:
        sampling = Sampling(max_tokens=1, temperature=0, logprobs=logprobs)
        return run(engine, [Submit(request_id="x", prompt=(5, 6), sampling=sampling)])["x"][0]

    assert (first(None).logprob, first(None).top) == (None, ())
    assert first(0).logprob is not None
    assert first(0).top == ()
    assert [len(first(n).top) for n in (1, 20)] == [1, 20]
    assert first(3).top[0] == (first(3).token_id, first(3).logprob)


def test_cancelling_frees_everything_at_once(engine: Engine) -> None:
    submits = mixed_requests()
    for submit in submits:
        engine.handle(submit)
    engine.step()
    for submit in submits[::2]:
        assert engine.handle(Cancel(request_id=submit.request_id)) == []
        engine.check_integrity()
    assert engine.handle(Cancel(request_id="unknown")) == []
    step = engine.step()
    assert step is not None
    assert {token.request_id for token in step.tokens} == {submit.request_id for submit in submits[1::2]}
    for submit in submits[1::2]:
        engine.handle(Cancel(request_id=submit.request_id))
    (status,) = engine.handle(GetStatus())
    assert isinstance(status, Status)
    assert (engine.has_work, status.running, status.kv_tokens_free) == (False, 0, engine.info.kv_tokens)


# ---- adapters -------------------------------------------------------------------------------------------------------


def test_a_reloaded_key_serves_old_requests_with_old_weights(files: Path) -> None:
    engine = load(files, keys=("b", "c"))
    engine.handle(LoadAdapter(key="k", path=str(files / "a")))

    def submit(name: str, key: str) -> Submit:
        return Submit(request_id=name, prompt=prompt_of(9, 11), sampling=GREEDY, adapters=(AdapterUse(key),))

    expected = solo(files, [submit("old", "a"), submit("new", "b")])
    engine.handle(submit("old", "k"))
    tokens: dict[str, list[Token]] = defaultdict(list)
    for _ in range(4):
        step = engine.step()
        assert step is not None
        for token in step.tokens:
            tokens[token.request_id].append(token)
    engine.handle(LoadAdapter(key="k", path=str(files / "b")))
    for name, more in run(engine, [submit("new", "k")]).items():
        tokens[name] += more
    assert_same(tokens, expected)
    engine.handle(UnloadAdapter(key="k"))
    engine.check_integrity()


def test_unloading_refuses_new_requests_and_serves_the_running_ones(files: Path, engine: Engine) -> None:
    submit = mixed_requests()[1]
    engine.handle(submit)
    assert engine.handle(UnloadAdapter(key="a")) == [AdapterUnloaded(key="a")]
    assert engine.handle(UnloadAdapter(key="a")) == [AdapterUnloaded(key="a")]
    (refused,) = engine.handle(Submit(request_id="y", prompt=(5,), sampling=GREEDY, adapters=(AdapterUse("a"),)))
    assert isinstance(refused, Refused)
    assert refused.code == "unknown_adapter"
    assert_same(run(engine, []), solo(files, [submit]))


def test_an_adapter_that_cannot_be_loaded_is_refused(files: Path, tmp_path: Path) -> None:
    engine = load(files, EngineLimits(kv_tokens=256, adapter_bytes=10_000), keys=())
    (over,) = engine.handle(LoadAdapter(key="a", path=str(files / "a")))
    assert isinstance(over, AdapterRefused)
    assert "unload others first" in over.message
    (absent,) = engine.handle(LoadAdapter(key="a", path=str(tmp_path)))
    assert isinstance(absent, AdapterRefused)
    assert "missing" in absent.message


def test_a_poisoned_adapter_fails_its_own_requests_alone(files: Path, tmp_path: Path, engine: Engine) -> None:
    config = DecoderConfig.from_path(files / "model")
    tensors = load_file(write_adapter(tmp_path / "x", config, 5) / "adapter_model.safetensors")
    save_file({name: tensor * 1e30 for name, tensor in tensors.items()}, tmp_path / "x" / "adapter_model.safetensors")
    (loaded,) = engine.handle(LoadAdapter(key="x", path=str(tmp_path / "x")))
    assert isinstance(loaded, AdapterLoaded)
    expected = run(engine, mixed_requests())
    for i in (0, 1):
        poisoned = Submit(request_id=f"x{i}", prompt=prompt_of(i, 20), sampling=GREEDY, adapters=(AdapterUse("x"),))
        assert engine.handle(poisoned) == []
    assert_same(run(engine, mixed_requests()), expected)
    assert [(r.request_id, r.code) for r in engine.take_refused()] == [("x0", "not_finite"), ("x1", "not_finite")]
    assert engine.take_refused() == []
    assert_same(run(engine, mixed_requests()), expected)  # in the pages that held NaN


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "sampling", "adapters", "code"),
    [
        ((), Sampling(max_tokens=1), (), "bad_input"),
        ((97,), Sampling(max_tokens=1), (), "bad_input"),
        ((-1,), Sampling(max_tokens=1), (), "bad_input"),
        ((5,) * 500, Sampling(max_tokens=13), (), "context_length"),
        ((5,), Sampling(max_tokens=1 << 40), (), "context_length"),
        ((5,), Sampling(max_tokens=0), (), "bad_sampling"),
        ((5,), Sampling(max_tokens=1, temperature=-0.1), (), "bad_sampling"),
        ((5,), Sampling(max_tokens=1, temperature=float("nan")), (), "bad_sampling"),
        ((5,), Sampling(max_tokens=1, top_p=0.0), (), "bad_sampling"),
        ((5,), Sampling(max_tokens=1, top_p=float("nan")), (), "bad_sampling"),
        ((5,), Sampling(max_tokens=1, top_k=-1), (), "bad_sampling"),
        ((5,), Sampling(max_tokens=1, seed=1 << 64), (), "bad_sampling"),
        ((5,), Sampling(max_tokens=1, logprobs=21), (), "bad_sampling"),
        ((5,), Sampling(max_tokens=1), (AdapterUse("nobody"),), "unknown_adapter"),
        ((5,), Sampling(max_tokens=1), (AdapterUse("a"), AdapterUse("nobody")), "unknown_adapter"),
        ((5,), Sampling(max_tokens=1), (AdapterUse("a", float("inf")),), "bad_adapters"),
        ((5,), Sampling(max_tokens=1), (AdapterUse("a", 10.5),), "bad_adapters"),
        ((5,), Sampling(max_tokens=1), (AdapterUse("a", 0.1),) * 17, "bad_adapters"),
    ],
)
def test_what_can_never_run_is_refused_with_a_code(
    engine: Engine, prompt: tuple[int, ...], sampling: Sampling, adapters: tuple[AdapterUse, ...], code: str
) -> None:
    (refused,) = engine.handle(Submit(request_id="x", prompt=prompt, sampling=sampling, adapters=adapters))
    assert isinstance(refused, Refused)
    assert (refused.request_id, refused.code) == ("x", code)
    assert not engine.has_work
    engine.check_integrity()


def test_the_longest_request_that_is_admitted_runs(files: Path) -> None:
    engine = load(files, EngineLimits(kv_tokens=64, page_tokens=4))
    assert engine.info.max_context == 64
    fits = Submit(request_id="x", prompt=(5,) * 60, sampling=Sampling(max_tokens=4, ignore_eos=True))
    assert len(run(engine, [fits])["x"]) == 4
    (refused,) = engine.handle(Submit(request_id="x", prompt=(5,) * 60, sampling=Sampling(max_tokens=5)))
    assert isinstance(refused, Refused)
    assert refused.code == "context_length"


def test_positions_that_no_request_reaches_take_no_memory(files: Path, tmp_path: Path) -> None:
    """A table for all of these would take a terabyte."""
    write_model(tmp_path, max_position_embeddings=10**10)
    engine = Engine.load(tmp_path, limits=EngineLimits(kv_tokens=640))
    assert engine.info.max_context == 640


def test_a_full_queue_and_a_repeated_id(files: Path) -> None:
    engine = load(files, EngineLimits(kv_tokens=64, max_waiting=1))
    first = Submit(request_id="x", prompt=(5,), sampling=GREEDY, adapters=(AdapterUse("a"),))
    assert engine.handle(first) == []
    (again,) = engine.handle(first)
    (full,) = engine.handle(Submit(request_id="y", prompt=(5,), sampling=GREEDY, adapters=(AdapterUse("a"),)))
    assert isinstance(again, Refused)
    assert isinstance(full, Refused)
    assert (again.code, full.code) == ("bad_input", "overloaded")
    engine.check_integrity()  # what was refused holds nothing
    assert len(run(engine, [])["x"]) == GREEDY.max_tokens


# ---- the long run ---------------------------------------------------------------------------------------------------


def test_random_arrivals_cancels_and_reloads_leave_nothing_behind(files: Path) -> None:
    engine = load(files, EngineLimits(kv_tokens=160, page_tokens=4, max_batch_tokens=24, max_running=6))
    rng = random.Random(0)
    for step in range(300):
        action = rng.random()
        if action < 0.4 and step < 250:
            use = tuple(AdapterUse(rng.choice(KEYS), rng.uniform(-1, 1)) for _ in range(rng.randrange(3)))
            sampling = Sampling(max_tokens=rng.randint(1, 30), temperature=rng.choice((0.0, 1.0)), seed=step)
            engine.handle(
                Submit(
                    request_id=str(step), prompt=prompt_of(step, rng.randint(1, 50)), sampling=sampling, adapters=use
                )
            )
        elif action < 0.5:
            engine.handle(Cancel(request_id=str(rng.randrange(step + 1))))
        elif action < 0.6:
            key = rng.choice(KEYS)
            engine.handle(UnloadAdapter(key=key))
            engine.handle(LoadAdapter(key=key, path=str(files / rng.choice(KEYS))))
        engine.step()
        engine.check_integrity()
    run(engine, [])
    (status,) = engine.handle(GetStatus())
    assert isinstance(status, Status)
    assert status.kv_tokens_free == engine.info.kv_tokens
    assert status.generated_tokens > 500
