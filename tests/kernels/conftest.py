"""Small tensors: a second thread would only wait for the first.

Every test of an op runs on each backend. Triton's kernels are interpreted, on the CPU, and slowly: of a test that has
many cases each 13th runs, a number that no dimension of the grids divides; `--whole-grid` runs all.

With OPENLORA_KERNELS_DEVICE in the environment they run there: compiled on a GPU; on "cpu" interpreted, but moved there
and back as for a GPU. OPENLORA_KERNELS_FLASHINFER adds FlashInfer's attention. Both are for `make gpu-check`.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from openlora.kernels.ops import BACKENDS, Ops
from tests.kernels import interpreter
from tests.kernels.on_device import on_device

EACH = 13


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["reference", "triton"])
def ops(request: pytest.FixtureRequest) -> Iterator[Ops]:
    if request.param == "reference":
        yield Ops(BACKENDS["reference"])
        return
    device = os.environ.get("OPENLORA_KERNELS_DEVICE", "")
    if device.startswith("cuda"):
        from openlora.kernels.flashinfer import with_flashinfer
        from openlora.kernels.triton.backend import TRITON

        there = torch.device(device)
        own = with_flashinfer(TRITON, there) if "OPENLORA_KERNELS_FLASHINFER" in os.environ else TRITON
        yield Ops(on_device(own, there))
        return
    backend = interpreter.triton_backend()
    backend = on_device(backend, torch.device(device)) if device else backend
    with interpreter.mended(), np.errstate(invalid="ignore"):  # ∞ − ∞ is no event on a device
        yield Ops(backend)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seen: Counter[str] = Counter()
    left_out = set()
    for item in items:
        if isinstance(item, pytest.Function) and "[triton" in item.name:
            item.add_marker(pytest.mark.slow)
            test = f"{item.path}::{item.originalname}"
            if seen[test] % EACH and not config.getoption("--whole-grid"):
                left_out.add(item)
            seen[test] += 1
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if path := config.getoption("--counts"):
        counts = {outcome: len(terminalreporter.stats.get(outcome, ())) for outcome in ("passed", "failed", "error")}
        failed = [report.nodeid for report in terminalreporter.stats.get("failed", ())]
        Path(path).write_text(json.dumps(counts | {"failed_tests": failed[:20]}))
