"""The engine's throughput: 32 requests of 64 prompt and 64 output tokens, greedy, request i on adapter i mod N.

    python node/bench/throughput.py MODEL [--adapters 0 1 8 32] [--dtype bfloat16] [--weights auto] [--runs 3]
        [--kernels best] [--no-speculation]

Prints two JSON lines for each N, without and with speculation: the median of the runs after a warm-up, and what is kept
of the base model's tokens a second: the median over rounds of one run a case, since a machine's speed is not the same
for long. What speculation gives depends on how much answers repeat themselves; greedy ones to random prompts do so
soon. The adapters are drawn at random, ranks 8, 16, 16 and 32 in turn on every linear layer, B from N(0, 0.01²) so that
each changes the output. With --steps, lines for single steps follow: decoding at several batch sizes and contexts, with
its shares of what the machine can do (see Work), and prefilling whole prompts. Beside every figure stand the machine's
load and what its memory gave to a plain sum just then: on a shared machine both vary by a factor.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from bench.machine import read_gb_s, register_peak
from safetensors.torch import save_file

from openlora.kernels.ops import BACKENDS, Ops
from openlora.node.engine.checkpoint import Checkpoint
from openlora.node.engine.compiled import CompiledRunner
from openlora.node.engine.engine import Engine
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.loader import CPU, FORMS, build_weights, open_model
from openlora.node.engine.messages import AdapterLoaded, AdapterUse, Cancel, LoadAdapter, Sampling, Submit
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.models.decoder import Decoder
from openlora.node.engine.runner import OpsRunner, Runner
from openlora.node.engine.runners import auto_dtype, best_runner

REQUESTS, PROMPT, OUTPUT = 32, 64, 64
RANKS = (8, 16, 16, 32)
_WEIGHT_BYTES = {"full": 2.0, "int8": 1.0, "int4": 0.5}  # in bfloat16


def write_adapter(folder: Path, model: Path, number: int, ranks: Sequence[int] = RANKS) -> Path:
    """A PEFT adapter directory on all linear layers of `model`."""
    rank, generator = ranks[number % len(ranks)], torch.Generator().manual_seed(number)
    tensors = {}
    for name, shape in DecoderConfig.from_path(model).layout().items():
        if ".layers." in name:
            a = torch.randn(rank, shape.in_features, generator=generator) * shape.in_features**-0.5
            b = torch.randn(shape.out_features, rank, generator=generator) * 0.01
            tensors[f"base_model.model.{name}.lora_A.weight"] = a.bfloat16()
            tensors[f"base_model.model.{name}.lora_B.weight"] = b.bfloat16()
    targets = sorted({name.split(".")[-3] for name in tensors})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": targets,
    }
    path = folder / f"a{number:04d}"
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def load(model: Path, dtype: str, form: str, kernels: str, cache: Path, *, speculation: bool = False) -> Engine:
    """`kernels`: "best", "reference", or an instruction set of the compiled decoder. Nothing is cached between runs."""
    config, limits = DecoderConfig.from_path(model), EngineLimits(prefix_cache=False, speculation=speculation)
    source = open_model(model, config)
    if dtype == "auto":
        dtype = auto_dtype(source, config, limits, cache, CPU)
    weights = build_weights(source, config, dtype, form, CPU)
    runner: Runner
    match kernels:
        case "best":
            runner = best_runner(config, weights, limits, cache)
        case "reference":
            ops = Ops(BACKENDS["reference"])
            runner = OpsRunner(Decoder(config, weights, ops), ops, limits.pages, limits.page_tokens)
        case instructions:
            runner = CompiledRunner(config, weights, limits, cache, instructions)
    return Engine(config, runner, limits, Checkpoint(model, config))


def submit(engine: Engine, number: int, prompt: int, output: int, adapters: int) -> None:
    rng = torch.Generator().manual_seed(number)
    refused = engine.handle(
        Submit(
            request_id=str(number),
            prompt=tuple(torch.randint(engine.info.vocab_size, (prompt,), generator=rng).tolist()),
            sampling=Sampling(max_tokens=output, temperature=0.0, ignore_eos=True),
            adapters=(AdapterUse(f"a{number % adapters}"),) if adapters else (),
        )
    )
    assert not refused, refused


def run_once(engine: Engine, adapters: int, first: int = 0) -> float:
    """Seconds for the whole workload, whose requests are numbered from `first` on."""
    started_s = time.perf_counter()
    for number in range(first, first + REQUESTS):
        submit(engine, number, PROMPT, OUTPUT, adapters)
    generated = 0
    while engine.has_work:
        step = engine.step()
        generated += len(step.tokens) if step else 0
    assert generated == REQUESTS * OUTPUT, generated
    return time.perf_counter() - started_s


def decode_once(engine: Engine, batch: int, context: int, adapters: int, steps: int = 16) -> float:
    """Seconds of a step in which `batch` sequences of about `context` tokens decode."""
    for number in range(batch):
        submit(engine, number, context, steps + batch * context // 16, adapters)  # the first wait for the last prompt
    while (step := engine.step()) is not None and len(step.tokens) < batch:
        pass
    seconds = []
    for _ in range(steps):
        started_s = time.perf_counter()
        step = engine.step()
        seconds.append(time.perf_counter() - started_s)
        assert step is not None
        assert len(step.tokens) == batch, "some ended early"
    for number in range(batch):
        engine.handle(Cancel(request_id=str(number)))
    return statistics.median(seconds)


def prefill_once(engine: Engine, prompt: int) -> float:
    """Seconds until the first token of one prompt."""
    submit(engine, 0, prompt, 1, 0)
    started_s = time.perf_counter()
    while engine.has_work:
        engine.step()
    return time.perf_counter() - started_s


@dataclass(frozen=True, slots=True)
class Work:
    """What a decode step of `batch` sequences without adapters multiplies and reads, at the least."""

    gflop: float  # of the linear layers
    weights_gb: float  # of the linear layers, without scales
    kv_gb: float

    @classmethod
    def of(cls, config: DecoderConfig, form: str, batch: int, context: int) -> "Work":
        weights = sum(shape.in_features * shape.out_features for shape in config.layout().values())
        numbers = batch * context * 2 * config.layers * config.kv_heads * config.head_size
        return cls(2 * batch * weights / 1e9, _WEIGHT_BYTES[form] * weights / 1e9, 2 * numbers / 1e9)

    def shares(self, seconds: float, peak: float, read: float) -> dict[str, float]:
        """Of `peak` GFLOP/s and of `read` GB/s; and how many times as long as the products at that peak, and then the
        keys and values at that rate, would take."""
        bound_s = self.gflop / peak + self.kv_gb / read
        return {
            "of_peak": round(self.gflop / seconds / peak, 3),
            "of_read": round((self.weights_gb + self.kv_gb) / seconds / read, 3),
            "times_bound": round(seconds / bound_s, 2),
        }


def report(engine: Engine, seconds: list[float], tokens: int, work: Work | None = None, **what: float) -> None:
    median_s, read = statistics.median(seconds), read_gb_s()
    result: dict[str, object] = {
        "engine": f"openlora-{engine.info.backend}",
        "dtype": engine.info.dtype,
        "weights": engine.info.weights,
        **what,
        "median_s": round(median_s, 4),
        "tok_s": round(tokens / median_s, 1),
        "runs": [round(one, 4) for one in seconds],
        "read_gb_s": round(read, 1),
        "load": round(os.getloadavg()[0], 1),
    }
    if work:
        peak_of, peak = register_peak()
        result |= {"peak_gflop_s": peak, "peak_of": peak_of}
        result |= work.shares(median_s, peak, read) if peak else {}
    print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 1, 8, 32])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--weights", default="auto", choices=FORMS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kernels", default="best")
    parser.add_argument("--no-speculation", action="store_true", help="only without")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path("var/cache"))
    arguments = parser.parse_args()
    ways = (False,) if arguments.no_speculation else (False, True)
    engines = {
        way: load(
            arguments.model, arguments.dtype, arguments.weights, arguments.kernels, arguments.cache, speculation=way
        )
        for way in ways
    }
    with tempfile.TemporaryDirectory() as folder:
        for number in range(max(arguments.adapters)):
            path = write_adapter(Path(folder), arguments.model, number)
            for engine in engines.values():
                (loaded,) = engine.handle(LoadAdapter(key=f"a{number}", path=str(path)))
                assert isinstance(loaded, AdapterLoaded), loaded
    cases = [(n, way) for n in arguments.adapters for way in ways]
    rounds = [{case: run_once(engines[case[1]], case[0]) for case in cases} for _ in range(1 + arguments.runs)][1:]
    for n, way in cases:
        what: dict[str, float] = {"adapters": n, "requests": REQUESTS, "prompt": PROMPT, "output": OUTPUT}
        if 0 in arguments.adapters:
            what["kept"] = round(statistics.median(one[0, way] / one[n, way] for one in rounds), 3)
        report(engines[way], [one[n, way] for one in rounds], REQUESTS * OUTPUT, speculation=way, **what)
    if not arguments.steps:
        return
    engine, config = engines[False], DecoderConfig.from_path(arguments.model)
    for context in (100, 1_000):
        for batch in (1, 8, 32):
            seconds = [decode_once(engine, batch, context, 0) for _ in range(arguments.runs)]
            work = Work.of(config, engine.info.weights, batch, context) if engine.info.dtype == "bfloat16" else None
            report(engine, seconds, batch, work, batch=batch, context=context)
    for prompt in (512, 2_048):
        seconds = [prefill_once(engine, prompt) for _ in range(arguments.runs)]
        report(engine, seconds, prompt, prefill=prompt)


if __name__ == "__main__":
    main()
