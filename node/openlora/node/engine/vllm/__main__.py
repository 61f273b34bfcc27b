"""`python -m openlora.node.engine.vllm` is the engine's child process with vLLM in it, run in vLLM's environment."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from openlora.node.config import VllmConfig
from openlora.node.engine import process
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.process import Arguments, Steps
from openlora.node.errors import ModelError

# Said before vLLM is imported; an operator's own setting stands.
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def main(argv: Sequence[str]) -> int:
    """As the engine's own main, which reads all arguments but --vllm: VllmConfig as JSON."""
    parser = argparse.ArgumentParser(prog="openlora.node.engine.vllm", add_help=False)
    parser.add_argument("--vllm", type=lambda text: msgspec.json.decode(text, type=VllmConfig), default=VllmConfig())
    ours, others = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory(prefix="openlora-vllm-") as folder:
        return process.main(others, partial(_load, options=ours.vllm, folder=Path(folder)))


def _load(arguments: Arguments, options: VllmConfig, folder: Path) -> Steps:
    for name, value in (ENVIRONMENT | (ONE_PROCESS if options.devices == 1 else {})).items():
        os.environ.setdefault(name, value)
    if arguments.weights not in ("auto", "full"):
        raise ModelError(f"vLLM serves weights as their checkpoint has them, not rounded to {arguments.weights}")
    process.require_gpus(arguments.device)
    config, limits = DecoderConfig.from_path(arguments.model), process.engine_limits(arguments)
    try:
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        from openlora.node.engine.checkpoint import Checkpoint
        from openlora.node.engine.vllm.engine import VllmEngine
        from openlora.node.engine.vllm.faults import leave_base_rows_alone
        from openlora.node.engine.vllm.recipes import HostFactors, Recipes

        if current_platform.is_cpu():
            leave_base_rows_alone(options)
        llm = LLMEngine.from_engine_args(_engine_args(arguments, config, limits, options))
    except ImportError as error:
        raise ModelError(f"{sys.executable} has no vLLM ({error}): name an environment that has it") from error
    except (ValueError, RuntimeError) as error:  # what it raises for models and machines that it cannot serve
        raise ModelError(f"vLLM cannot serve {arguments.model}: {error}") from error
    recipes = Recipes(folder, HostFactors(config.names.embedding), options.max_rank)
    return VllmEngine(llm, config, Checkpoint(arguments.model, config), limits, recipes)


def _engine_args(arguments: Arguments, config: DecoderConfig, limits: EngineLimits, options: VllmConfig) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    item_bytes = 4 if arguments.dtype == "float32" else 2
    token_bytes = 2 * config.layers * config.kv_heads * config.head_size * item_bytes
    return EngineArgs(
        model=str(arguments.model),
        dtype=arguments.dtype,
        max_model_len=min(config.max_positions, limits.kv_tokens),
        max_num_seqs=limits.max_running,
        max_num_batched_tokens=max(limits.max_batch_tokens, limits.max_running),
        enable_chunked_prefill=True,
        enable_prefix_caching=limits.prefix_cache,
        kv_cache_memory_bytes=limits.kv_tokens * token_bytes // options.devices,
        gpu_memory_utilization=options.gpu_memory,
        tensor_parallel_size=options.tensor_parallel,
        pipeline_parallel_size=options.pipeline_parallel,
        distributed_executor_backend=None if options.executor == "auto" else options.executor,
        enforce_eager=options.eager,
        skip_tokenizer_init=True,  # the engine knows no text
        enable_lora=True,
        max_loras=options.max_recipes,
        max_lora_rank=options.max_rank,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
