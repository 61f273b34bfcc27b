"""paged_attention and kv_append_ against torch's attention over contiguous keys and values."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openlora.kernels.ops import Ops
from openlora.kernels.types import AttentionBatch

PAGE = 16
SHAPES = {"mixed": [(1, 40), (5, 5), (1, 1), (17, 60), (1, 300), (1, 16), (33, 33), (1, 17)]}  # (rows, context)
SHAPES |= {f"{n} decodes": [(1, 1 + 13 * i % 200) for i in range(n)] for n in (1, 2, 3, 7, 33, 133)}
SHAPES |= {"one prompt": [(50, 50)], "one chunk": [(7, 129)]}


@dataclass
class Case:
    """Sequences whose pages lie in random order among pages full of NaN."""

    batch: AttentionBatch
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    keys: list[Tensor]  # of each sequence, [context, K, D]
    values: list[Tensor]


def make_case(shape: list[tuple[int, int]], heads: int, kv_heads: int, head_size: int, dtype: torch.dtype) -> Case:
    rng = torch.Generator().manual_seed(len(shape))
    pages_each = [-(-context // PAGE) for _, context in shape]
    order = torch.randperm(sum(pages_each) + 3, generator=rng).tolist()
    cache_shape = (len(order), PAGE, kv_heads, head_size)
    case = Case(
        batch=AttentionBatch(
            row_starts=torch.tensor([0] + [rows for rows, _ in shape]).cumsum(0).int(),
            context_lens=torch.tensor([context for _, context in shape], dtype=torch.int32),
            page_table=torch.full((len(shape), max(pages_each)), order[-1], dtype=torch.int32),
        ),
        q=torch.randn(sum(rows for rows, _ in shape), heads, head_size, generator=rng).to(dtype),
        k_cache=torch.full(cache_shape, torch.nan, dtype=dtype),
        v_cache=torch.full(cache_shape, torch.nan, dtype=dtype),
        keys=[],
        values=[],
    )
    for s, ((_, context), count) in enumerate(zip(shape, pages_each, strict=True)):
        pages = torch.tensor([order.pop() for _ in range(count)])
        case.batch.page_table[s, :count] = pages
        k, v = (torch.randn(context, kv_heads, head_size, generator=rng).to(dtype) for _ in range(2))
        positions = torch.arange(context)
        slots = pages[positions // PAGE] * PAGE + positions % PAGE
        case.k_cache.flatten(0, 1)[slots], case.v_cache.flatten(0, 1)[slots] = k, v
        case.keys.append(k)
        case.values.append(v)
    return case


def expected(case: Case, s: int, window: int | None) -> Tensor:
    """Sequence s alone, in float64, over its own contiguous keys."""
    start, end = case.batch.row_starts[s : s + 2].tolist()
    rows, context = end - start, len(case.keys[s])
    mask = torch.ones(rows, context, dtype=torch.bool).tril(context - rows)
    if window is not None:
        mask = mask.triu(context - rows - window + 1)
    q, k, v = (x.double().transpose(0, 1) for x in (case.q[start:end], case.keys[s], case.values[s]))
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_size", "window"), [(9, 3, 64, None), (4, 4, 32, 20), (8, 1, 16, None), (4, 2, 16, 1)]
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_equals_each_sequence_alone_over_contiguous_keys(
    ops: Ops,
    shape: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    head_size: int,
    window: int | None,
    dtype: torch.dtype,
) -> None:
    case = make_case(shape, heads, kv_heads, head_size, dtype)
    plan = ops.plan_attention(case.batch, PAGE, dtype, window)
    out = ops.paged_attention(case.q, case.k_cache, case.v_cache, plan, head_size**-0.5)
    reference = torch.cat([expected(case, s, window) for s in range(len(shape))])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.double(), reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_soft_cap_stands_before_the_softmax(ops: Ops, dtype: torch.dtype) -> None:
    case = make_case(SHAPES["mixed"], 4, 4, 16, dtype)
    plan = ops.plan_attention(case.batch, PAGE, dtype, 20)
    out = ops.paged_attention(case.q, case.k_cache, case.v_cache, plan, 0.5, 1.5)
    for s, (keys, values) in enumerate(zip(case.keys, case.values, strict=True)):
        start, end = case.batch.row_starts[s : s + 2].tolist()
        distance = torch.arange(len(keys) - (end - start), len(keys)).unsqueeze(1) - torch.arange(len(keys))
        products = torch.einsum("thd,jhd->htj", case.q[start:end].double(), keys.double())
        scores = (1.5 * (0.5 * products / 1.5).tanh()).masked_fill((distance < 0) | (distance >= 20), -torch.inf)
        expected = torch.einsum("htj,jhd->thd", scores.softmax(dim=-1), values.double())
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(out[start:end].double(), expected, rtol=tolerance, atol=tolerance)


def test_nan_in_one_sequence_stays_there(ops: Ops) -> None:
    case = make_case(SHAPES["mixed"], 4, 2, 16, torch.float32)
    plan = ops.plan_attention(case.batch, PAGE, torch.float32)
    sound = ops.paged_attention(case.q, case.k_cache, case.v_cache, plan, 0.25)
    page, poisoned = int(case.batch.page_table[3, 0]), slice(7, 24)
    case.k_cache[page], case.v_cache[page] = torch.nan, torch.nan
    out = ops.paged_attention(case.q, case.k_cache, case.v_cache, plan, 0.25)
    assert out[poisoned].isnan().all()
    rest = [row for row in range(len(out)) if row not in range(*poisoned.indices(len(out)))]
    assert torch.equal(out[rest], sound[rest])


def test_a_sequence_is_the_same_in_every_batch(ops: Ops) -> None:
    if ops.name == "reference":
        pytest.skip("torch's products may round by the number of rows")
    case = make_case(SHAPES["mixed"], 4, 2, 16, torch.float32)
    plan = ops.plan_attention(case.batch, PAGE, torch.float32, 20)
    together = ops.paged_attention(case.q, case.k_cache, case.v_cache, plan, 0.25)
    for s in (1, 4):
        rows = slice(*case.batch.row_starts[s : s + 2].tolist())
        alone = AttentionBatch(
            torch.tensor([0, rows.stop - rows.start]),
            case.batch.context_lens[s : s + 1],
            case.batch.page_table[s : s + 1],
        )
        plan = ops.plan_attention(alone, PAGE, torch.float32, 20)
        assert torch.equal(ops.paged_attention(case.q[rows], case.k_cache, case.v_cache, plan, 0.25), together[rows])


def test_queries_may_be_slices_of_a_stacked_projection(ops: Ops) -> None:
    case = make_case(SHAPES["one chunk"], 4, 2, 16, torch.float32)
    plan = ops.plan_attention(case.batch, PAGE, torch.float32)
    expected = ops.paged_attention(case.q, case.k_cache, case.v_cache, plan, 0.25)
    sliced = torch.cat((torch.full_like(case.q, torch.nan), case.q, case.q), dim=1)[:, 4:8]
    assert torch.equal(ops.paged_attention(sliced, case.k_cache, case.v_cache, plan, 0.25), expected)


def test_a_step_decoded_equals_the_same_row_of_a_prompt(ops: Ops) -> None:
    case = make_case([(40, 40)], 4, 2, 16, torch.float32)
    table = case.batch.page_table
    whole = ops.paged_attention(
        case.q, case.k_cache, case.v_cache, ops.plan_attention(case.batch, PAGE, torch.float32), 0.25
    )
    last = AttentionBatch(torch.tensor([0, 1]), torch.tensor([40]), table)
    row = ops.paged_attention(
        case.q[-1:], case.k_cache, case.v_cache, ops.plan_attention(last, PAGE, torch.float32), 0.25
    )
    torch.testing.assert_close(row, whole[-1:])


def test_kv_append_writes_the_named_slots_alone(ops: Ops) -> None:
    k_cache, v_cache = torch.zeros(4, PAGE, 2, 8), torch.zeros(4, PAGE, 2, 8)
    _, k, v = torch.randn(3, 9, 8).split_with_sizes([5, 2, 2], dim=1)  # slices, as of a stacked projection
    ops.kv_append_(k, v, k_cache, v_cache, torch.tensor([63, 0, 17], dtype=torch.int32))
    for cache, rows in ((k_cache, k), (v_cache, v)):
        assert torch.equal(torch.stack((cache[3, 15], cache[0, 0], cache[1, 1])), rows)
        assert cache.count_nonzero() == rows.count_nonzero()


def test_a_device_refuses_what_it_cannot_read(ops: Ops) -> None:
    if ops.name == "reference":
        pytest.skip("the reference reads any tensor")
    plan = ops.plan_attention(
        AttentionBatch(torch.tensor([0, 1]), torch.tensor([1]), torch.zeros(1, 1)), PAGE, torch.float32
    )
    cache = torch.zeros(1, PAGE, 1, 16)
    with pytest.raises(ValueError, match="17 query heads share"):
        ops.paged_attention(torch.zeros(1, 17, 16), cache, cache, plan, 1.0)
    with pytest.raises(ValueError, match="of the queries' dtype"):
        ops.paged_attention(torch.zeros(1, 1, 16), cache.bfloat16(), cache.bfloat16(), plan, 1.0)
    with pytest.raises(ValueError, match="contiguous"):
        ops.kv_append_(torch.zeros(1, 1, 16), torch.zeros(1, 1, 16), *[cache.expand(2, -1, -1, -1)] * 2, torch.zeros(1))


def test_refuses_batches_that_do_not_fit(ops: Ops) -> None:
    def plan(starts: list[int], contexts: list[int], pages: int) -> None:
        table = torch.zeros(len(contexts), pages, dtype=torch.int32)
        ops.plan_attention(AttentionBatch(torch.tensor(starts), torch.tensor(contexts), table), PAGE, torch.float32)

    with pytest.raises(ValueError, match="rows a sequence"):
        plan([0, 5], [4], 1)  # more rows than context
    with pytest.raises(ValueError, match="rows a sequence"):
        plan([0, 0], [4], 1)  # no row
    with pytest.raises(ValueError, match="pages"):
        plan([0, 1], [17], 1)
