"""What the prefix cache saves: requests that share a system prompt, with and without it.

    python node/bench/prefix.py MODEL [--shared 512] [--own 32] [--requests 32] [--dtype bfloat16] [--cache-dir DIR]

Prints one JSON line for each of the two, of requests that come all at once and of requests that come one after
another: times to first token, and the share of prompt tokens that was computed.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from openlora.node.engine.engine import Engine
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.messages import GetStatus, Sampling, Status, Submit

OUTPUT = 16


def prompts(vocabulary: int, requests: int, shared: int, own: int) -> list[tuple[int, ...]]:
    """Token ids, drawn at random: `shared` the same in all, `own` in each."""
    rng = torch.Generator().manual_seed(0)
    beginning = torch.randint(vocabulary, (shared,), generator=rng).tolist()
    return [(*beginning, *torch.randint(vocabulary, (own,), generator=rng).tolist()) for _ in range(requests)]


def first_token_s(engine: Engine, submits: list[Submit]) -> list[float]:
    """Seconds from now to the first token of each."""
    started_s = time.perf_counter()
    waits: dict[str, float] = {}
    for submit in submits:
        refused = engine.handle(submit)
        assert not refused, refused
    while engine.has_work:
        step = engine.step()
        for token in step.tokens if step else ():
            waits.setdefault(token.request_id, time.perf_counter() - started_s)
    return list(waits.values())


def hit_tokens(engine: Engine) -> int:
    (status,) = engine.handle(GetStatus())
    assert isinstance(status, Status)
    return status.cache_hit_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--shared", type=int, default=512)
    parser.add_argument("--own", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--cache-dir", type=Path, help="where compiled kernels are kept; without it the reference serves"
    )
    arguments = parser.parse_args()
    sampling = Sampling(max_tokens=OUTPUT, temperature=0.0, ignore_eos=True)
    for together in (True, False):
        for cached in (False, True):
            limits = EngineLimits(prefix_cache=cached)
            engine = Engine.load(arguments.model, dtype=arguments.dtype, limits=limits, cache_dir=arguments.cache_dir)
            submits = [
                Submit(request_id=str(number), prompt=prompt, sampling=sampling)
                for number, prompt in enumerate(
                    prompts(engine.info.vocab_size, arguments.requests, arguments.shared, arguments.own)
                )
            ]
            first_token_s(engine, [Submit(request_id="warm-up", prompt=(1,) * 64, sampling=sampling)])
            batches = [submits] if together else [[submit] for submit in submits]
            waits = sorted(wait for batch in batches for wait in first_token_s(engine, batch))
            total = sum(len(submit.prompt) for submit in submits)
            result = {
                "engine": f"openlora-{engine.info.backend}",
                "dtype": engine.info.dtype,
                "arrivals": "together" if together else "one after another",
                "prefix_cache": cached,
                "requests": arguments.requests,
                "shared_tokens": arguments.shared,
                "own_tokens": arguments.own,
                "first_token_median_ms": round(1000 * statistics.median(waits), 1),
                "first_token_last_ms": round(1000 * waits[-1], 1),
                "prompt_tokens_computed": round(1 - hit_tokens(engine) / total, 3),
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
