"""The flags by which a command chooses its engine."""

from typing import Annotated

import typer

from openlora.node.config import Backend, EngineConfig, VllmConfig

EngineChoice = Annotated[Backend, typer.Option(help="Who computes: our own engine, or vLLM.")]
VllmPython = Annotated[str, typer.Option(help="The Python of the environment that has vLLM; this one by default.")]


def chosen_engine(backend: Backend, vllm_python: str) -> EngineConfig:
    return EngineConfig(backend=backend, vllm=VllmConfig(python=vllm_python))
