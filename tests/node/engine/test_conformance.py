"""What every engine must do, asked of each as the agent asks: a child process behind the same client.

vLLM's half is skipped where `make vllm` has not been run.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import pytest_asyncio
import torch

from openlora.node.config import Backend, EngineConfig, ModelConfig, VllmConfig
from openlora.node.engine.backends import engine_options
from openlora.node.engine.client import EngineClient
from openlora.node.engine.engine import Engine, ScoreRequest
from openlora.node.engine.messages import AdapterUse, LoadAdapter, Sampling, Token
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.supervisor import supervised_engine
from openlora.node.errors import AdapterError, EngineDied, RequestError
from tests.node.engine import tiny

# A module's tests share an engine each: vLLM takes half a minute to start.
pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("conformance")]

VLLM = Path(__file__).resolve().parents[3] / "var/peers/vllm"  # what `make vllm` makes
MAX_RANK = 32
LENGTHS = (3, 40, 17, 300, 90, 5, 128, 33)
RANKS = {"a": 4, "b": 8, "c": 16}
TOLERANCE = 2e-3  # of a log-probability, in float32


@dataclass(frozen=True)
class Bench:
    """An engine, the folder of its model and adapters, and what computes the right answers."""

    client: EngineClient
    folder: Path
    oracle: Engine

    @property
    def config(self) -> DecoderConfig:
        return DecoderConfig.from_path(self.folder / "model")

    async def generate(
        self, prompt: Sequence[int], uses: Sequence[AdapterUse] = (), output: int = 12, **sampling: Any
    ) -> list[Token]:
        usual = Sampling(max_tokens=output, temperature=0.0, logprobs=2)
        chosen = msgspec.structs.replace(usual, **sampling)
        return [token async for tokens in self.client.generate(prompt, chosen, uses) for token in tokens]

    def check(self, prompt: Sequence[int], uses: Sequence[AdapterUse], tokens: Sequence[Token]) -> None:
        """The tokens are greedy ones, and their log-probabilities the model's."""
        text = (*prompt, *(token.token_id for token in tokens))
        (rows,) = self.oracle.score([ScoreRequest(text[:-1], tuple(uses))])
        for row, token in zip(rows[len(prompt) - 1 :], tokens, strict=True):
            assert token.logprob is not None
            assert abs(token.logprob - float(row[token.token_id])) <= TOLERANCE
            assert float(row.max()) - float(row[token.token_id]) <= TOLERANCE
            assert [abs(value - float(row[other])) <= TOLERANCE for other, value in token.top] == [True, True]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(Backend))
async def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    if request.param is Backend.VLLM and not (VLLM / ".openlora").exists():
        pytest.skip("vLLM's half is NOT tested: `make vllm` installs it")
    folder = tmp_path_factory.mktemp("conformance")
    shape = {"vocab_size": 512, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    model = tiny.write_model(folder / "model", **shape, architectures=["LlamaForCausalLM"])
    for seed, (name, rank) in enumerate(RANKS.items()):
        targets = tiny.TARGETS if name != "b" else ("q_proj", "o_proj", "down_proj")
        tiny.write_adapter(folder / name, DecoderConfig.from_path(model), seed, rank=rank, targets=targets)
    vllm = VllmConfig(python=str(VLLM / "bin/python"), max_recipes=2, max_rank=MAX_RANK, eager=True)
    config = EngineConfig(backend=request.param, kv_tokens=16_384, max_running=16, vllm=vllm)
    torch.set_num_threads(1)
    oracle = Engine.load(model, dtype="float32")
    async with supervised_engine(engine_options(ModelConfig(path=model, dtype="float32"), config), folder) as client:
        bench = Bench(client, folder, oracle)
        for name in RANKS:
            oracle.handle(LoadAdapter(key=name, path=str(folder / name)))
            await client.load_adapter(name, str(folder / name))
        yield bench


def prompt_of(length: int, seed: int = 0) -> list[int]:
    rng = torch.Generator().manual_seed(1_000 * seed + length)
    return torch.randint(3, 512, (length,), generator=rng).tolist()


def recipes() -> list[tuple[AdapterUse, ...]]:
    """Base, each adapter, and sums of several with weights of both signs: more than vLLM has slots for."""
    a, b, c = (AdapterUse(name) for name in RANKS)
    ensemble = (AdapterUse("a", 0.75), AdapterUse("b", -0.5), AdapterUse("c", 1.25))
    return [(), (a,), (b,), (c,), ensemble, (AdapterUse("b", 2.0),), (a, c), ()]


async def test_a_mixed_batch_answers_as_the_model_does(bench: Bench) -> None:
    prompts = [prompt_of(length) for length in LENGTHS]
    answers = await asyncio.gather(*(bench.generate(*each) for each in zip(prompts, recipes(), strict=True)))
    for prompt, uses, tokens in zip(prompts, recipes(), answers, strict=True):
        assert len(tokens) == 12
        bench.check(prompt, uses, tokens)


async def test_tokens_stream_and_a_cancelled_request_ends(bench: Bench) -> None:
    stream = bench.client.generate(prompt_of(8), Sampling(max_tokens=400, temperature=0.0, ignore_eos=True))
    async with aclosing(stream):
        for _ in range(5):
            assert (await anext(stream))[-1].finish_reason is None
        assert (await bench.client.status()).running == 1
    async with asyncio.timeout(30):
        while (status := await bench.client.status()).running + status.waiting:
            await bench.generate([7], output=1)
    assert status.kv_tokens_free == bench.client.info.kv_tokens


async def test_ends_are_named(bench: Bench) -> None:
    free = await bench.generate(prompt_of(9), ignore_eos=True)
    assert [token.finish_reason for token in free] == [None] * 11 + ["length"]
    stop = free[4].token_id
    stopped = await bench.generate(prompt_of(9), ignore_eos=True, stop_token_ids=(stop,))
    first = [token.token_id for token in free].index(stop)
    assert [token.token_id for token in stopped] == [token.token_id for token in free[: first + 1]]
    assert stopped[-1].finish_reason == "stop"


async def test_sampling_follows_its_seed(bench: Bench) -> None:
    async def drawn(seed: int) -> list[int]:
        tokens = await bench.generate(prompt_of(20), output=24, temperature=1.0, top_p=0.95, seed=seed, ignore_eos=True)
        return [token.token_id for token in tokens]

    assert await drawn(2**64 - 1) == await drawn(2**64 - 1) != await drawn(5)


async def test_a_replaced_adapter_serves_whoever_started_with_it(bench: Bench) -> None:
    old, new, prompt = bench.folder / "a", bench.folder / "c", prompt_of(30)
    await bench.client.load_adapter("churn", str(old))
    sampling = Sampling(max_tokens=40, temperature=0.0, logprobs=2, ignore_eos=True)
    running = bench.client.generate(prompt, sampling, (AdapterUse("churn"),))
    before = [*await anext(running)]
    for name in ("b", "c", "a", "b"):  # vLLM's slots are filled and emptied beside the running request
        await bench.generate(prompt, (AdapterUse(name, 0.5),), output=2)
    await bench.client.load_adapter("churn", str(new))
    after = await bench.generate(prompt, (AdapterUse("churn"),))
    before += [token async for tokens in running for token in tokens]
    bench.check(prompt, (AdapterUse("a"),), before)
    bench.check(prompt, (AdapterUse("c"),), after)
    await bench.client.unload_adapter("churn")
    with pytest.raises(RequestError, match="churn") as refusal:
        await bench.generate(prompt, (AdapterUse("churn"),))
    assert refusal.value.code == "unknown_adapter"


async def test_what_cannot_run_is_refused_and_costs_nobody(bench: Bench) -> None:
    running = asyncio.create_task(bench.generate(prompt_of(16), (AdapterUse("b"),), output=60, ignore_eos=True))
    cut = tiny.write_adapter(bench.folder / "cut", bench.config, 9, rank=4)
    weights = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(weights[:-8])
    with pytest.raises(AdapterError):
        await bench.client.load_adapter("cut", str(cut))
    for prompt, output, code in (
        ([], 1, "bad_input"),
        ([512], 1, "bad_input"),
        (prompt_of(400), 200, "context_length"),
    ):
        with pytest.raises(RequestError) as refusal:
            await bench.generate(prompt, output=output)
        assert refusal.value.code == code
    with pytest.raises(RequestError) as refusal:
        await bench.generate([5], temperature=-1.0)
    assert refusal.value.code == "bad_sampling"
    bench.check(prompt_of(16), (AdapterUse("b"),), await running)


async def test_a_recipe_beyond_vllms_memory_is_refused_by_its_ranks(bench: Bench) -> None:
    if not bench.client.info.backend.startswith("vllm"):
        pytest.skip("our engine sets nothing aside for ranks")
    with pytest.raises(RequestError, match=rf"add up to 36, .* takes {MAX_RANK}"):
        await bench.generate([5], [AdapterUse(name) for name in ("a", "c", "c")])


async def test_a_killed_engine_fails_its_work_and_comes_back_with_its_adapters(bench: Bench) -> None:
    stream = bench.client.generate(prompt_of(8), Sampling(max_tokens=400, temperature=0.0, ignore_eos=True))
    await anext(stream)
    (child,) = [each for each in psutil.Process().children() if str(bench.folder / "model") in each.cmdline()]
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(EngineDied):
        async for _ in stream:
            pass
    async with asyncio.timeout(180):
        while True:
            try:
                tokens = await bench.generate(prompt_of(12), (AdapterUse("c", 0.5),))
                break
            except EngineDied:
                continue
    bench.check(prompt_of(12), (AdapterUse("c", 0.5),), tokens)
