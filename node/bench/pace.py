"""How evenly answers flow while a long prompt is computed beside them.

    python node/bench/pace.py MODEL [--decoding 31] [--prompt 2000] [--rounds 3] [--dtype bfloat16] [--cache-dir DIR]
        [--no-speculation]

Prints one JSON line: the times between passes, each of which brings every decoding request a token or several, without
and with the prompt, and the prompt's time to first token beside them and alone, which each round measures anew: a
machine's speed is not the same for long. Percentiles are of all rounds' passes, other figures medians of the rounds.
A process of real-time priority is stopped for 50 ms of each second, and would measure that.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from openlora.node.engine.engine import Engine
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.messages import Cancel, Sampling, Submit

SETTLE, CALM = 20, 60  # passes


def submit(engine: Engine, number: int, length: int, output: int) -> str:
    """The name of a request whose random prompt `number` decides."""
    rng = torch.Generator().manual_seed(number)
    prompt = tuple(torch.randint(engine.info.vocab_size, (length,), generator=rng).tolist())
    sampling = Sampling(max_tokens=output, temperature=0.0, ignore_eos=True)
    refused = engine.handle(Submit(request_id=str(number), prompt=prompt, sampling=sampling))
    assert not refused, refused
    return str(number)


def pass_s(engine: Engine) -> tuple[float, Counter[str]]:
    """Seconds of a pass, and who got how many tokens from it."""
    started_s = time.perf_counter()
    step = engine.step()
    seconds = time.perf_counter() - started_s
    return seconds, Counter(token.request_id for token in step.tokens) if step else Counter()


def until_first_token(engine: Engine, name: str) -> list[float]:
    """The seconds of each pass until the request has its first token."""
    passes = []
    while True:
        seconds, got = pass_s(engine)
        passes.append(seconds)
        if name in got:
            return passes


@dataclass(frozen=True, slots=True)
class Round:
    calm_s: list[float]  # passes without the prompt
    calm_tokens: int
    busy_s: list[float]  # passes with it
    alone_s: float


def measure(engine: Engine, decoding: int, prompt: int) -> Round:
    alone_s = sum(until_first_token(engine, submit(engine, decoding, prompt, 1)))
    readers = [submit(engine, number, 64, 1_900) for number in range(decoding)]
    while len(pass_s(engine)[1]) < decoding:
        pass
    for _ in range(SETTLE):
        pass_s(engine)
    calm = [pass_s(engine) for _ in range(CALM)]
    busy_s = until_first_token(engine, submit(engine, decoding + 1, prompt, 1))
    for name in readers:
        engine.handle(Cancel(request_id=name))
    return Round([seconds for seconds, _ in calm], sum(got.total() for _, got in calm), busy_s, alone_s)


def p99(passes: list[float]) -> float:
    return sorted(passes)[int(0.99 * len(passes))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--decoding", type=int, default=31)
    parser.add_argument("--prompt", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cache-dir", type=Path, default=Path("var/cache"), help="where compiled kernels are kept")
    parser.add_argument("--no-speculation", action="store_true")
    arguments = parser.parse_args()
    limits = EngineLimits(prefix_cache=False, speculation=not arguments.no_speculation)
    engine = Engine.load(arguments.model, dtype=arguments.dtype, limits=limits, cache_dir=arguments.cache_dir)
    until_first_token(engine, submit(engine, arguments.decoding + 2, 600, 2))
    rounds = [measure(engine, arguments.decoding, arguments.prompt) for _ in range(arguments.rounds)]
    calm = [seconds for one in rounds for seconds in one.calm_s]
    busy = [seconds for one in rounds for seconds in one.busy_s]
    result = {
        "engine": f"openlora-{engine.info.backend}",
        "dtype": engine.info.dtype,
        "speculation": limits.speculation,
        "decoding": arguments.decoding,
        "prompt": arguments.prompt,
        "tok_s": round(sum(one.calm_tokens for one in rounds) / sum(calm)),
        "inter_token_median_ms": round(1000 * statistics.median(calm), 1),
        "inter_token_p99_ms": round(1000 * p99(calm), 1),
        "beside_prompt_median_ms": round(1000 * statistics.median(busy), 1),
        "beside_prompt_p99_ms": round(1000 * p99(busy), 1),
        "prompt_first_token_alone_s": round(statistics.median(one.alone_s for one in rounds), 3),
        "prompt_first_token_beside_s": round(statistics.median(sum(one.busy_s) for one in rounds), 3),
        "inter_token_p99_ratio": round(p99(busy) / p99(calm), 2),
        "first_token_ratio": round(statistics.median(sum(one.busy_s) / one.alone_s for one in rounds), 2),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
