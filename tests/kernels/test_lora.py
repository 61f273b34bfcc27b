"""lora_ against the product with every row's effect materialised as one dense matrix."""

import pytest
import torch
from torch import Tensor

from openlora.kernels.ops import Ops
from openlora.kernels.reference import row_norms
from openlora.kernels.types import Change, Difference, LoraEntries, LoraFactors

IN, OUT, SLOTS = 48, 40, 8
BATCHES = (1, 2, 3, 7, 33, 133)
POPULARITIES = ("distinct", "identical", "uniform", "zipf", "skewed")
RANKS = (1, 8, 16, 64, "mixed")


def slots_of(popularity: str, rows: int, rng: torch.Generator) -> list[int]:
    """One slot a row. distinct: in turn; zipf: slot i with weight 1/(i+1); skewed: nine rows in ten use slot 0."""
    match popularity:
        case "distinct":
            return [row % SLOTS for row in range(rows)]
        case "identical":
            return [3] * rows
        case "uniform":
            weights = torch.ones(SLOTS)
        case "zipf":
            weights = 1 / torch.arange(1, SLOTS + 1)
        case _:
            weights = torch.tensor([0.9] + [0.1 / (SLOTS - 1)] * (SLOTS - 1))
    return torch.multinomial(weights.float(), rows, replacement=True, generator=rng).tolist()


def table_of(rank: int | str, dtype: torch.dtype, rng: torch.Generator) -> list[LoraFactors | None]:
    ranks = [1, 3, 8, 16, 17, 64, 128, 5] if rank == "mixed" else [int(rank)] * SLOTS
    return [
        LoraFactors(
            (torch.randn(r, IN, generator=rng) / IN**0.5).to(dtype),
            (torch.randn(OUT, r, generator=rng) / r**0.5).to(dtype),
            2.0 / (i + 1),
        )
        for i, r in enumerate(ranks)
    ]


def entries_of(recipes: list[list[tuple[int, float]]]) -> LoraEntries:
    flat = [entry for recipe in recipes for entry in recipe]
    lengths = torch.tensor([0] + [len(recipe) for recipe in recipes])
    return LoraEntries(
        indptr=lengths.cumsum(0).int(),
        slot=torch.tensor([slot for slot, _ in flat], dtype=torch.int32),
        weight=torch.tensor([weight for _, weight in flat], dtype=torch.float32),
    )


def dense(y: Tensor, x: Tensor, recipes: list[list[tuple[int, float]]], table: list[LoraFactors | None]) -> Tensor:
    """In float64, a row at a time: y + x · (Σ weight · scale · B · A)ᵀ."""
    rows = []
    for row, recipe in enumerate(recipes):
        effect = torch.zeros(OUT, IN, dtype=torch.float64)
        for slot, weight in recipe:
            if (factors := table[slot]) is not None:
                effect += weight * factors.scale * factors.b.double() @ factors.a.double()
        rows.append(y[row].double() + effect @ x[row].double())
    return torch.stack(rows)


def apply(
    ops: Ops, y: Tensor, x: Tensor, recipes: list[list[tuple[int, float]]], table: list[LoraFactors | None]
) -> Tensor:
    result = y.clone()
    ops.lora_(result, x, ops.plan_lora(entries_of(recipes)), table)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", BATCHES)
@pytest.mark.parametrize("popularity", POPULARITIES)
@pytest.mark.parametrize("rank", RANKS)
def test_equals_the_dense_product(ops: Ops, rank: int | str, popularity: str, rows: int, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(rows)
    x, y = (torch.randn(rows, n, generator=rng).to(dtype) for n in (IN, OUT))
    table = table_of(rank, dtype, rng)
    recipes = [[(slot, 0.5)] if row % 5 else [] for row, slot in enumerate(slots_of(popularity, rows, rng))]
    tolerance = 2e-5 if dtype == torch.float32 else 2**-8  # bfloat16: one rounding of the sum
    torch.testing.assert_close(
        apply(ops, y, x, recipes, table).double(), dense(y, x, recipes, table), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("rows", BATCHES)
def test_ensembles_add_up_with_their_weights(ops: Ops, rows: int) -> None:
    rng = torch.Generator().manual_seed(rows)
    x, y = torch.randn(rows, IN, generator=rng), torch.randn(rows, OUT, generator=rng)
    table = table_of("mixed", torch.float32, rng)
    recipes = [[(row % 3, 0.25), ((row + 4) % SLOTS, -1.5), (row % 3, 0.75)][: row % 4] for row in range(rows)]
    torch.testing.assert_close(
        apply(ops, y, x, recipes, table).double(), dense(y, x, recipes, table), rtol=2e-5, atol=2e-5
    )


def test_rows_without_entries_keep_every_bit(ops: Ops) -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, IN, generator=rng), torch.randn(7, OUT, generator=rng)
    result = apply(ops, y, x, [[], [(0, 1.0)], [], [], [(1, 1.0)], [], []], table_of(8, torch.float32, rng))
    untouched = [0, 2, 3, 5, 6]
    assert torch.equal(result[untouched], y[untouched])
    assert not torch.equal(result[1], y[1])


def test_no_entries_at_all_is_no_change(ops: Ops) -> None:
    x, y = torch.randn(3, IN), torch.randn(3, OUT)
    assert torch.equal(apply(ops, y, x, [[], [], []], []), y)


def test_a_slot_that_leaves_the_layer_alone_adds_nothing(ops: Ops) -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, IN, generator=rng), torch.randn(4, OUT, generator=rng)
    table = table_of(8, torch.float32, rng)
    table[2] = None
    recipes = [[(2, 1.0)], [(2, 1.0), (1, 1.0)], [(1, 1.0)], []]
    result = apply(ops, y, x, recipes, table)
    assert torch.equal(result[0], y[0])
    torch.testing.assert_close(result.double(), dense(y, x, recipes, table), rtol=2e-5, atol=2e-5)


def test_a_row_adds_in_the_order_of_its_list_whatever_the_slots_are_numbered(ops: Ops) -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(1, IN, generator=rng), torch.randn(1, OUT, generator=rng)
    table = table_of(16, torch.float32, rng)
    first = apply(ops, y, x, [[(0, 1.0), (5, 1.0), (6, 1.0)]], table)
    moved = [table[6], table[0], None, None, None, None, table[5]]
    assert torch.equal(first, apply(ops, y, x, [[(1, 1.0), (6, 1.0), (0, 1.0)]], moved))


def test_an_infinite_adapter_poisons_its_own_rows_alone(ops: Ops) -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, IN, generator=rng), torch.randn(3, OUT, generator=rng)
    table = table_of(8, torch.float32, rng)
    table[1] = LoraFactors(torch.full((4, IN), torch.inf), torch.zeros(OUT, 4), 1.0)
    result = apply(ops, y, x, [[(0, 1.0)], [(1, 1.0)], []], table)
    assert result[1].isnan().all()
    torch.testing.assert_close(result[0], apply(ops, y[:1], x[:1], [[(0, 1.0)]], table)[0])
    assert torch.equal(result[2], y[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_is_the_same_in_every_batch(ops: Ops, dtype: torch.dtype) -> None:
    if ops.name == "reference":
        pytest.skip("torch's products may round by the number of rows")
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 2100, generator=rng).to(dtype), torch.randn(40, OUT, generator=rng).to(dtype)
    table = [
        LoraFactors(a.to(dtype), b.to(dtype), 0.1, stretch)
        for a, b, stretch in (
            (torch.randn(3, 2100, generator=rng), torch.randn(OUT, 3, generator=rng), torch.randn(OUT, generator=rng)),
            (torch.randn(16, 2100, generator=rng), torch.randn(OUT, 16, generator=rng), None),
            (torch.randn(40, 2100, generator=rng), torch.randn(OUT, 40, generator=rng), None),
        )
    ]
    recipes = [[(row % 3, 0.5)] if row % 4 else [(row % 3, 1.0), (1, -1.0)] for row in range(40)]
    together = apply(ops, y, x, recipes, table)
    for row in (0, 1, 39):
        one = slice(row, row + 1)
        assert torch.equal(apply(ops, y[one], x[one], recipes[one], table), together[one])


def test_writes_into_a_column_slice(ops: Ops) -> None:
    rng = torch.Generator().manual_seed(0)
    x, whole = torch.randn(5, IN, generator=rng), torch.randn(5, 3 * OUT, generator=rng)
    table = table_of(8, torch.float32, rng)
    recipes = [[(row, 1.0)] for row in range(5)]
    before = whole.clone()
    ops.lora_(whole[:, OUT : 2 * OUT], x, ops.plan_lora(entries_of(recipes)), table)
    torch.testing.assert_close(whole[:, OUT : 2 * OUT], apply(ops, before[:, OUT : 2 * OUT], x, recipes, table))
    assert torch.equal(whole[:, :OUT], before[:, :OUT])
    assert torch.equal(whole[:, 2 * OUT :], before[:, 2 * OUT :])


# ---- other changes than B · A ----------------------------------------------------------------------------------------


def changes_of(rng: torch.Generator) -> list[Change | None]:
    """Low rank, DoRA, whole, none, and DoRA again."""
    low_rank = table_of(4, torch.float32, rng)
    stretched = [LoraFactors(f.a, f.b, f.scale, torch.randn(OUT, generator=rng)) for f in low_rank[:2] if f is not None]
    return [low_rank[2], stretched[0], Difference(torch.randn(OUT, IN, generator=rng)), None, stretched[1]]


def materialised(change: Change | None, weight: Tensor) -> Tensor:
    match change:
        case Difference():
            return change.weight.double()
        case LoraFactors():
            stretch = torch.zeros(OUT) if change.stretch is None else change.stretch
            return change.scale * change.b.double() @ change.a.double() + stretch.double().unsqueeze(1) * weight
    return torch.zeros_like(weight)


MIXED = [[(0, 0.5)], [(1, 1.0)], [], [(1, -0.5), (4, 0.75)], [(2, 1.0)], [(4, 1.0), (2, 0.5), (0, 1.0)], [(3, 1.0)]]


def expected_weights(changes: list[Change | None], weight: Tensor) -> list[Tensor]:
    """Each row's W + Σ weight · ΔW, in float64."""
    return [weight + sum(w * materialised(changes[slot], weight) for slot, w in recipe) for recipe in MIXED]


@pytest.mark.parametrize("biased", [False, True])
def test_recipes_of_all_kinds_are_sums_of_differences(ops: Ops, biased: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    x, weight = torch.randn(len(MIXED), IN, generator=rng), torch.randn(OUT, IN, generator=rng)
    bias = torch.randn(OUT, generator=rng) if biased else torch.zeros(OUT)
    changes, found = changes_of(rng), x @ weight.T + bias
    ops.lora_(found, x, ops.plan_lora(entries_of(MIXED)), changes, bias if biased else None)
    for row, whole in enumerate(expected_weights(changes, weight.double())):
        torch.testing.assert_close(found[row].double(), whole @ x[row].double() + bias, rtol=1e-4, atol=1e-4)


def test_an_embedding_is_a_layer_of_one_hot_rows(ops: Ops) -> None:
    rng = torch.Generator().manual_seed(0)
    weight, tokens = torch.randn(OUT, IN, generator=rng), torch.tensor([0, 1, 5, 5, IN - 1, 7, 2], dtype=torch.int32)
    changes, found = changes_of(rng), weight.T[tokens]
    lookup = [Difference(c.weight.T) if isinstance(c, Difference) else c for c in changes]
    ops.lora_embedding_(found, tokens, ops.plan_lora(entries_of(MIXED)), lookup)
    for row, whole in enumerate(expected_weights(changes, weight.double())):
        torch.testing.assert_close(found[row].double(), whole[:, int(tokens[row])], rtol=1e-4, atol=1e-4)


def test_a_norms_weight_of_each_row(ops: Ops) -> None:
    weight = torch.ones(OUT).repeat(3, 1)
    table: list[Change | None] = [Difference(torch.arange(OUT).float()), None, Difference(-torch.ones(OUT))]
    ops.lora_vector_(weight, ops.plan_lora(entries_of([[(0, 0.5), (2, 1.0)], [(1, 3.0)], []])), table)
    torch.testing.assert_close(weight, torch.stack([torch.arange(OUT) / 2, torch.ones(OUT), torch.ones(OUT)]))
    x = torch.randn(3, OUT)
    rows = torch.cat([ops.rms_norm(x[i : i + 1], weight[i], 1e-5) for i in range(3)])
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), rows)
    heads = torch.randn(3, 2, OUT)
    each = torch.stack([ops.rms_norm(heads[:, i], weight, 1e-5) for i in range(2)], dim=1)
    torch.testing.assert_close(ops.rms_norm(heads, weight.unsqueeze(1), 1e-5), each)


def test_row_norms_are_those_of_the_changed_weight() -> None:
    rng = torch.Generator().manual_seed(0)
    weight, factors = torch.randn(1100, IN, generator=rng), LoraFactors(torch.ones(2, IN), torch.ones(1100, 2), 0.25)
    torch.testing.assert_close(row_norms(weight, factors), (weight + 0.5).norm(dim=1))


def test_a_device_refuses_factors_that_it_cannot_read(ops: Ops) -> None:
    if ops.name == "reference":
        pytest.skip("the reference reads any tensor")
    x, y, plan = torch.randn(1, IN), torch.randn(1, OUT), ops.plan_lora(entries_of([[(0, 1.0)]]))
    a, b = torch.randn(4, IN), torch.randn(OUT, 4)
    for change, message in (
        (LoraFactors(a.bfloat16(), b, 1.0), "one dtype"),
        (LoraFactors(a, b.T.contiguous().T, 1.0), "contiguous"),
        (LoraFactors(torch.randn(4 * IN + 1)[1:].view(4, IN), b, 1.0), "multiple of 16 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.lora_(y, x, plan, [change])


def test_refuses_entries_that_do_not_fit(ops: Ops) -> None:
    plan = ops.plan_lora(entries_of([[(2, 1.0)], []]))
    x, y = torch.randn(2, IN), torch.randn(2, OUT)
    with pytest.raises(ValueError, match="beyond the table"):
        ops.lora_(y, x, plan, [None, None])
    with pytest.raises(ValueError, match="do not fit the plan"):
        ops.lora_(y[:1], x[:1], plan, [None] * 3)
    with pytest.raises(ValueError, match="indptr"):
        ops.plan_lora(LoraEntries(torch.tensor([0, 2]), torch.tensor([1]), torch.ones(1)))
