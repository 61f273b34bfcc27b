from collections.abc import Iterator
from pathlib import Path

import pytest

from openlora.kernels.cpu.build import library_path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: for small tensors, and beside other test workers, the second one only waits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def kernels(repository: Path) -> Path:
    """A cache that holds the library: a test run builds it when the sources have changed."""
    cache = repository / "var/cache"
    library_path(cache)
    return cache
