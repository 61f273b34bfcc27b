"""Recipes as vLLM's adapters: exact sums, written once, dropped when there are too many."""

from pathlib import Path

import pytest
import torch

from openlora.kernels.types import Change, Difference, LoraFactors
from openlora.node.adapters.format import read_adapter
from openlora.node.adapters.modules import bias_of
from openlora.node.engine.adapter_pool import ResidentAdapter
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.vllm.recipes import HostFactors, Recipes, side_by_side
from openlora.node.errors import AdapterError, RequestError
from tests.node.engine import tiny

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"


def factors(seed: int, rank: int, scale: float, outputs: int = 32) -> LoraFactors:
    rng = torch.Generator().manual_seed(seed)
    return LoraFactors(torch.randn(rank, 32, generator=rng), torch.randn(outputs, rank, generator=rng), scale)


def product(factor: LoraFactors) -> torch.Tensor:
    return factor.scale * factor.b.double() @ factor.a.double()


def adapter(slot: int) -> ResidentAdapter:
    return ResidentAdapter(key=str(slot), slot=slot, rank=0, nbytes=0, content=bytes([slot]))


@pytest.fixture
def store() -> HostFactors:
    held = HostFactors("model.embed_tokens")
    held.put(0, {Q: factors(0, 4, 0.5), V: factors(1, 2, 2.0, outputs=16)})
    held.put(1, {Q: factors(2, 8, 1.0)})
    return held


def test_ranks_side_by_side_are_the_weighted_sum(store: HostFactors) -> None:
    merged = side_by_side([(store[0], 0.75), (store[1], -1.5)])
    assert {module: len(a) for module, (a, _) in merged.items()} == {Q: 12, V: 2}
    for module, terms in {Q: [(0, 0.75), (1, -1.5)], V: [(0, 0.75)]}.items():
        a, b = merged[module]
        wanted = sum(weight * product(store[slot][module]) for slot, weight in terms)
        torch.testing.assert_close(b.double() @ a.double(), wanted, rtol=1e-6, atol=1e-6)


def test_what_is_written_is_an_adapter_of_the_model(store: HostFactors, tmp_path: Path) -> None:
    layout = DecoderConfig.from_path(tiny.write_config(tmp_path / "model")).modules()
    recipe = Recipes(tmp_path, store, max_rank=16).acquire([(adapter(0), 1.0), (adapter(1), 1.0)])
    read = read_adapter(recipe.directory, layout)
    assert read.rank == 12
    assert set(read.factors) == {Q, V}
    assert {factor.scale for factor in read.factors.values()} == {1.0}


def test_a_recipe_is_written_once_and_kept_while_it_is_used(store: HostFactors, tmp_path: Path) -> None:
    recipes = Recipes(tmp_path, store, max_rank=64, capacity=1)
    first = recipes.acquire([(adapter(0), 1.0)])
    assert recipes.acquire([(adapter(0), 1.0)]) is first
    others = [recipes.acquire([(adapter(0), weight)]) for weight in (2.0, 3.0)]
    for recipe in (first, *others):
        recipes.release(recipe)
    assert [recipe.directory.exists() for recipe in (first, *others)] == [True, False, True]
    assert recipes.acquire([(adapter(0), 2.0)]).number not in {recipe.number for recipe in (first, *others)}


def test_too_large_a_sum_is_refused_and_writes_nothing(store: HostFactors, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"add up to 12, .* takes 8"):
        Recipes(tmp_path, store, max_rank=8).acquire([(adapter(0), 1.0), (adapter(1), 1.0)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"model.embed_tokens": factors(0, 4, 1.0)},
        {Q: LoraFactors(torch.ones(1, 32), torch.ones(32, 1), 1.0, stretch=torch.ones(32))},
        {Q: Difference(torch.ones(32, 32))},
        {Q: factors(0, 2, 1.0), bias_of(Q): Difference(torch.ones(32))},
    ],
)
def test_what_vllm_cannot_serve_is_refused(store: HostFactors, change: dict[str, Change]) -> None:
    with pytest.raises(AdapterError, match="our own engine does"):
        store.put(2, change)
    assert not store.holds(2)
