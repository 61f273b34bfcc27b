"""Recipes as vLLM can load them: one PEFT adapter each."""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

import torch
from safetensors.torch import save_file
from torch import Tensor

from openlora.kernels.types import Change, LoraFactors
from openlora.node.engine.adapter_pool import ResidentAdapter
from openlora.node.errors import AdapterError, RequestError

Uses = Sequence[tuple[ResidentAdapter, float]]  # adapters and their weights


class HostFactors:
    """The factors of every slot, in the machine's memory: a FactorStore."""

    def __init__(self, embedding: str) -> None:
        """`embedding`: the module that vLLM changes for no adapter."""
        self._embedding = embedding
        self._slots: dict[int, Mapping[str, LoraFactors]] = {}

    def __getitem__(self, slot: int) -> Mapping[str, LoraFactors]:
        return self._slots[slot]

    def put(self, slot: int, changes: Mapping[str, Change]) -> None:
        factors: dict[str, LoraFactors] = {}
        for module, change in changes.items():
            if module == self._embedding or not isinstance(change, LoraFactors) or change.stretch is not None:
                raise AdapterError(
                    "vLLM serves no DoRA, biases, whole weights or embedding's adapter; our own engine does"
                )
            factors[module] = change
        self._slots[slot] = factors

    def drop(self, slot: int) -> None:
        del self._slots[slot]

    def holds(self, slot: int) -> bool:
        return slot in self._slots


@dataclass(slots=True)
class Recipe:
    """A PEFT directory with the effect of weighted adapters. `number` is never used for another."""

    number: int
    directory: Path
    users: int = 0


class Recipes:
    """Writes each recipe once, and keeps the last `capacity` of those that nobody uses any more."""

    def __init__(self, folder: Path, factors: HostFactors, max_rank: int, capacity: int = 256) -> None:
        self.factors = factors
        self._folder = folder
        self._max_rank = max_rank
        self._capacity = capacity
        self._recipes: OrderedDict[tuple[tuple[bytes, float], ...], Recipe] = OrderedDict()
        self._written = 0

    def acquire(self, uses: Uses) -> Recipe:
        """The recipe of adapters that are held, until `release`. Raises RequestError `bad_adapters` if its ranks add up
        to more than vLLM sets memory aside for."""
        key = tuple((adapter.content, weight) for adapter, weight in uses)
        recipe = self._recipes.get(key)
        if recipe is None:
            recipe = self._recipes[key] = self._write(uses)
        self._recipes.move_to_end(key)
        recipe.users += 1
        return recipe

    def release(self, recipe: Recipe) -> None:
        recipe.users -= 1
        idle = [key for key, each in self._recipes.items() if not each.users]
        for key in idle[: max(0, len(idle) - self._capacity)]:
            rmtree(self._recipes.pop(key).directory)

    def _write(self, uses: Uses) -> Recipe:
        merged = side_by_side([(self.factors[adapter.slot], weight) for adapter, weight in uses])
        rank = max(len(a) for a, _ in merged.values())
        if rank > self._max_rank:
            raise RequestError(
                "bad_adapters",
                f"the adapters' ranks add up to {rank}, and this node's engine takes {self._max_rank}: name fewer, or "
                "raise engine.vllm.max_rank",
            )
        self._written += 1
        directory = self._folder / str(self._written)
        directory.mkdir()
        write_peft(directory, merged, rank)
        return Recipe(self._written, directory)


def side_by_side(terms: Sequence[tuple[Mapping[str, LoraFactors], float]]) -> dict[str, tuple[Tensor, Tensor]]:
    """For each module (A, B) with B·A = Σ wᵢ·sᵢ·Bᵢ·Aᵢ exactly: A stacks the Aᵢ, B the wᵢ·sᵢ·Bᵢ beside each other."""
    modules = sorted({module for factors, _ in terms for module in factors})
    return {module: _joined(list(_terms_of(module, terms))) for module in modules}


def _terms_of(
    module: str, terms: Sequence[tuple[Mapping[str, LoraFactors], float]]
) -> Iterator[tuple[LoraFactors, float]]:
    for factors, weight in terms:
        if (factor := factors.get(module)) is not None:
            yield factor, weight


def _joined(terms: Sequence[tuple[LoraFactors, float]]) -> tuple[Tensor, Tensor]:
    a = torch.cat([factor.a for factor, _ in terms])
    b = torch.cat([(factor.b.float() * (weight * factor.scale)).to(factor.b.dtype) for factor, weight in terms], dim=1)
    return a, b


def write_peft(directory: Path, merged: Mapping[str, tuple[Tensor, Tensor]], rank: int) -> None:
    """An adapter of scale 1 in PEFT's format; modules may have fewer ranks than `rank`."""
    tensors, ranks = {}, {}
    for module, (a, b) in merged.items():
        ranks[module] = len(a)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(merged),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
    }
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(config))
