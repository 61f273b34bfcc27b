"""Which runner serves, and in which dtype: what can be told without a GPU."""

from pathlib import Path

import pytest
import torch

from openlora.kernels.errors import KernelsUnavailable
from openlora.node.engine.engine import Engine
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.runners import best_device, require_fitting
from tests.node.engine.tiny import write_config, write_model

LIMITS = EngineLimits(kv_tokens=160)
CPU = torch.device("cpu")
SERVED = {"head_dim": 32}  # by the compiled decoder


@pytest.fixture(params=[True, False], ids=["emulated", "native"])
def emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether torch would emulate bfloat16 on this processor."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not request.param})
    return bool(request.param)


def loaded(model: Path, cache_dir: Path | None) -> tuple[str, str]:
    info = Engine.load(model, limits=LIMITS, cache_dir=cache_dir, device=CPU).info
    return info.dtype, info.backend.partition("-")[0]


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


def test_auto_is_bfloat16_wherever_the_compiled_decoder_serves(tmp_path: Path, kernels: Path, emulated: bool) -> None:
    assert loaded(write_model(tmp_path, stored=torch.bfloat16, **SERVED), kernels) == ("bfloat16", "cpu")


@pytest.mark.parametrize(
    ("changes", "named"), [({"head_dim": 8}, "head size of 8"), ({"model_type": "falcon"}, "layer norms")]
)
def test_auto_is_float32_where_the_reference_would_emulate_bfloat16(
    tmp_path: Path,
    kernels: Path,
    emulated: bool,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, object],
    named: str,
) -> None:
    model = write_model(tmp_path, stored=torch.bfloat16, **changes)
    assert loaded(model, kernels) == ("float32" if emulated else "bfloat16", "reference")
    assert caplog.text.count(named) == 1


def test_auto_asks_for_a_library_that_can_be_loaded(
    tmp_path: Path, kernels: Path, emulated: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for path in kernels.glob("cpu-*.so"):
        (cache / path.name).write_bytes(b"not a library")
    model = write_model(tmp_path / "model", stored=torch.bfloat16, **SERVED)
    assert loaded(model, cache) == ("float32" if emulated else "bfloat16", "reference")
    assert caplog.text.count("cannot be loaded") == 1
    assert loaded(model, None) == ("float32" if emulated else "bfloat16", "reference")


def test_a_checkpoint_in_float32_is_served_in_it_and_builds_nothing(
    tmp_path: Path, emulated: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    assert loaded(write_model(tmp_path / "model", **SERVED), cache) == ("float32", "reference")
    assert not cache.exists()
    assert not caplog.text
