"""The rotary tables against transformers' own."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.models.decoder import rope_table
from tests.node.engine.tiny import write_config

POSITIONS = 4096
ORIGINAL = {"original_max_position_embeddings": 1024}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "dynamic": {"factor": 4.0},
    "linear": {"factor": 2.5},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | ORIGINAL,
    "llama3-of-all-positions": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0} | ORIGINAL,
    "yarn-of-all-positions": {"factor": 4.0},
    "yarn-told": {"factor": 3.0, "attention_factor": 0.7, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False}
    | ORIGINAL,
    "yarn-of-deepseek": {"factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.2} | ORIGINAL,
    "yarn-of-half-of-deepseeks": {"factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0} | ORIGINAL,
    "yarn-without-a-factor": {"factor": None} | ORIGINAL,
}


def tables(kind: str, theta: float, directory: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Ours and theirs."""
    parameters = {"rope_type": kind.partition("-")[0], "rope_theta": theta} | KINDS[kind]
    settings = {"head_dim": 64, "max_position_embeddings": POSITIONS, "rope_parameters": parameters}
    ours = rope_table(DecoderConfig.from_path(write_config(directory, **settings)))
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**settings))
    cos, sin = theirs(torch.zeros(1), torch.arange(POSITIONS).unsqueeze(0))
    return ours, torch.cat((cos[0, :, :32], sin[0, :, :32]), dim=1)


@pytest.mark.parametrize("theta", [10_000.0, 100_000.0])
@pytest.mark.parametrize("kind", ["default", "dynamic", "linear"])
def test_the_last_bit_is_theirs(kind: str, theta: float, tmp_path: Path) -> None:
    """Angles of a thousand radians, rounded otherwise than where a model was trained, show in its answers."""
    ours, theirs = tables(kind, theta, tmp_path)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("theta", [10_000.0, 1_000_000.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_theirs_but_for_a_frequencys_last_bits(kind: str, theta: float, tmp_path: Path) -> None:
    ours, theirs = tables(kind, theta, tmp_path)
    assert float((ours - theirs).abs().max()) <= POSITIONS * 2**-22
