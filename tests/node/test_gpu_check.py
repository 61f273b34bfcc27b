"""`make gpu-check`, but for the device: rehearsed as a whole on a processor."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import gpu_check

from openlora.node.engine.choice import checks_file, passed_checks

MACHINE = {
    "part": "machine",
    "card": "NVIDIA L4",
    "at": "2026-01-01T00:00:00+00:00",
    "kernels": "ab" * 32,
    "torch": "2",
}
PARITY = {"part": "parity", "passed": True, "tolerance": 1e-3, "logprob_difference": 2e-5}
PARITY |= {"decoded_logprob_difference": 1e-5, "decoded_shortfall": 0.0}
COUNTS = {"passed": 7, "failed": 0, "error": 0, "failed_tests": []}
KERNELS = {"part": "kernels", "kernels": "Triton", "passed": True, "tests": COUNTS}
DECODING = {"part": "decoding", "model": "Llama-3-8B", "weights": "full", "batch": 64, "context": 512, "rank": 16}
DECODING |= {"adapters": 8, "captured": True, "step_ms": 10.0, "roofline_ms": 8.0, "of_roofline": 0.8}
DECODING |= {"output_tok_s": 6400.0, "copy_gb_s": 2900.0}
TIME = {"part": "time", "seconds": 300.0}


def script(*arguments: str, limit_s: float = 300) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, gpu_check.__file__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit_s)


@pytest.mark.slow
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    ended = script("--out", str(tmp_path / "out"))
    assert ended.returncode == gpu_check.NO_DEVICE
    assert ended.stdout.startswith("gpu-check: no CUDA device was found")
    assert (ended.stdout.count("\n"), ended.stderr, (tmp_path / "out").exists()) == (1, "", False)


@pytest.mark.slow
def test_a_rehearsal_passes_in_every_part(tmp_path: Path) -> None:
    ended = script("--device", "cpu", "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = [json.loads(text) for text in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines] == ["machine", "kernels", "parity", *["decoding"] * 4, "time"]
    assert lines[1]["tests"]["passed"] >= 10
    assert lines[2]["logprob_difference"] < 1e-4
    assert [(line["adapters"], line["captured"]) for line in lines[3:7]] == [
        (0, True),
        (1, True),
        (2, True),
        (2, False),
    ]
    bytes_read = [line["roofline_ms"] for line in lines[3:7]]
    assert bytes_read == sorted(bytes_read), "each adapter is read once"
    assert (tmp_path / "report.md").read_text().splitlines()[0].endswith(": passed")


def test_the_report_has_every_part() -> None:
    text = gpu_check.report([MACHINE, KERNELS, PARITY, DECODING, TIME], passed=True)
    assert text.startswith("# OpenLoRA's CUDA kernels on NVIDIA L4: passed\n")
    assert "- Triton: 7 tests passed, 0 failed" in text
    assert "log-probabilities within 2.0e-05, of decoded tokens within 1.0e-05; the limit is 1e-03" in text
    assert "| full | 8 | yes | 10.00 | 8.00 | 80% | 6,400 |" in text


@pytest.mark.parametrize("part", ["kernels", "parity", "decoding"])
def test_a_part_that_fails_is_in_the_report(part: str) -> None:
    failed = {"part": part, "passed": False, "failed": "RuntimeError: an illegal memory access"}
    lines = [failed if line["part"] == part else line for line in (MACHINE, KERNELS, PARITY, DECODING, TIME)]
    text = gpu_check.report(lines, passed=False)
    assert text.splitlines()[0].endswith("FAILED")
    assert "FAILED: RuntimeError: an illegal memory access" in text


def test_an_error_ends_its_part_alone() -> None:
    def run(device: Any) -> Any:
        yield {"step_ms": 1.0}
        raise RuntimeError("x" * 1000)

    first, second = gpu_check.guarded("decoding", run, None)
    assert first == {"part": "decoding", "step_ms": 1.0}
    assert (second["passed"], len(second["failed"])) == (False, 500)


def test_what_passed_is_remembered_for_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gpu_check.remember(MACHINE)
    (check,) = passed_checks(checks_file(tmp_path / "openlora"), MACHINE["kernels"])
    assert (check.card, check.versions) == ("NVIDIA L4", {"torch": "2"})
