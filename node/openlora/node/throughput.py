"""How fast an engine is: some requests at once, random prompts, greedy."""

import asyncio
import random
import time
from collections.abc import Sequence
from statistics import median

import msgspec

from openlora.node.engine.client import InferenceEngine
from openlora.node.engine.messages import Sampling


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over the requests, which all began at once."""

    requests: int
    tokens_per_s: float  # generated, by all together
    first_token_s: float
    token_s: float  # between two tokens of one request


async def measure(engine: InferenceEngine, requests: int, prompt_tokens: int, output_tokens: int) -> Figure:
    """Runs `requests` at once to their ends. Raises RequestError for what the engine refuses, EngineDied."""
    started_s = time.perf_counter()
    runs = await asyncio.gather(
        *(_run(engine, number, prompt_tokens, output_tokens, requests) for number in range(requests))
    )
    seconds = time.perf_counter() - started_s
    return Figure(
        requests=requests,
        tokens_per_s=round(sum(map(len, runs)) / seconds, 1),
        first_token_s=round(median(run[0] for run in runs) - started_s, 3),
        token_s=round(median((run[-1] - run[0]) / max(1, len(run) - 1) for run in runs), 4),
    )


async def _run(
    engine: InferenceEngine, number: int, prompt_tokens: int, output_tokens: int, seed: int
) -> Sequence[float]:
    """When each token came. No two prompts begin alike, so that no cache helps."""
    rng = random.Random(seed << 32 | number)  # noqa: S311 - nothing is secret
    prompt = [rng.randrange(engine.info.vocab_size) for _ in range(prompt_tokens)]
    sampling = Sampling(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
    return [time.perf_counter() async for tokens in engine.generate(prompt, sampling) for _ in tokens]
