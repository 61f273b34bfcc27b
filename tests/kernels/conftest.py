"""Small tensors: a second thread would only wait for the first.

Every test of an op runs on each backend. Triton's kernels are interpreted, on the CPU, and slowly: of a test that has
many cases each 13th runs, a number that no dimension of the grids divides; `--whole-grid` runs all.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from openlora.kernels.ops import BACKENDS, Ops
from tests.kernels import interpreter

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
    backend = interpreter.triton_backend()
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
