"""The flags by which a command chooses its engine, and the engine that suits this machine."""

import os
from collections.abc import Sequence
from typing import Annotated

import typer

from openlora.node.config import Backend, EngineConfig, VllmConfig

EngineChoice = Annotated[Backend, typer.Option(help="Who computes: our own engine, or vLLM.")]
VllmPython = Annotated[str, typer.Option(help="The Python of the environment that has vLLM; this one by default.")]
Devices = Annotated[list[str] | None, typer.Option(help="An engine on each: cuda:0, or cores as cpu:0-7; repeatable.")]


def chosen_engine(backend: Backend, vllm_python: str, devices: Sequence[str] | None = None) -> EngineConfig:
    return EngineConfig(backend=backend, devices=tuple(devices or ()), vllm=VllmConfig(python=vllm_python))


def recommended_engine() -> tuple[EngineConfig, str]:
    """For this machine, and why."""
    from openlora.node.engine.choice import checks_file, choose_backend, kernels_digest, passed_checks
    from openlora.node.engine.process import user_cache
    from openlora.node.hardware import read_hardware

    checks = passed_checks(checks_file(user_cache(os.environ)), kernels_digest())
    choice = choose_backend(read_hardware(), checks)
    return EngineConfig(backend=choice.backend), choice.reason
