"""Which runner serves a model on this machine."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from openlora.kernels.errors import KernelsUnavailable
from openlora.kernels.ops import BACKENDS, Ops
from openlora.kernels.quantised import dequantise
from openlora.kernels.types import CodedWeight
from openlora.node.engine.checkpoint import TensorSource
from openlora.node.engine.choice import checks_file, kernels_digest, passed_checks
from openlora.node.engine.compiled import CompiledRunner, require_compiled
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.models.decoder import Decoder, DecoderWeights, Projection, with_projections
from openlora.node.engine.runner import OpsRunner, Runner

LEAST_CAPABILITY = (8, 0)  # matrix instructions for bfloat16
log = logging.getLogger(__name__)


def best_device() -> torch.device:
    """The GPU that this process is confined to, or the first it sees; else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def auto_dtype(
    source: TensorSource, config: DecoderConfig, limits: EngineLimits, cache_dir: Path | None, device: torch.device
) -> str:
    """What dtype "auto" stands for: bfloat16, except for a checkpoint in float32, and where torch's ops would serve and
    emulate bfloat16."""
    exact = source.is_float32(f"{config.names.embedding}.weight")
    return "float32" if exact or not _bfloat16_is_fast(config, limits, cache_dir, device) else "bfloat16"


def _bfloat16_is_fast(
    config: DecoderConfig, limits: EngineLimits, cache_dir: Path | None, device: torch.device
) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
    if torch.cpu.get_capabilities().get("avx512_bf16", False):
        return True
    if cache_dir is None:
        return False
    try:
        require_compiled(config, limits, cache_dir)  # which needs no such instructions
    except KernelsUnavailable as error:
        log.warning("event=kernels_unavailable reason=%r", str(error))
        return False
    return True


def best_runner(config: DecoderConfig, weights: DecoderWeights, limits: EngineLimits, cache_dir: Path | None) -> Runner:
    """For the device that the weights lie on: the Triton kernels on a GPU, the compiled decoder on a processor. Where
    they cannot serve, the op-by-op runner on the reference, and the log says why."""
    try:
        if weights.embedding.device.type == "cuda":
            return cuda_runner(config, weights, limits, cache_dir)
        if cache_dir is not None and weights.embedding.dtype == torch.bfloat16:
            return CompiledRunner(config, weights, limits, cache_dir)
    except KernelsUnavailable as error:
        log.warning("event=kernels_unavailable reason=%r", str(error))
    ops = Ops(BACKENDS["reference"])
    return OpsRunner(Decoder(config, _widened(weights), ops), ops, limits.pages, limits.page_tokens)


def cuda_runner(config: DecoderConfig, weights: DecoderWeights, limits: EngineLimits, cache_dir: Path | None) -> Runner:
    """Raises KernelsUnavailable, naming what is missing."""
    try:
        from openlora.kernels.triton.attention import DECODE_QUERIES
        from openlora.kernels.triton.backend import TRITON
        from openlora.node.engine.cuda import CudaRunner, packed
    except ImportError as error:
        raise KernelsUnavailable(f"{error.name} is not installed") from error
    from openlora.kernels.flashinfer import with_flashinfer
    from openlora.node.engine.graphs import CudaGraphs

    device = weights.embedding.device
    require_fitting(config, torch.cuda.get_device_capability(device), DECODE_QUERIES)
    card = torch.cuda.get_device_name(device)
    checks = [] if cache_dir is None else passed_checks(checks_file(cache_dir), kernels_digest())
    if card not in {check.card for check in checks}:
        log.warning("event=kernels_unchecked card=%r", card)
    ops = Ops(with_flashinfer(TRITON, device))
    return CudaRunner(Decoder(config, packed(weights), ops), ops, limits, CudaGraphs())


def require_fitting(config: DecoderConfig, capability: tuple[int, int], most_shared: int) -> None:
    """Raises KernelsUnavailable for a model or a GPU that the Triton kernels do not serve: in these, at most
    `most_shared` query heads share a key-value head."""
    if config.heads // config.kv_heads > most_shared:
        raise KernelsUnavailable(f"more than {most_shared} query heads share a key-value head")
    if capability < LEAST_CAPABILITY:
        raise KernelsUnavailable(f"the GPU's compute capability is {capability[0]}.{capability[1]}, and 8.0 is needed")


def _widened(weights: DecoderWeights) -> DecoderWeights:
    """Codes replaced by the numbers they stand for, which the reference would make again at every step."""

    def widen(one: Projection) -> Projection:
        if not isinstance(one.weight, CodedWeight):
            return one
        return replace(one, weight=dequantise(one.weight).to(weights.embedding.dtype))

    return with_projections(weights, widen)
