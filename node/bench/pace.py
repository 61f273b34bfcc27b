"""How flat answers flow while a long prompt is computed beside them.

    python node/bench/pace.py MODEL [--decoding 31] [--prompt 2000] [--dtype bfloat16] [--cache-dir DIR]
        [--no-speculation]

Prints one JSON line: the times between passes, each of which brings every decoding request a token or several, without
and with the prompt, and the prompt's time to first token beside them and alone.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from openlora.node.engine.engine import Engine
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.messages import Sampling, Submit

SETTLE, ALONE = 20, 60  # passes


def submit(engine: Engine, name: str, length: int, output: int) -> None:
    rng = torch.Generator().manual_seed(hash(name) % 2**32)
    prompt = tuple(torch.randint(engine.info.vocab_size, (length,), generator=rng).tolist())
    sampling = Sampling(max_tokens=output, temperature=0.0, ignore_eos=True)
    refused = engine.handle(Submit(request_id=name, prompt=prompt, sampling=sampling))
    assert not refused, refused


def pass_s(engine: Engine) -> tuple[float, set[str]]:
    """Seconds of a pass, and who got a token from it."""
    started_s = time.perf_counter()
    step = engine.step()
    return time.perf_counter() - started_s, {token.request_id for token in step.tokens} if step else set()


def until_first_token(engine: Engine, name: str) -> list[float]:
    """The seconds of each pass until the request has its first token."""
    passes = []
    while True:
        seconds, got = pass_s(engine)
        passes.append(seconds)
        if name in got:
            return passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--decoding", type=int, default=31)
    parser.add_argument("--prompt", type=int, default=2_000)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cache-dir", type=Path, default=Path("var/cache"), help="where compiled kernels are kept")
    parser.add_argument("--no-speculation", action="store_true")
    arguments = parser.parse_args()
    limits = EngineLimits(prefix_cache=False, speculation=not arguments.no_speculation)
    engine = Engine.load(arguments.model, dtype=arguments.dtype, limits=limits, cache_dir=arguments.cache_dir)
    submit(engine, "warm-up", 600, 2)
    until_first_token(engine, "warm-up")
    submit(engine, "alone", arguments.prompt, 1)
    alone_s = sum(until_first_token(engine, "alone"))
    for number in range(arguments.decoding):
        submit(engine, f"d{number}", 64, 1_900)
    for _ in range(SETTLE):
        pass_s(engine)
    while len(pass_s(engine)[1]) < arguments.decoding:
        pass
    calm = [pass_s(engine)[0] for _ in range(ALONE)]
    submit(engine, "beside", arguments.prompt, 1)
    busy = until_first_token(engine, "beside")
    calm_ms, busy_ms = (sorted(1000 * seconds for seconds in passes) for passes in (calm, busy))
    result = {
        "engine": f"openlora-{engine.info.backend}",
        "dtype": engine.info.dtype,
        "speculation": limits.speculation,
        "decoding": arguments.decoding,
        "prompt": arguments.prompt,
        "inter_token_median_ms": round(statistics.median(calm_ms), 1),
        "inter_token_p99_ms": round(calm_ms[int(0.99 * len(calm_ms))], 1),
        "beside_prompt_median_ms": round(statistics.median(busy_ms), 1),
        "beside_prompt_p99_ms": round(busy_ms[int(0.99 * len(busy_ms))], 1),
        "prompt_first_token_alone_s": round(alone_s, 3),
        "prompt_first_token_beside_s": round(sum(busy), 3),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
