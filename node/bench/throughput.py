"""The engine's throughput: 32 requests of 64 prompt and 64 output tokens, greedy, request i on adapter i mod N.

    python node/bench/throughput.py MODEL [--adapters 0 1 8 32] [--dtype bfloat16] [--runs 3]

Prints one JSON line for each N: the median of the runs after a warm-up. The adapters are drawn at random, ranks 8, 16,
16 and 32 in turn on every linear layer, B from N(0, 0.01²) so that each changes the output.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from openlora.node.engine.engine import Engine
from openlora.node.engine.messages import AdapterLoaded, AdapterUse, LoadAdapter, Sampling, Submit
from openlora.node.engine.models.config import DecoderConfig

REQUESTS, PROMPT, OUTPUT = 32, 64, 64
RANKS = (8, 16, 16, 32)


def write_adapter(folder: Path, model: Path, number: int) -> Path:
    """A PEFT adapter directory on all linear layers of `model`."""
    rank, generator = RANKS[number % len(RANKS)], torch.Generator().manual_seed(number)
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


def run_once(engine: Engine, adapters: int) -> float:
    """Seconds for the whole workload."""
    rng = torch.Generator().manual_seed(0)
    started_s = time.perf_counter()
    for number in range(REQUESTS):
        uses = (AdapterUse(f"a{number % adapters}"),) if adapters else ()
        prompt = tuple(torch.randint(engine.info.vocab_size, (PROMPT,), generator=rng).tolist())
        sampling = Sampling(max_tokens=OUTPUT, temperature=0.0, ignore_eos=True)
        refused = engine.handle(Submit(request_id=str(number), prompt=prompt, sampling=sampling, adapters=uses))
        assert not refused, refused
    generated = 0
    while engine.has_work:
        step = engine.step()
        generated += len(step.tokens) if step else 0
    assert generated == REQUESTS * OUTPUT, generated
    return time.perf_counter() - started_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 1, 8, 32])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    engine = Engine.load(arguments.model, dtype=arguments.dtype)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(max(arguments.adapters)):
            path = write_adapter(Path(folder), arguments.model, number)
            (loaded,) = engine.handle(LoadAdapter(key=f"a{number}", path=str(path)))
            assert isinstance(loaded, AdapterLoaded), loaded
        for adapters in arguments.adapters:
            run_once(engine, adapters)
            seconds = [run_once(engine, adapters) for _ in range(arguments.runs)]
            median_s = statistics.median(seconds)
            result = {
                "engine": f"openlora-{engine.info.backend}",
                "dtype": engine.info.dtype,
                "adapters": adapters,
                "requests": REQUESTS,
                "prompt": PROMPT,
                "output": OUTPUT,
                "median_s": round(median_s, 3),
                "output_tok_s": round(REQUESTS * OUTPUT / median_s, 1),
                "runs": [round(one, 3) for one in seconds],
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
