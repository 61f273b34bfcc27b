"""Which runner serves: what can be told without a GPU."""

from pathlib import Path

import pytest
import torch

from openlora.kernels.errors import KernelsUnavailable
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.runners import best_device, require_fitting
from tests.node.engine.tiny import write_config


def test_a_gpu_is_used_where_there_is_one() -> None:
    assert best_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("heads", "capability", "refusal"),
    [
        (4, (8, 0), None),
        (4, (12, 0), None),
        (4, (7, 5), "the GPU's compute capability is 7.5, and 8.0 is needed"),
        (34, (9, 0), "more than 16 query heads share a key-value head"),
    ],
)
def test_what_the_kernels_do_not_serve_is_named(
    tmp_path: Path, heads: int, capability: tuple[int, int], refusal: str | None
) -> None:
    config = DecoderConfig.from_path(write_config(tmp_path, num_attention_heads=heads))
    if refusal is None:
        require_fitting(config, capability, 16)
        return
    with pytest.raises(KernelsUnavailable, match=refusal):
        require_fitting(config, capability, 16)
