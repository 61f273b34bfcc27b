"""The machine that figures were measured on: what it is, and what its memory and its cores give at that moment."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_PEAK = Path(__file__).with_name("peak.cpp")
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # of which the widest two are named


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: str  # as /proc/cpuinfo names it, with family, model and stepping: virtual machines hide the product's name
    cores: int
    instructions: str


@dataclass(frozen=True, slots=True)
class Speed:
    read_gb_s: float  # summing 1 GiB of float32, all cores, the best of five
    peak_gflop_s: float  # products with every operand in registers, all cores, for weights in bfloat16: see peak.cpp
    peak_of: str  # the instructions' name
    gemm_gflop_s: float  # torch's bfloat16 product of two 2048 x 2048 matrices, the best of five


def this_machine() -> Machine:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    values = {key: _first(rf"^{key}\s*: (.*)$", text) for key in ("model name", "cpu family", "model", "stepping")}
    flags = _first(r"^flags\s*: (.*)$", text).split()
    cpu = f"{values['model name']} {values['cpu family']}/{values['model']}/{values['stepping']}"
    named = [name for name in _INSTRUCTIONS if name in flags][:2]
    return Machine(cpu, len(os.sched_getaffinity(0)), " ".join(named) or "none")


def measure_speed() -> Speed:
    peak_of, peak_gflop_s = register_peak()
    return Speed(round(read_gb_s(), 1), peak_gflop_s, peak_of, round(_gemm_gflop_s()))


def read_gb_s() -> float:
    block = torch.zeros(256 << 20)
    return block.nbytes / _best_s(block.sum) / 1e9


def _gemm_gflop_s() -> float:
    a, b = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    return 2 * 2048**3 / _best_s(lambda: a @ b) / 1e9


def register_peak() -> tuple[str, float]:
    """The fastest instructions' name, and GFLOP/s; ("none", 0) without any of them, or without a compiler."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return "none", 0.0
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/peak"
        command = [compiler, "-std=c++20", "-O3", "-march=native", "-pthread", str(_PEAK), "-o", program]
        subprocess.run(command, check=True, timeout=60)
        done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=True)
    name, gflop_s = done.stdout.splitlines()
    return name, float(gflop_s)


def _best_s(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(5):
        started_s = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started_s)
    return min(seconds)


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else "unknown"
