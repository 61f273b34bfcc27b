"""The committed table of what the CUDA kernels need of a device, against its limits and against a fresh compilation."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHARED_BYTES = {"sm_80": 163 * 1024, "sm_86": 99 * 1024, "sm_89": 99 * 1024, "sm_90": 227 * 1024}  # a block, at most


@pytest.fixture(scope="module")
def table(repository: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((repository / "kernels/bench/resources.json").read_text())
    return found


def test_every_kernel_fits_every_device_without_spills(table: dict[str, Any]) -> None:
    assert len(table["kernels"]) > 10
    for name, architectures in table["kernels"].items():
        assert architectures.keys() == SHARED_BYTES.keys(), name
        for architecture, needs in architectures.items():
            assert needs["spilled_bytes"] == 0, (name, architecture)
            assert needs["shared_bytes"] <= SHARED_BYTES[architecture], (name, architecture)


def test_weights_adapters_and_caches_are_read_in_vectors(table: dict[str, Any]) -> None:
    """But for the rows of B at a rank that 8 does not divide, an embedding's columns of A, and the scales of groups,
    one for 16 codes or more."""
    found = {name: [x["narrow_reads"] for x in each.values()] for name, each in table["kernels"].items()}
    of_groups = {f"linear_{kind}_{step}" for kind in ("int4", "int4_minima", "coded8") for step in ("decode", "prompt")}
    of_groups.add("linear_int4_minima_prompt_fp32")
    expected = {"lora_expand_ensemble_odd_rank_bf16", "lora_lookup", *of_groups}
    assert {name for name, reads in found.items() if any(reads)} == expected


@pytest.mark.slow
def test_the_table_is_what_the_compiler_says(
    table: dict[str, Any], repository: Path, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("triton", reason="the table of resources is not tested: triton is not installed")
    chosen = [80, 86, 89, 90] if request.config.getoption("--whole-grid") else [90]
    options = [f"--architecture={each}" for each in chosen]
    script = repository / "kernels/bench/resources.py"
    found = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=True, timeout=300)
    names = {f"sm_{each}" for each in chosen}
    expected = {
        kernel: {name: needs for name, needs in architectures.items() if name in names}
        for kernel, architectures in table["kernels"].items()
    }
    assert json.loads(found.stdout) == {"triton": table["triton"], "kernels": expected}
