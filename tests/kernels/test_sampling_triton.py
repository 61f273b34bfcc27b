"""All rows drawn at once, against the reference's one by one: the same tokens."""

import pytest
import torch

from openlora.kernels.ops import BACKENDS, Ops

SETTINGS = {  # temperature, top_k, top_p
    "greedy": [(0.0, 0, 1.0)],
    "plain": [(1.0, 0, 1.0), (0.3, 0, 1.0)],
    "top_k": [(1.0, 3, 1.0), (5.0, 1, 1.0), (2.0, 1_000, 1.0)],
    "top_p": [(1.0, 0, 0.5), (3.0, 0, 0.95), (1.0, 0, 1e-12)],
    "mixed": [(0.0, 5, 0.5), (1.0, 7, 0.9), (50.0, 0, 1.0), (1e-300, 0, 0.5), (2.0, 40, 1.0)],
}


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 33])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("vocabulary", [5, 1500])
def test_draws_what_the_reference_draws(
    ops: Ops, vocabulary: int, settings: list[tuple[float, int, float]], rows: int
) -> None:
    rng = torch.Generator().manual_seed(rows)
    logits = 4 * torch.randn(rows, vocabulary, generator=rng)
    logits[:, 1::2] = logits[:, : vocabulary // 2 * 2 : 2]  # ties
    each = [settings[row % len(settings)] for row in range(rows)]
    seeds = torch.randint(-(1 << 62), 1 << 62, (rows,), generator=rng)
    arguments = (
        logits,
        torch.tensor([temperature for temperature, _, _ in each], dtype=torch.float64),
        torch.tensor([top_k for _, top_k, _ in each]),
        torch.tensor([top_p for _, _, top_p in each], dtype=torch.float64),
        seeds,
        torch.arange(rows) * 100_003,
    )
    assert torch.equal(ops.sample(*arguments), Ops(BACKENDS["reference"]).sample(*arguments))


def test_no_rows_are_no_tokens(ops: Ops) -> None:
    none, wide = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    assert ops.sample(torch.zeros(0, 7), wide, none, wide, none, none).shape == (0,)
