"""The CUDA runner on a processor: its kernels interpreted, its graphs a repetition of the same calls."""

import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from openlora.kernels.ops import Ops
from openlora.kernels.types import LoraFactors
from openlora.node.engine.graphs import Graphs, Repetition, Step
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.loader import load_weights
from openlora.node.engine.messages import Sampling
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.models.decoder import Decoder
from openlora.node.engine.runner import Runner
from openlora.node.engine.sequence import Chunk
from openlora.node.engine.sequence import Sequence as Request
from tests.kernels import interpreter
from tests.node.engine.compared import load_adapters, load_kinds, request
from tests.node.engine.tiny import write_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
LIMITS = EngineLimits(kv_tokens=512, page_tokens=16, max_running=12)
GREEDY = Sampling(max_tokens=100, temperature=0.0)
Recipe = list[tuple[int, float]]


class CountedGraphs:
    """Repetitions, and how many were made."""

    def __init__(self) -> None:
        self.captures = 0

    def capture(self, step: Step) -> Step:
        self.captures += 1
        return Repetition().capture(step)


class BrokenGraphs:
    def __init__(self) -> None:
        self.tries = 0

    def capture(self, step: Step) -> Step:
        self.tries += 1
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    interpreter.triton_backend()
    with interpreter.mended(), np.errstate(invalid="ignore"):
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), num_hidden_layers=1)


def runner(model: Path, graphs: Graphs | None, form: str = "auto", dtype: str = "float32"):  # type: ignore[no-untyped-def]  # imports triton
    from openlora.node.engine.cuda import CudaRunner, packed

    config = DecoderConfig.from_path(model)
    ops = Ops(interpreter.triton_backend())
    decoder = Decoder(config, packed(load_weights(model, config, dtype, form)), ops)
    made = CudaRunner(decoder, ops, LIMITS, graphs)
    rng = torch.Generator().manual_seed(0)
    for cache in (*made._cache.keys, *made._cache.values):  # in the place of prompts, which would take minutes
        cache.copy_(torch.randn(cache.shape, generator=rng))
    return made


def requests_of(recipes: Sequence[Recipe]) -> list[Request]:
    """Contexts of 2 to 30 tokens on pages in no order, two each."""
    rng = random.Random(len(recipes))
    pages = rng.sample(range(LIMITS.pages), 2 * len(recipes))
    found = []
    for i, recipe in enumerate(recipes):
        one = request([rng.randrange(97) for _ in range(2 + 17 * i % 29)], recipe, GREEDY)
        one.pages = pages[2 * i : 2 * i + 2]
        found.append(one)
    return found


def decoded(runner: Runner, requests: Sequence[Request], steps: int = 2) -> list[Tensor]:
    """The logits of each step, after which each request has another token, the greedy one."""
    found = []
    for _ in range(steps):
        outputs = runner.run([Chunk(one, len(one.tokens) - 1, 1) for one in requests])
        assert outputs.logits is not None
        found.append(outputs.logits.clone())
        for one, token in zip(requests, outputs.tokens, strict=True):
            assert token is not None
            one.tokens.append(token)
    return found


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


RECIPES = {
    "base": [[] for _ in range(3)],
    "one": [[(2, 1.0)]],
    "alone": [[(i, 0.5)] if i % 3 else [] for i in range(5)],
    "ensembles": [[(i, 0.5), (i + 3, -0.25), (1, 1.0)][: i % 4] for i in range(5)],
}


@pytest.mark.parametrize("recipes", RECIPES.values(), ids=RECIPES.keys())
def test_padded_rows_of_fixed_buffers_give_the_logits_of_the_plain_path(model: Path, recipes: list[Recipe]) -> None:
    plain, captured = runner(model, None), runner(model, graphs := CountedGraphs())
    load_adapters((plain, captured), model, 8)
    assert_same(decoded(captured, requests_of(recipes)), decoded(plain, requests_of(recipes)))
    assert graphs.captures == 1, "the second step repeats the first"


def test_what_a_step_left_in_the_buffers_is_nothing_to_the_next(model: Path) -> None:
    plain, captured = runner(model, None), runner(model, graphs := CountedGraphs())
    load_adapters((plain, captured), model, 8)
    for count in (4, 3):  # both in buffers of four rows
        recipes: list[Recipe] = [[(i + count, 1.0)] for i in range(count)]
        assert_same(decoded(captured, requests_of(recipes), 1), decoded(plain, requests_of(recipes), 1))
    assert graphs.captures == 1


def test_rows_that_nobody_needs_touch_no_page_of_the_allocators(model: Path) -> None:
    captured = runner(model, Repetition())
    load_adapters([captured], model, 8)
    requests = requests_of([[(0, 1.0)]] * 3)
    before = captured._cache.keys[0].clone()
    starts = [len(one.tokens) - 1 for one in requests]
    decoded(captured, requests, 1)
    changed = (captured._cache.keys[0] != before).flatten(2).any(dim=2).nonzero().tolist()
    written = {(one.pages[start // 16], start % 16) for one, start in zip(requests, starts, strict=True)}
    assert {(page, place) for page, place in changed} == {*written, (LIMITS.pages, 0)}


def test_adapters_come_and_go_between_repetitions(model: Path) -> None:
    """Another one in the slot, of no larger rank, is found by the same graph; a larger one is captured again."""
    plain, captured = runner(model, None), runner(model, graphs := CountedGraphs())
    recipes: list[Recipe] = [[(i, 1.0)] for i in range(2)]
    for rank, captures in ((8, 1), (16, 1), (3, 2), (33, 3), (8, 3)):
        load_adapters((plain, captured), model, rank)
        assert_same(decoded(captured, requests_of(recipes), 1), decoded(plain, requests_of(recipes), 1))
        assert graphs.captures == captures, f"rank {rank}"
    for one in (plain, captured):
        for slot in range(8):
            one.factors.drop(slot)
    assert_same(decoded(captured, requests_of(recipes), 1), decoded(plain, requests_of([[], []]), 1))


def test_adapters_that_replace_weights_are_launched_kernel_by_kernel(model: Path) -> None:
    plain, captured = runner(model, None), runner(model, graphs := CountedGraphs())
    load_kinds((plain, captured), model)
    recipes: list[Recipe] = [[(min(captured.factors.replacing), 1.0)], []]
    assert_same(decoded(captured, requests_of(recipes), 1), decoded(plain, requests_of(recipes), 1))
    assert graphs.captures == 0
    recipes = [[(slot, 1.0)] for slot in range(8) if slot not in captured.factors.replacing][:2]
    assert recipes
    assert_same(decoded(captured, requests_of(recipes), 1), decoded(plain, requests_of(recipes), 1))
    assert graphs.captures == 1, "whatever lies in other slots"


def test_adapters_of_the_embedding_are_captured(model: Path) -> None:
    config = DecoderConfig.from_path(model)
    rng = torch.Generator().manual_seed(0)
    change = LoraFactors(torch.randn(4, 97, generator=rng), torch.randn(32, 4, generator=rng), 0.5)
    plain, captured = runner(model, None), runner(model, graphs := CountedGraphs())
    for one in (plain, captured):
        one.factors.put(0, {config.names.embedding: change})
    recipes: list[Recipe] = [[(0, 1.0)], [], [(0, -1.0)]]
    found = decoded(captured, requests_of(recipes), 1)
    assert_same(found, decoded(plain, requests_of(recipes), 1))
    assert not torch.allclose(found[0][0], decoded(captured, requests_of([[], [], []]), 1)[0][0])
    assert graphs.captures == 2


def test_where_capturing_fails_decoding_goes_on_and_it_is_said_once(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, broken = runner(model, None), runner(model, graphs := BrokenGraphs())
    with caplog.at_level(logging.WARNING):
        assert_same(decoded(broken, requests_of(RECIPES["base"])), decoded(plain, requests_of(RECIPES["base"])))
    said = [record.message for record in caplog.records]
    assert len(said) == graphs.tries == 1
    assert said[0] == "event=graphs_unavailable reason='operation not permitted when stream is capturing'"


def test_few_graphs_are_kept(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openlora.node.engine import cuda

    monkeypatch.setattr(cuda, "MAX_GRAPHS", 2)
    captured = runner(model, graphs := CountedGraphs())
    for count in (1, 2, 4, 4, 1):
        decoded(captured, requests_of([[]] * count), 1)
    assert graphs.captures == 4, "the size of one row had been forgotten"


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_weights_of_fewer_bits(model: Path, form: str) -> None:
    from openlora.kernels.ops import BACKENDS
    from openlora.node.engine.runner import OpsRunner

    config, ops = DecoderConfig.from_path(model), Ops(BACKENDS["reference"])
    weights = load_weights(model, config, "float32", form)
    exact = OpsRunner(Decoder(config, weights, ops), ops, LIMITS.pages + 1, LIMITS.page_tokens)
    captured = runner(model, Repetition(), form)
    exact._cache = captured._cache
    load_adapters((exact, captured), model, 8)
    assert captured.form == form
    found, expected = (decoded(one, requests_of(RECIPES["one"]), 1) for one in (captured, exact))
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)


def test_bfloat16_strays_as_little_as_the_plain_path(model: Path) -> None:
    plain, captured = (runner(model, graphs, dtype="bfloat16") for graphs in (None, Repetition()))
    load_adapters((plain, captured), model, 8)
    found, expected = (decoded(one, requests_of(RECIPES["one"]), 1) for one in (captured, plain))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.1)
