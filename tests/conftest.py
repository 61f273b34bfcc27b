"""Fixtures for every part: the real base model, where `make setup` put it."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from openlora.node.recursion import restore_recursion_limit

restore_recursion_limit()  # as every process of ours does

with pytest.MonkeyPatch.context() as patch, suppress(ImportError):
    if not os.environ.get("OPENLORA_KERNELS_DEVICE", "").startswith("cuda"):
        patch.setenv("TRITON_INTERPRET", "1")  # read when triton is imported, which transformers does too
    import triton  # noqa: F401  # interpreted in this process, and not in those it starts

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """A suite that is started in the background is told to ignore SIGINT, and so would be all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mixed-batches", type=int, default=1000, help="random batches of the bit-exactness test")
    parser.addoption("--whole-grid", action="store_true", help="every case of the interpreted kernels, not each 13th")
    parser.addoption("--counts", default="", help="a file to write how many tests had which outcome to, as JSON")


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory. A test that asks for it fails without it: it is no option."""
    path = REPOSITORY / "var/models/smollm2-135m-instruct"
    assert (path / "model.safetensors").exists(), f"{path} is missing; run `make setup`"
    return path
