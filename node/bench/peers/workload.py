"""The workload that every engine runs: R requests of I prompt and O output tokens, greedy, end-of-sequence ignored.

Request i uses adapter i mod N; with N = 0 the base model alone answers. Plain Python, for it runs in every peer's
environment. `data` is a folder of `prepare.py`: `model/`, `gguf/` and `adapters/aNNNN`.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

THREADS = 2
WARM_UP_TOKENS = 8  # of output: every adapter and every code path has been used once
ENOUGH_S = 60.0  # of runs: a slow engine is measured fewer times


@dataclass(frozen=True, slots=True)
class Workload:
    data: Path
    adapters: int
    requests: int
    prompt: int
    output: int
    runs: int
    speculation: bool = False  # of an engine that can

    @classmethod
    def from_arguments(cls, description: str) -> "Workload":
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("data", type=Path)
        parser.add_argument("--adapters", type=int, default=32)
        parser.add_argument("--requests", type=int, default=32)
        parser.add_argument("--prompt", type=int, default=64)
        parser.add_argument("--output", type=int, default=64)
        parser.add_argument("--runs", type=int, default=3)
        parser.add_argument("--speculation", action="store_true")
        return cls(**vars(parser.parse_args()))

    @property
    def model(self) -> Path:
        return self.data / "model"

    def prompts(self) -> list[list[int]]:
        rng = random.Random(0)  # noqa: S311 the same for everyone is what is wanted
        return [[rng.randrange(100, 40_000) for _ in range(self.prompt)] for _ in range(self.requests)]

    def adapter_of(self, request: int) -> int | None:
        return request % self.adapters if self.adapters else None

    def adapter_path(self, number: int) -> Path:
        return self.data / "adapters" / f"a{number:04d}"


def measure(workload: Workload, engine: str, version: str, settings: str, once: Callable[[int], None]) -> None:
    """Calls `once(output tokens)` for the warm-up and then for up to `runs` runs, and prints one JSON line."""
    once(WARM_UP_TOKENS)
    seconds: list[float] = []
    while len(seconds) < workload.runs and sum(seconds) < ENOUGH_S:
        started_s = time.perf_counter()
        once(workload.output)
        seconds.append(time.perf_counter() - started_s)
    median_s = statistics.median(seconds)
    result = {
        "engine": engine,
        "version": version,
        "settings": settings,
        "adapters": workload.adapters,
        "requests": workload.requests,
        "prompt": workload.prompt,
        "output": workload.output,
        "median_s": round(median_s, 3),
        "output_tok_s": round(workload.requests * workload.output / median_s, 1),
        "runs": [round(one, 3) for one in seconds],
    }
    print(json.dumps(result), flush=True)
