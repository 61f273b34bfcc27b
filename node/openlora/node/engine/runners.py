"""Which runner serves a model on this machine."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from openlora.kernels.errors import KernelsUnavailable
from openlora.kernels.ops import BACKENDS, Ops
from openlora.kernels.quantised import dequantise
from openlora.kernels.types import CodedWeight
from openlora.node.engine.compiled import CompiledRunner
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.models.decoder import Decoder, DecoderWeights, Layer, Projection
from openlora.node.engine.runner import OpsRunner, Runner

log = logging.getLogger(__name__)


def best_runner(config: DecoderConfig, weights: DecoderWeights, limits: EngineLimits, cache_dir: Path | None) -> Runner:
    """The compiled decoder where it can serve, else the op-by-op one on the reference, and the log says why."""
    if cache_dir is not None and weights.embedding.dtype == torch.bfloat16:
        try:
            return CompiledRunner(config, weights, limits, cache_dir)
        except KernelsUnavailable as error:
            log.warning("the compiled kernels cannot serve: %s; the slower reference serves", error)
    ops = Ops(BACKENDS["reference"])
    return OpsRunner(Decoder(config, _widened(weights), ops), ops, limits.pages, limits.page_tokens)


def _widened(weights: DecoderWeights) -> DecoderWeights:
    """Codes replaced by the numbers they stand for, which the reference would make again at every step."""

    def projection(one: Projection) -> Projection:
        if not isinstance(one.weight, CodedWeight):
            return one
        return replace(one, weight=dequantise(one.weight).to(weights.embedding.dtype))

    def layer(one: Layer) -> Layer:
        return replace(
            one,
            qkv=projection(one.qkv),
            o=projection(one.o),
            gate_up=projection(one.gate_up),
            down=projection(one.down),
        )

    return replace(weights, layers=tuple(map(layer, weights.layers)), head=projection(weights.head))
