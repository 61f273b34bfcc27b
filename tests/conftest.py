"""Fixtures for every part: the real base model, where `make setup` put it."""

import os
from pathlib import Path

import pytest

from openlora.node.recursion import restore_recursion_limit

restore_recursion_limit()  # as every process of ours does

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, by whomever: no test has a CUDA device

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mixed-batches", type=int, default=1000, help="random batches of the bit-exactness test")
    parser.addoption("--whole-grid", action="store_true", help="every case of the interpreted kernels, not each 13th")


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory. A test that asks for it fails without it: it is no option."""
    path = REPOSITORY / "var/models/smollm2-135m-instruct"
    assert (path / "model.safetensors").exists(), f"{path} is missing; run `make setup`"
    return path
