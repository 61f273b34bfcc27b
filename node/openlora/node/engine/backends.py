"""Which engine a node runs, from its configuration."""

import sys

import msgspec

from openlora.node.config import Backend, EngineConfig, ModelConfig
from openlora.node.engine.messages import ModelInfo
from openlora.node.engine.supervisor import ENGINE_COMMAND, EngineOptions

# What an answer can be held to; receipts name it by number.
OWN = 1  # our engine: each request's numbers are its own, sampling follows a counter
VLLM = 2  # numbers depend on the batch, sampling on vLLM's generator: an answer cannot be computed again
OWN_BY_WEIGHTS = {"full": OWN, "int8": 3, "int4": 4}  # as OWN, with the base's weights rounded so


def engine_options(model: ModelConfig, engine: EngineConfig) -> EngineOptions:
    limits = msgspec.structs.asdict(engine)
    del limits["backend"], limits["devices"], limits["vllm"]
    command: tuple[str, ...] = ENGINE_COMMAND
    if engine.backend is Backend.VLLM:
        python = engine.vllm.python or sys.executable
        command = (python, "-m", "openlora.node.engine.vllm", "--vllm", msgspec.json.encode(engine.vllm).decode())
    return EngineOptions(model.path, model.dtype, model.weights, limits=limits, devices=engine.devices, command=command)


def engine_profile(info: ModelInfo) -> int:
    return VLLM if info.backend.startswith("vllm") else OWN_BY_WEIGHTS[info.weights]
