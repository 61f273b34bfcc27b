"""The compiled decoder against the reference: the same model, op by op in float32, with weights that bfloat16 holds.

What bfloat16 activations cost is known from the reference itself: run in bfloat16, it strays from float32 by some
amount, and the compiled decoder, which rounds less often, may stray no further.
"""

import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from openlora.kernels.errors import KernelsUnavailable
from openlora.kernels.ops import BACKENDS, Ops
from openlora.kernels.types import LoraFactors
from openlora.node.engine.compiled import CompiledRunner
from openlora.node.engine.loader import load_weights
from openlora.node.engine.messages import Sampling
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.runner import OpsRunner, Runner
from openlora.node.engine.runners import best_runner
from openlora.node.engine.sampling import choose
from openlora.node.engine.sequence import Chunk
from tests.node.engine.compared import (
    ENGLISH,
    FAMILIES,
    INSTRUCTIONS,
    LIMITS,
    MODEL,
    SLOTS,
    assert_as_near_as_bfloat16,
    compiled,
    divergence,
    give_pages,
    load_adapters,
    load_kinds,
    logits_of,
    reference,
    request,
    some_requests,
)
from tests.node.engine.tiny import write_model

BATCHES = (1, 2, 3, 7, 33, 133)
POPULARITIES = ("distinct", "identical", "uniform", "skewed")
References = Callable[[int | str, int, str], tuple[Tensor, Tensor]]
GREEDY = Sampling(max_tokens=1000, temperature=0.0)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), **MODEL)


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
