"""Our calls of FlashInfer, against its wheel's signatures and against what its documentation says they mean.

FlashInfer itself needs a GPU. Its stand-in takes exactly the arguments that the wheel's wrappers take, and computes
with them what they are documented to mean.
"""

import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openlora.kernels import flashinfer
from openlora.kernels.ops import BACKENDS, Backend, Ops
from tests.kernels.test_attention import PAGE, SHAPES, expected, make_case

SIGNATURES = Path(__file__).with_name("flashinfer_signatures.json")
CPU = torch.device("cpu")


def bind(wrapper: str, method: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """As the wheel's method would take them. Raises TypeError where it would."""
    parameters = json.loads(SIGNATURES.read_text())["wrappers"][wrapper][method]
    return inspect.signature(eval(f"lambda {parameters}: None")).bind(*args, **kwargs).arguments


class Wrapper:
    """Both wrappers: they differ in whether the queries' starts are given, or are one a sequence."""

    name = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        made = bind(self.name, "__init__", *args, **kwargs)
        workspace = made["float_workspace_buffer"]
        assert (made["kv_layout"], workspace.dtype, workspace.nbytes) == ("NHD", torch.uint8, 128 << 20)
        self.plans = 0

    def plan(self, *args: Any, **kwargs: Any) -> None:
        self.planned = bind(self.name, "plan", *args, **kwargs)
        self.plans += 1

    def run(self, *args: Any, **kwargs: Any) -> Tensor:
        given = bind(self.name, "run", *args, **kwargs)
        q, (k_cache, v_cache) = given["q"], given["paged_kv_cache"]
        assert q.is_contiguous()
        p = self.planned
        assert (p["num_qo_heads"], p["num_kv_heads"]) == (q.shape[1], k_cache.shape[2])
        assert p["q_data_type"] == q.dtype == k_cache.dtype
        indptr, indices, last, starts = self.table()
        rows = []
        for s in range(len(last)):
            pages = indices[indptr[s] : indptr[s + 1]].long()
            length = (len(pages) - 1) * p["page_size"] + int(last[s])
            k, v = (cache[pages].flatten(0, 1)[:length].double() for cache in (k_cache, v_cache))
            rows.append(self.attend(q[starts[s] : starts[s + 1]].double(), k, v))
        return torch.cat(rows).to(q.dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        p, group = self.planned, q.shape[1] // k.shape[1]
        scores = p["sm_scale"] * torch.einsum("thd,jhd->htj", q, k.repeat_interleave(group, dim=1))
        if p["logits_soft_cap"]:
            scores = p["logits_soft_cap"] * (scores / p["logits_soft_cap"]).tanh()
        distance = torch.arange(len(k) - len(q), len(k)).unsqueeze(1) - torch.arange(len(k))
        hidden = distance < 0 if p.get("causal", len(q) == 1) else torch.zeros_like(distance, dtype=torch.bool)
        if p["window_left"] >= 0:
            hidden |= distance > p["window_left"]
        weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        return torch.einsum("htj,jhd->thd", weights, v.repeat_interleave(group, dim=1))


class Prefill(Wrapper):
    name = "BatchPrefillWithPagedKVCacheWrapper"

    def table(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        p = self.planned
        assert p["causal"] is True
        return p["paged_kv_indptr"], p["paged_kv_indices"], p["paged_kv_last_page_len"], p["qo_indptr"]


class Decode(Wrapper):
    name = "BatchDecodeWithPagedKVCacheWrapper"

    def table(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        p = self.planned
        return p["indptr"], p["indices"], p["last_page_len"], torch.arange(len(p["last_page_len"]) + 1)


class Library:
    """As the module has them."""

    def __init__(self) -> None:
        self.made: list[Wrapper] = []

    def BatchPrefillWithPagedKVCacheWrapper(self, *args: Any, **kwargs: Any) -> Wrapper:
        self.made.append(Prefill(*args, **kwargs))
        return self.made[-1]

    def BatchDecodeWithPagedKVCacheWrapper(self, *args: Any, **kwargs: Any) -> Wrapper:
        self.made.append(Decode(*args, **kwargs))
        return self.made[-1]


@pytest.fixture
def library() -> Library:
    return Library()


def backend(library: Library) -> Backend:
    return flashinfer.joined(BACKENDS["reference"], CPU, library)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "window", "soft_cap"),
    [(9, 3, None, None), (4, 4, 20, None), (8, 1, 1, None), (4, 2, 20, 1.5)],
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_what_is_planned_means_what_the_op_means(
    library: Library,
    shape: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    window: int | None,
    soft_cap: float | None,
) -> None:
    case = make_case(shape, heads, kv_heads, 64, torch.bfloat16)
    ops, reference = Ops(backend(library)), Ops(BACKENDS["reference"])
    assert ops.name == "reference+flashinfer"
    plan = ops.plan_attention(case.batch, PAGE, torch.bfloat16, window)
    found = ops.paged_attention(case.q, case.k_cache, case.v_cache, plan, 0.125, soft_cap)
    if soft_cap is None:
        oracle = torch.cat([expected(case, s, window) for s in range(len(shape))])
    else:
        plain = reference.plan_attention(case.batch, PAGE, torch.bfloat16, window)
        oracle = reference.paged_attention(case.q, case.k_cache, case.v_cache, plain, 0.125, soft_cap).double()
    torch.testing.assert_close(found.double(), oracle, rtol=2e-2, atol=2e-2)
    assert isinstance(library.made[0], Decode if all(rows == 1 for rows, _ in shape) else Prefill)


def test_a_step_is_planned_once_and_wrappers_are_used_again(library: Library) -> None:
    ops = Ops(backend(library))
    for _ in range(3):
        case = make_case(SHAPES["7 decodes"], 4, 2, 64, torch.bfloat16)
        plan = ops.plan_attention(case.batch, PAGE, torch.bfloat16)
        layers = [ops.paged_attention(case.q, case.k_cache, case.v_cache, plan, 0.125) for _ in range(4)]
        assert all(torch.equal(layer, layers[0]) for layer in layers)
    assert [wrapper.plans for wrapper in library.made] == [3]


@pytest.mark.parametrize(("head_size", "dtype"), [(64, torch.float32), (16, torch.bfloat16), (96, torch.bfloat16)])
def test_the_other_backend_serves_what_flashinfer_has_no_kernels_for(
    library: Library, head_size: int, dtype: torch.dtype
) -> None:
    case = make_case(SHAPES["mixed"], 4, 2, head_size, dtype)
    found = []
    for ops in (Ops(backend(library)), Ops(BACKENDS["reference"])):
        plan = ops.plan_attention(case.batch, PAGE, dtype, 20)
        found.append(ops.paged_attention(case.q, case.k_cache, case.v_cache, plan, 0.25))
    assert torch.equal(*found)
    assert not library.made


def test_without_flashinfer_a_backend_stays_as_it_is() -> None:
    if importlib.util.find_spec("flashinfer") is not None:
        pytest.skip("FlashInfer is installed")
    assert flashinfer.with_flashinfer(BACKENDS["reference"], CPU) is BACKENDS["reference"]


@pytest.mark.parametrize("wrapper", [Prefill.name, Decode.name])
def test_the_binding_refuses_what_the_wheel_would(wrapper: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword"):
        bind(wrapper, "plan", *range(8 if wrapper == Prefill.name else 7), scale=1.0)
    with pytest.raises(TypeError, match="missing"):
        bind(wrapper, "run", torch.zeros(1))
