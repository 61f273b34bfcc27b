"""What vLLM does wrong, put right."""

from torch import Tensor
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

from openlora.node.config import VllmConfig
from openlora.node.errors import ConfigError


def leave_base_rows_alone(options: VllmConfig) -> None:
    """For the CPU, in this process; raises ConfigError where vLLM would compute in others.

    Its PyTorch ops take a base row's adapter −1, "none", for the last one: in a batch with adapters the base answers as
    one of them (github.com/vllm-project/vllm/pull/48421). With its shrunk input zero, nothing is added to a base row.
    """
    if options.devices > 1:
        raise ConfigError("vLLM on the CPU serves one device: engine.vllm.tensor_parallel and pipeline_parallel are 1")
    shrink = lora_ops.bgmv_shrink

    def bgmv_shrink(inputs: Tensor, weights: Tensor, output: Tensor, adapters: Tensor, scaling: float = 1.0) -> None:
        shrink(inputs, weights, output, adapters, scaling)
        output[adapters < 0] = 0

    lora_ops.bgmv_shrink = punica_cpu.bgmv_shrink = bgmv_shrink
