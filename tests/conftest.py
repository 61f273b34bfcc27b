"""Fixtures for every part: the real base model, where `make setup` put it."""

from pathlib import Path

import pytest

from openlora.node.recursion import restore_recursion_limit

restore_recursion_limit()  # as every process of ours does

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mixed-batches", type=int, default=1000, help="random batches of the bit-exactness test")


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory. A test that asks for it fails without it: it is no option."""
    path = REPOSITORY / "var/models/smollm2-135m-instruct"
    assert (path / "model.safetensors").exists(), f"{path} is missing; run `make setup`"
    return path
