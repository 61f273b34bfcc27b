"""Whole models on the Triton kernels, interpreted, against the reference: both in float32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.kernels import interpreter
from tests.node.engine.compared import FAMILIES, load_kinds, logits_of, reference, some_requests
from tests.node.engine.tiny import write_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("family", [FAMILIES["qwen3"], FAMILIES["gemma2"]], ids=["qwen3", "gemma2"])
def test_a_model_with_adapters_of_every_kind_is_the_references(tmp_path: Path, family: dict[str, Any]) -> None:
    path = write_model(tmp_path, **family)
    exact, runner = reference(path), reference(path, backend=interpreter.triton_backend())
    load_kinds((exact, runner), path)
    with interpreter.mended(), np.errstate(invalid="ignore"):
        found = logits_of(runner, some_requests(4, "distinct"))
    assert runner.backend == "triton"
    torch.testing.assert_close(found, logits_of(exact, some_requests(4, "distinct")), rtol=1e-3, atol=1e-3)
