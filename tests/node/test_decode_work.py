"""The shares of a machine that throughput.py prints beside a decode step."""

from pathlib import Path

import pytest
from bench.throughput import Work

from openlora.node.engine.models.config import DecoderConfig
from tests.node.engine.tiny import write_config


def test_a_step_multiplies_every_weight_and_reads_it_once_and_every_sequence_its_keys_and_values(
    tmp_path: Path,
) -> None:
    config = DecoderConfig.from_path(write_config(tmp_path))
    weights = 2 * (32 * 64 + 32 * 32 + 3 * 32 * 48) + 97 * 32  # q, k, v; o; gate, up, down; head
    work = Work.of(config, "int8", batch=3, context=10)
    assert work.gflop == pytest.approx(2 * 3 * weights / 1e9)
    assert work.weights_gb == pytest.approx(weights / 1e9)
    assert work.kv_gb == pytest.approx(
        3 * 10 * 2 * 2 * 2 * 8 * 2 / 1e9
    )  # keys and values, layers, heads, numbers, bytes


def test_shares_are_of_what_the_machine_gives() -> None:
    shares = Work(gflop=8.0, weights_gb=0.3, kv_gb=0.2).shares(0.05, peak=320.0, read=20.0)
    assert shares == {"of_peak": 0.5, "of_read": 0.5, "times_bound": 1.43}
