"""The CUDA runner on a GPU, and as it is rehearsed on a processor: kernels interpreted, graphs repeated calls."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from openlora.kernels.ops import Ops
from openlora.node.engine.graphs import CudaGraphs, Repetition
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.models.decoder import Decoder, DecoderWeights

ROOT = Path(__file__).resolve().parents[2]


def cuda_runner(
    config: DecoderConfig, weights: DecoderWeights, limits: EngineLimits, device: torch.device, *, captured: bool = True
):  # type: ignore[no-untyped-def]  # its module brings triton in
    """The runner that serves on CUDA devices; without `captured` every kernel is launched by itself."""
    from openlora.kernels.flashinfer import with_flashinfer
    from openlora.kernels.triton.backend import TRITON
    from openlora.node.engine.cuda import CudaRunner, packed

    on_gpu = device.type == "cuda"
    graphs = (CudaGraphs() if on_gpu else Repetition()) if captured else None
    ops = Ops(with_flashinfer(TRITON, device) if on_gpu else TRITON)
    return CudaRunner(Decoder(config, packed(weights), ops), ops, limits, graphs)


@contextmanager
def kernels_on(device: torch.device) -> Iterator[None]:
    """On a processor, the kernels are interpreted as the tests do it."""
    if device.type == "cuda":
        yield
        return
    sys.path.append(str(ROOT))
    from tests.kernels import interpreter

    interpreter.triton_backend()
    with interpreter.mended():
        yield
