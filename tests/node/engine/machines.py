"""Engines on tiny and on real models, on each unit of the compiled decoder, and what they answer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from openlora.node.engine.checkpoint import Checkpoint
from openlora.node.engine.compiled import CompiledRunner
from openlora.node.engine.engine import Engine
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.loader import load_weights
from openlora.node.engine.messages import (
    AdapterLoaded,
    AdapterUse,
    GetStatus,
    LoadAdapter,
    Sampling,
    Status,
    Submit,
    Token,
    UnloadAdapter,
)
from openlora.node.engine.models.config import DecoderConfig
from tests.node.engine.tiny import write_adapter
from tests.node.engine.units import with_unit

UNITS = ("amx", "avx512", "avx2", "plain")
RANKS = (1, 4, 8, 17, 33)
KEYS = tuple(f"rank{rank}" for rank in RANKS)
KV_TOKENS = 4096
TINY = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 136,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
}
Answer = list[tuple[int, float | None, tuple[tuple[int, float], ...]]]


@dataclass(frozen=True)
class Machine:
    """A model on one unit, and adapters for it; engines that are opened on it one after another share both."""

    checkpoint: Checkpoint
    config: DecoderConfig
    runner: CompiledRunner
    adapters: Path

    @contextmanager
    def engine(self, **limits: int | bool) -> Iterator[Engine]:
        engine = Engine(self.config, self.runner, EngineLimits(**{"kv_tokens": KV_TOKENS, **limits}), self.checkpoint)
        for key in KEYS:
            (loaded,) = engine.handle(LoadAdapter(key=key, path=str(self.adapters / key)))
            assert isinstance(loaded, AdapterLoaded), loaded
        yield engine
        assert not engine.has_work
        engine.check_integrity()
        for key in status(engine).adapters:
            engine.handle(UnloadAdapter(key=key))


Machines = Callable[[str], Machine]


def machines_of(model: Path, adapters: Path, kernels: Path, form: str = "auto") -> Machines:
    config = DecoderConfig.from_path(model)
    for number, (key, rank) in enumerate(zip(KEYS, RANKS, strict=True)):
        write_adapter(adapters / key, config, number, rank=rank)

    def machine(unit: str) -> Machine:
        torch.set_num_threads(2)
        try:
            limits = EngineLimits(kv_tokens=KV_TOKENS)
            with with_unit(unit):
                runner = CompiledRunner(config, load_weights(model, config, "bfloat16", form), limits, kernels, unit)
            return Machine(Checkpoint(model, config), config, runner, adapters)
        finally:
            torch.set_num_threads(1)

    return machine


def submit(
    name: str, prompt: Iterable[int], recipe: Sequence[AdapterUse], tenant: str = "", **sampling: float | None
) -> Submit:
    settings = {"max_tokens": 6, "temperature": 0.8, "seed": 7, "logprobs": 20, "ignore_eos": True, **sampling}
    return Submit(
        request_id=name, prompt=tuple(prompt), sampling=Sampling(**settings), adapters=tuple(recipe), tenant=tenant
    )


def step(engine: Engine, answers: dict[str, Answer]) -> list[Token]:
    done = engine.step()
    assert engine.take_refused() == []
    tokens = list(done.tokens) if done else []
    for token in tokens:
        answers.setdefault(token.request_id, []).append((token.token_id, token.logprob, token.top))
    return tokens


def run(engine: Engine, submits: Iterable[Submit]) -> dict[str, Answer]:
    for one in submits:
        assert engine.handle(one) == []
    answers: dict[str, Answer] = {}
    while engine.has_work:
        step(engine, answers)
    return answers


def status(engine: Engine) -> Status:
    (answer,) = engine.handle(GetStatus())
    assert isinstance(answer, Status)
    return answer
