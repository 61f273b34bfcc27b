"""Whether an adapter costs its bytes: one of rank 128 among 31 of rank 8, and ensembles of four beside single adapters.

    python node/bench/mix.py MODEL [--runs 3] [--dtype bfloat16] [--cache DIR]

Prints one JSON line with the median milliseconds of a decode step under each recipe, and two ratios: what the mixed
ranks add to a step for each byte, in terms of what rank 8 alone adds; and what ensembles of four adapters of rank 8
add, in terms of single adapters of rank 32.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from bench.throughput import load, write_adapter

from openlora.node.engine.engine import Engine
from openlora.node.engine.messages import AdapterLoaded, AdapterUse, Cancel, LoadAdapter, Sampling, Submit

ROWS, ENSEMBLES, CONTEXT, STEPS = 32, 16, 64, 8
SMALL, SUMMED, LARGE = 8, 32, 128  # ranks
Recipe = tuple[AdapterUse, ...]


def recipes() -> dict[str, list[Recipe]]:
    """By case: each request's adapters. "8-5" is the fifth adapter of rank 8."""
    small = [(AdapterUse(f"{SMALL}-{i}"),) for i in range(ROWS)]
    fours = [tuple(AdapterUse(f"{SMALL}-{4 * i + j}", 0.25) for j in range(4)) for i in range(ENSEMBLES)]
    return {
        "base": [()] * ROWS,
        "rank_8": [*small],
        "one_of_rank_128": [*small[1:], (AdapterUse(f"{LARGE}-0"),)],
        "base_16": [()] * ENSEMBLES,
        "ensembles_of_4": [*fours],
        "rank_32": [(AdapterUse(f"{SUMMED}-{i}"),) for i in range(ENSEMBLES)],
    }


def load_adapters(engine: Engine, model: Path, folder: Path) -> None:
    for rank, count in ((SMALL, 4 * ENSEMBLES), (SUMMED, ENSEMBLES), (LARGE, 1)):
        for number in range(count):
            path = write_adapter(folder, model, 1000 * rank + number, [rank])
            (loaded,) = engine.handle(LoadAdapter(key=f"{rank}-{number}", path=str(path)))
            assert isinstance(loaded, AdapterLoaded), loaded


def step_ms(engine: Engine, batch: Sequence[Recipe]) -> float:
    """Median of a step in which all decode."""
    rng = torch.Generator().manual_seed(0)
    for number, recipe in enumerate(batch):
        prompt = tuple(torch.randint(engine.info.vocab_size, (CONTEXT,), generator=rng).tolist())
        sampling = Sampling(max_tokens=1000, temperature=0.0, ignore_eos=True)
        refused = engine.handle(Submit(request_id=str(number), prompt=prompt, sampling=sampling, adapters=recipe))
        assert not refused, refused
    while (step := engine.step()) is not None and len(step.tokens) < len(batch):
        pass
    seconds = []
    for _ in range(STEPS):
        started_s = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - started_s)
    for number in range(len(batch)):
        engine.handle(Cancel(request_id=str(number)))
    return 1000 * statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cache", type=Path, default=Path("var/cache"))
    arguments = parser.parse_args()
    engine = load(arguments.model, arguments.dtype, "auto", "best", arguments.cache)
    with tempfile.TemporaryDirectory() as folder:
        load_adapters(engine, arguments.model, Path(folder))
    cases = recipes()
    runs = [{case: step_ms(engine, batch) for case, batch in cases.items()} for _ in range(1 + arguments.runs)][1:]
    ms = {case: statistics.median(run[case] for run in runs) for case in cases}
    bytes_share = ((ROWS - 1) * SMALL + LARGE) / (ROWS * SMALL)
    mixed = (ms["one_of_rank_128"] - ms["base"]) / (ms["rank_8"] - ms["base"])
    ensembles = (ms["ensembles_of_4"] - ms["base_16"]) / (ms["rank_32"] - ms["base_16"])
    result = {
        "engine": f"openlora-{engine.info.backend}",
        "dtype": engine.info.dtype,
        "step_ms": {case: round(one, 2) for case, one in ms.items()},
        "rank_128_by_its_bytes": round(mixed / bytes_share, 3),
        "ensemble_by_its_ranks": round(ensembles, 3),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
