"""The compiled decoder against the reference: the same model, op by op in float32, with weights that bfloat16 holds.

What bfloat16 activations cost is known from the reference itself: run in bfloat16, it strays from float32 by some
amount, and the compiled decoder, which rounds less often, may stray no further.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from openlora.kernels.cpu.build import library_path
from openlora.kernels.cpu.library import load_library
from openlora.kernels.errors import KernelsUnavailable
from openlora.kernels.ops import BACKENDS, Backend, Ops
from openlora.kernels.types import Change, Difference, LoraFactors
from openlora.node.adapters.modules import EmbeddingShape, NormShape
from openlora.node.engine.adapter_pool import ResidentAdapter
from openlora.node.engine.compiled import CompiledRunner
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.loader import load_weights
from openlora.node.engine.messages import Sampling
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.models.decoder import Decoder, DecoderWeights
from openlora.node.engine.process import user_cache
from openlora.node.engine.runner import OpsRunner, Runner
from openlora.node.engine.runners import best_runner
from openlora.node.engine.sampling import choose
from openlora.node.engine.sequence import Chunk
from openlora.node.engine.sequence import Sequence as Request
from tests.node.engine.emulated import emulated
from tests.node.engine.tiny import write_model

INSTRUCTIONS = ("plain", "avx2", "avx512", "avx512-bf16", "amx")
BATCHES = (1, 2, 3, 7, 33, 133)
POPULARITIES = ("distinct", "identical", "uniform", "skewed")
SLOTS = 8
LIMITS = EngineLimits(kv_tokens=16 * 1024)
MODEL = {  # a head's width is a vector register's; the others leave tiles, blocks and registers partly filled
    "vocab_size": 211,
    "hidden_size": 72,
    "intermediate_size": 136,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_bias": True,
    "mlp_bias": True,
}
FAMILIES = {  # the window begins and ends inside pages
    "mistral": MODEL | {"model_type": "mistral", "sliding_window": 21, "attention_bias": False, "mlp_bias": False},
    "qwen3": MODEL | {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "gemma": MODEL | {"model_type": "gemma", "attention_bias": False, "tie_word_embeddings": True, "head_dim": 64},
    "gemma2": MODEL
    | {"model_type": "gemma2", "attention_bias": False, "sliding_window": 21, "query_pre_attn_scalar": 20}
    | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 8.0},
}
ENGLISH = (
    "A lighthouse is a tower built to guide ships at night. Its lamp turns slowly, and sailors count the seconds "
    "between two flashes to know which coast lies before them. Before electricity, keepers burned oil and trimmed the "
    "wicks every few hours; a keeper who slept could cost a hundred lives. Today most lamps are automatic."
)
References = Callable[[int | str, int, str], tuple[Tensor, Tensor]]
GREEDY = Sampling(max_tokens=1000, temperature=0.0)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), **MODEL)


def compiled(
    model: Path,
    kernels: Path,
    instructions: str = "",
    threads: int = 2,
    form: str = "auto",
    weights: DecoderWeights | None = None,
) -> CompiledRunner:
    """Of the model's weights in that form, or of `weights`."""
    config = DecoderConfig.from_path(model)
    torch.set_num_threads(threads)
    try:
        weights = weights or load_weights(model, config, "bfloat16", form)
        with emulated(instructions):
            return CompiledRunner(config, weights, LIMITS, kernels, instructions)
    except KernelsUnavailable as error:
        pytest.skip(str(error))
    finally:
        torch.set_num_threads(1)


def reference(model: Path, dtype: torch.dtype = torch.float32, backend: Backend = BACKENDS["reference"]) -> OpsRunner:
    """The weights are those that bfloat16 holds, whatever is computed in."""
    config = DecoderConfig.from_path(model)
    weights = load_weights(model, config, "bfloat16")
    if dtype == torch.float32:
        weights = widened(weights)
    ops = Ops(backend)
    return OpsRunner(Decoder(config, weights, ops), ops, LIMITS.pages, LIMITS.page_tokens)


def widened(value: object) -> object:
    """The same dataclasses with every tensor in float32."""
    match value:
        case Tensor():
            return value.float()
        case tuple() if not (value and isinstance(value[0], str)):
            return tuple(widened(one) for one in value)
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(
            value, **{f.name: widened(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return value


def load_adapters(runners: Sequence[Runner], model: Path, rank: int | str) -> None:
    """SLOTS adapters, some of which leave some matrices alone; numbers that bfloat16 holds."""
    rng = torch.Generator().manual_seed(1)
    ranks = [1, 3, 8, 16, 17, 64, 33, 5] if rank == "mixed" else [int(rank)] * SLOTS
    layout = DecoderConfig.from_path(model).layout()
    for slot, r in enumerate(ranks):
        factors = {}
        for index, (module, shape) in enumerate(layout.items()):
            a = torch.randn(r, shape.in_features, generator=rng) / shape.in_features**0.5
            b = torch.randn(shape.out_features, r, generator=rng) / r**0.5
            if (index + slot) % 5:
                factors[module] = LoraFactors(a.bfloat16(), b.bfloat16(), 0.5 / (1 + slot % 3))
        for runner in runners:
            cast = {m: LoraFactors(f.a.to(runner.dtype), f.b.to(runner.dtype), f.scale) for m, f in factors.items()}
            runner.factors.put(slot, cast)


def load_kinds(runners: Sequence[Runner], model: Path) -> None:
    """SLOTS adapters that change weights in every way: slot n what differs from others by its remainders."""
    rng = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng).bfloat16().float()

    for slot in range(SLOTS):
        changes: dict[str, Change] = {}
        for index, (module, shape) in enumerate(DecoderConfig.from_path(model).modules().items()):
            if isinstance(shape, NormShape):
                if slot % 2:
                    changes[module] = Difference(normal(shape.features) / 8)
            elif (index + slot) % 4 == 0 and slot % 3:
                changes[module] = Difference((normal(*shape.weight) / shape.weight[1] ** 0.5).bfloat16().float() / 4)
            elif (index + slot) % 4 < 3:
                a, b = normal(1 + 2 * slot, shape.in_features), normal(shape.out_features, 1 + 2 * slot) / 4
                a = a if isinstance(shape, EmbeddingShape) else (a / shape.in_features**0.5).bfloat16().float()
                changes[module] = LoraFactors(a, b, 0.25, normal(shape.out_features) / 4 if slot % 4 else None)
        for runner in runners:
            runner.factors.put(slot, {module: cast(change, runner.dtype) for module, change in changes.items()})


def cast(change: Change, dtype: torch.dtype) -> Change:
    if isinstance(change, Difference):
        return change if change.weight.ndim == 1 else Difference(change.weight.to(dtype))
    return LoraFactors(change.a.to(dtype), change.b.to(dtype), change.scale, change.stretch)


def request(tokens: Sequence[int], recipe: Sequence[tuple[int, float]], sampling: Sampling | None = None) -> Request:
    adapters = tuple((ResidentAdapter(str(slot), slot, 0, 0, b""), weight) for slot, weight in recipe)
    return Request("r", list(tokens), len(tokens), sampling, adapters=adapters)


def recipes_of(popularity: str, rows: int) -> list[list[tuple[int, float]]]:
    """One adapter a request, of every fifth none and of every seventh two."""
    rng = random.Random(rows)
    slots = {
        "distinct": [row % SLOTS for row in range(rows)],
        "identical": [3] * rows,
        "uniform": [rng.randrange(SLOTS) for _ in range(rows)],
        "skewed": [0 if rng.random() < 0.9 else rng.randrange(SLOTS) for _ in range(rows)],
    }[popularity]
    recipes = [[(slot, 0.5)] if row % 5 else [] for row, slot in enumerate(slots)]
    return [[*recipe, (6, -0.25)] if row % 7 == 6 else recipe for row, recipe in enumerate(recipes)]


def some_requests(rows: int, popularity: str) -> list[Request]:
    """Contexts of 2 to 40 tokens."""
    rng = random.Random(rows)
    return [
        request([rng.randrange(211) for _ in range(2 + 17 * i % 39)], recipe)
        for i, recipe in enumerate(recipes_of(popularity, rows))
    ]


def give_pages(requests: Sequence[Request]) -> None:
    """Pages enough for 64 tokens each, in no order."""
    pages = list(range(LIMITS.pages))
    random.Random(0).shuffle(pages)
    for one in requests:
        one.pages = [pages.pop() for _ in range(4)]


def logits_of(runner: Runner, requests: Sequence[Request], decoded: int = 2) -> Tensor:
    """The last logits of each request: all tokens but `decoded` in one pass, then decode rows beside the prompts that
    are too short to have any."""
    give_pages(requests)
    whole = [Chunk(one, 0, max(1, len(one.tokens) - (decoded if i % 3 else 0))) for i, one in enumerate(requests)]
    last: dict[int, Tensor] = {}
    pending = dict(enumerate(whole))
    while pending:
        outputs = runner.run(list(pending.values()))
        assert outputs.logits is not None
        for (i, chunk), rows in zip(
            list(pending.items()), outputs.logits.split([chunk.length for chunk in pending.values()]), strict=True
        ):
            last[i] = rows[-1]
            if chunk.end == len(chunk.sequence.tokens):
                del pending[i]
            else:
                pending[i] = Chunk(chunk.sequence, chunk.end, 1)
    return torch.stack([last[i] for i in range(len(requests))])


@pytest.mark.parametrize("threads", [1, 3])
def test_of_equal_logits_the_lowest_token_is_chosen(tmp_path: Path, kernels: Path, threads: int) -> None:
    """Whichever thread comes to it first: they take tiles from each other."""
    model = write_model(tmp_path, **MODEL | {"vocab_size": 4_000, "tie_word_embeddings": False})
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][torch.arange(4_000) % 97].clone()
    save_file(tensors, model / "model.safetensors")
    runner = compiled(model, kernels, threads=threads)
    requests = [request(range(3 + i, 9 + 2 * i), []) for i in range(7)]
    give_pages(requests)
    for _ in range(20):
        outputs = runner.run([Chunk(one, 0, len(one.tokens)) for one in requests])
        assert outputs.logits is not None
        lowest = [int((row == row.max()).nonzero()[0]) for row in outputs.logits]
        assert list(outputs.tokens) == lowest
        assert max(lowest) < 97


def in_chunks(
    runner: Runner,
    tokens: Sequence[int],
    pages: Sequence[int],
    recipe: Sequence[tuple[int, float]],
    sizes: Sequence[int],
) -> Tensor:
    """The logits after every token of a prompt cut into pieces of `sizes` in turn."""
    one, found = request(tokens, recipe), []
    one.pages = list(pages)
    start = 0
    while start < len(tokens):
        size = min(sizes[len(found) % len(sizes)], len(tokens) - start)
        logits = runner.run([Chunk(one, start, size)]).logits
        assert logits is not None
        found.append(logits)
        start += size
    return torch.cat(found)


def divergence(found: Tensor, expected: Tensor) -> float:
    """Mean Kullback-Leibler divergence."""
    p, q = expected.log_softmax(dim=-1), found.log_softmax(dim=-1)
    return float((p.exp() * (p - q)).sum(dim=-1).mean())


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize(("rank", "filled"), [(3, 8), (5, 7), (20, 64), (250, 258)])
def test_ranks_of_zeros_change_no_bit(model: Path, kernels: Path, instructions: str, rank: int, filled: int) -> None:
    """However a factor is kept at its ranks, packed or not: rows alone, and seven that share an adapter."""
    runner = compiled(model, kernels, instructions)
    rng = torch.Generator().manual_seed(rank)
    for slot, ranks in enumerate((rank, filled)):
        rng.manual_seed(rank)
        factors = {}
        for module, shape in DecoderConfig.from_path(model).layout().items():
            a = torch.randn(rank, shape.in_features, generator=rng) / shape.in_features**0.5
            b = torch.randn(shape.out_features, rank, generator=rng) / rank**0.5
            more = (0, 0, 0, ranks - rank), (0, ranks - rank)
            factors[module] = LoraFactors(pad(a, more[0]).bfloat16(), pad(b, more[1]).bfloat16(), 0.5)
        runner.factors.put(slot, factors)
    for rows in (1, 2, 7):
        plain, padded = (
            logits_of(runner, [request(range(3 + i, 9 + 2 * i), [(slot, 0.5)]) for i in range(rows)]) for slot in (0, 1)
        )
        assert torch.equal(plain, padded), rows


# ---- against the reference ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def references(model: Path) -> References:
    """The reference's logits in float32 and in bfloat16, by rank, batch and popularity; each computed once."""

    @functools.cache
    def runners(rank: int | str) -> tuple[OpsRunner, OpsRunner]:
        both = reference(model), reference(model, torch.bfloat16)
        load_adapters(both, model, rank)
        return both

    @functools.cache
    def logits(rank: int | str, rows: int, popularity: str) -> tuple[Tensor, Tensor]:
        exact, rounded = (logits_of(runner, some_requests(rows, popularity)) for runner in runners(rank))
        return exact, rounded

    return logits


def assert_as_near_as_bfloat16(found: Tensor, exact: Tensor, rounded: Tensor) -> None:
    assert divergence(found, exact) <= max(2e-4, divergence(rounded, exact))
    assert float((found - exact).abs().max()) <= max(0.05, 1.5 * float((rounded - exact).abs().max()))


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize(("rows", "popularity"), [(1, "distinct"), (7, "skewed"), (33, "distinct")])
def test_equals_the_reference(
    model: Path, kernels: Path, references: References, instructions: str, rows: int, popularity: str
) -> None:
    runner = compiled(model, kernels, instructions)
    load_adapters([runner], model, "mixed")
    found = logits_of(runner, some_requests(rows, popularity))
    assert_as_near_as_bfloat16(found, *references("mixed", rows, popularity))


@pytest.mark.parametrize(("family", "instructions"), [("llama", ""), ("llama", "plain"), ("qwen3", ""), ("gemma2", "")])
def test_all_kinds_of_adapters_equal_the_reference_and_keep_to_their_rows(
    tmp_path: Path, kernels: Path, family: str, instructions: str
) -> None:
    model = write_model(tmp_path, **FAMILIES.get(family, MODEL))
    runner, exact, rounded = compiled(model, kernels, instructions), reference(model), reference(model, torch.bfloat16)
    load_kinds([runner, exact, rounded], model)
    requests = some_requests(33, "distinct")
    found = logits_of(runner, requests)
    assert_as_near_as_bfloat16(found, logits_of(exact, requests), logits_of(rounded, requests))
    for i in range(0, 33, 2):
        assert torch.equal(logits_of(runner, some_requests(33, "distinct")[i : i + 1])[0], found[i]), i
    for slot in range(SLOTS):
        runner.factors.drop(slot)
    load_adapters([runner, again := compiled(model, kernels, instructions)], model, 8)
    assert torch.equal(logits_of(runner, requests), logits_of(again, requests))


@pytest.mark.slow
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("rank", [1, 8, 64, "mixed"])
def test_equals_the_reference_over_the_grid(
    model: Path, kernels: Path, references: References, instructions: str, rank: int | str
) -> None:
    runner = compiled(model, kernels, instructions)
    load_adapters([runner], model, rank)
    for rows in BATCHES:
        for popularity in POPULARITIES:
            found = logits_of(runner, some_requests(rows, popularity))
            assert_as_near_as_bfloat16(found, *references(rank, rows, popularity))


@pytest.mark.slow
def test_a_real_model_strays_no_further_from_float32_than_transformers_in_bfloat16(
    model_dir: Path, kernels: Path
) -> None:
    """Mean divergence 0.0002 where transformers has 0.0024."""
    transformers = pytest.importorskip("transformers")
    tokens = transformers.AutoTokenizer.from_pretrained(model_dir)(ENGLISH)["input_ids"]
    one = request(tokens, [])
    one.pages = [5, 3, 8, 1, 9, 2, 6]
    found = compiled(model_dir, kernels).run([Chunk(one, 0, len(tokens))]).logits
    assert found is not None
    oracle = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        exact = oracle(torch.tensor([tokens])).logits[0]
        rounded = oracle.bfloat16()(torch.tensor([tokens])).logits[0].float()
    assert divergence(found, exact) <= min(0.001, divergence(rounded, exact))
    best = exact.topk(2, dim=-1)
    clear = best.values[:, 0] - best.values[:, 1] > 0.25
    assert torch.equal(found.argmax(dim=-1)[clear], best.indices[:, 0][clear])


# ---- bit for bit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("threads", [2, 3])
def test_a_row_is_the_same_in_any_company(model: Path, kernels: Path, instructions: str, threads: int) -> None:
    together, alone = compiled(model, kernels, instructions, threads), compiled(model, kernels, instructions, 1)
    load_adapters([together, alone], model, "mixed")
    crowd = logits_of(together, some_requests(37, "uniform"))
    for i, one in enumerate(some_requests(37, "uniform")):
        assert torch.equal(logits_of(alone, [one])[0], crowd[i]), i


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_a_prompt_is_the_same_in_chunks_of_any_size_and_decoded(model: Path, kernels: Path, instructions: str) -> None:
    runner = compiled(model, kernels, instructions)
    load_adapters([runner], model, "mixed")
    rng = random.Random(3)
    tokens = [rng.randrange(211) for _ in range(500)]
    pages = rng.sample(range(LIMITS.pages), 40)

    for recipe in ([], [(4, 1.0), (1, -0.5)]):
        whole = in_chunks(runner, tokens, pages, recipe, [500])
        for sizes in ([450], [16], [1], [33, 1, 7, 64]):
            assert torch.equal(in_chunks(runner, tokens, pages, recipe, sizes), whole), sizes


# ---- other families -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_the_reference_and_itself_in_any_chunks(
    tmp_path: Path, kernels: Path, family: str, instructions: str
) -> None:
    model = write_model(tmp_path, **FAMILIES[family])
    runner = compiled(model, kernels, instructions)
    exact, rounded = reference(model), reference(model, torch.bfloat16)
    load_adapters([runner, exact, rounded], model, "mixed")
    found = logits_of(runner, some_requests(7, "skewed"))
    others = (logits_of(one, some_requests(7, "skewed")) for one in (exact, rounded))
    assert_as_near_as_bfloat16(found, *others)
    for i, one in enumerate(some_requests(7, "skewed")):
        assert torch.equal(logits_of(runner, [one])[0], found[i]), i
    tokens, pages = random.Random(3).choices(range(211), k=120), random.Random(4).sample(range(LIMITS.pages), 8)
    whole = in_chunks(runner, tokens, pages, [(4, 1.0)], [120])
    for sizes in ([16], [7, 1, 33]):
        assert torch.equal(in_chunks(runner, tokens, pages, [(4, 1.0)], sizes), whole), sizes


# ---- isolation and sampling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_a_poisoned_row_leaves_its_company_and_its_pages_followers_alone(
    model: Path, kernels: Path, instructions: str
) -> None:
    runner = compiled(model, kernels, instructions)
    layout = DecoderConfig.from_path(model).layout()
    shape = layout["model.layers.0.self_attn.v_proj"]
    a, b = torch.full((2, shape.in_features), 3e38), torch.full((shape.out_features, 2), 3e38)
    runner.factors.put(0, {"model.layers.0.self_attn.v_proj": LoraFactors(a.bfloat16(), b.bfloat16(), 1.0)})
    tokens = [random.Random(0).randrange(211) for _ in range(40)]
    clean, poisoned, later = (request(tokens, recipe, GREEDY) for recipe in ([], [(0, 1.0)], []))
    clean.pages, poisoned.pages, later.pages = [1, 2, 3], [7, 8, 9], [9, 7, 8]
    alone = runner.run([Chunk(clean, 0, 40)]).tokens
    assert runner.run([Chunk(poisoned, 0, 40), Chunk(clean, 0, 40)]).tokens == [None, *alone]
    assert runner.run([Chunk(later, 0, 40)]).tokens == alone


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_draws_what_the_reference_draws(model: Path, kernels: Path, instructions: str) -> None:
    runner, ops = compiled(model, kernels, instructions), Ops(BACKENDS["reference"])
    rng = random.Random(5)
    for trial in range(12):
        requests = []
        for _ in range(9):
            sampling = Sampling(
                max_tokens=9,
                temperature=rng.choice([0.0, 0.3, 1.0, 5.0]),
                top_k=rng.choice([0, 0, 1, 5, 210, 1000]),
                top_p=rng.choice([1.0, 1.0, 0.9, 0.2]),
                seed=rng.getrandbits(64),
                logprobs=0,
            )
            requests.append(request([rng.randrange(211) for _ in range(1 + trial)], [], sampling))
        give_pages(requests)
        outputs = runner.run([Chunk(one, 0, len(one.tokens)) for one in requests])
        assert outputs.logits is not None
        assert outputs.tokens == choose(ops, outputs.logits, requests)


# ---- what is not served ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"head_dim": 8}, "head size of 8"),
        ({"model_type": "falcon"}, "layer norms"),
    ],
)
def test_refuses_by_name_and_falls_back(
    tmp_path: Path, kernels: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, object], named: str
) -> None:
    model = write_model(tmp_path, **changes)
    config = DecoderConfig.from_path(model)
    weights = load_weights(model, config, "bfloat16")
    with pytest.raises(KernelsUnavailable, match=named):
        CompiledRunner(config, weights, LIMITS, kernels)
    assert best_runner(config, weights, LIMITS, kernels).backend == "reference"
    assert named in caplog.text


def test_no_compiler_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelsUnavailable, match="no C\\+\\+ compiler"):
        library_path(tmp_path)


def test_a_compiler_that_fails_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, cache = tmp_path / "bin" / "c++", tmp_path / "cache"
    compiler.parent.mkdir()
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "x.cpp:1: error: no such thing" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(compiler.parent), prepend=":")
    (cache / "cpu-build-killed").mkdir(parents=True)
    (cache / "cpu-build-killed/step.o").touch()
    (cache / "tmp").mkdir()  # another's
    with pytest.raises(KernelsUnavailable, match=r"error: no such thing$"):
        library_path(cache)
    assert {path.name for path in cache.iterdir()} == {"cpu.lock", "tmp"}


def test_a_library_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cpu.so").write_bytes(b"no library")
    with pytest.raises(KernelsUnavailable, match=r"cannot be loaded: .*cpu\.so"):
        load_library(tmp_path / "cpu.so")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "/elsewhere"}, Path("/elsewhere/openlora")),
        ({"XDG_CACHE_HOME": "relative"}, Path.home() / ".cache/openlora"),
        ({}, Path.home() / ".cache/openlora"),
    ],
)
def test_where_the_library_is_kept(environment: dict[str, str], expected: Path) -> None:
    assert user_cache(environment) == expected
