"""The norms, activations, rope_ and linear against their equations in float64."""

import pytest
import torch
import torch.nn.functional as F

from openlora.kernels.ops import Ops

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
ROWS = pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 33, 133])


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@DTYPES
@ROWS
def test_rms_norm(ops: Ops, rows: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(rows, 96).to(dtype), torch.randn(96).to(dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() * weight.double()
    close(ops.rms_norm(x, weight, 1e-5), expected)


@DTYPES
@ROWS
def test_silu_mul(ops: Ops, rows: int, dtype: torch.dtype) -> None:
    gate_up = torch.randn(rows, 2 * 96).to(dtype)
    gate, up = gate_up.double().split(96, dim=1)
    close(ops.silu_mul(gate_up), gate / (1 + (-gate).exp()) * up)


@DTYPES
@ROWS
def test_layer_norm(ops: Ops, rows: int, dtype: torch.dtype) -> None:
    x, weight, bias = (1 + torch.randn(*shape).to(dtype) for shape in ((rows, 96), (96,), (96,)))
    wide = x.double() - x.double().mean(dim=1, keepdim=True)
    expected = wide / (wide.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() * weight.double() + bias.double()
    close(ops.layer_norm(x, weight, bias, 1e-5), expected)


@DTYPES
def test_gelu_and_its_approximation(ops: Ops, dtype: torch.dtype) -> None:
    x = (3 * torch.randn(7, 96)).to(dtype)
    wide, up = x.double(), torch.randn(7, 96).to(dtype)
    close(ops.gelu(x), wide * (1 + (wide / 2**0.5).erf()) / 2)
    tanh = ((2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)).tanh()
    close(ops.gelu_tanh_mul(torch.cat((x, up), dim=1)), wide / 2 * (1 + tanh) * up.double())


@DTYPES
def test_soft_cap(ops: Ops, dtype: torch.dtype) -> None:
    x = (20 * torch.randn(7, 96)).to(dtype)
    close(ops.soft_cap(x, 6.0), 6 * (x.double() / 6).tanh())


@DTYPES
@ROWS
def test_rope_turns_each_pair_by_its_angle(ops: Ops, rows: int, dtype: torch.dtype) -> None:
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64)
    angles = torch.outer(torch.arange(500, dtype=torch.float64), frequencies)
    table = torch.cat((angles.cos(), angles.sin()), dim=1).float()
    positions = torch.arange(rows, dtype=torch.int32) * 3
    q, k = torch.randn(rows, 5, 8).to(dtype), torch.randn(rows, 2, 8).to(dtype)
    turned = [
        torch.view_as_real(
            torch.complex(*x.double().chunk(2, dim=2)) * torch.exp(1j * angles[positions.long()]).unsqueeze(1)
        )
        for x in (q, k)
    ]
    ops.rope_(q, k, positions, table)
    for found, expected in zip((q, k), turned, strict=True):
        close(found, expected.transpose(2, 3).flatten(2))


def test_rope_writes_into_slices_of_a_stacked_projection(ops: Ops) -> None:
    qkv = torch.randn(4, 7, 8)
    before = qkv.clone()
    q, k, v = qkv.split_with_sizes([4, 2, 1], dim=1)
    ops.rope_(q, k, torch.arange(4, dtype=torch.int32), torch.randn(9, 8))
    assert torch.equal(v, before[:, 6:])
    assert not torch.equal(qkv[1:, :6], before[1:, :6])


@DTYPES
@ROWS
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_linear(ops: Ops, rows: int, dtype: torch.dtype, biased: bool, wide: bool) -> None:
    x, weight = torch.randn(rows, 24).to(dtype), (torch.randn(5000, 24) / 5).to(dtype)
    bias = torch.randn(5000).to(dtype) if biased else None
    found = ops.linear(x, weight, bias, torch.float32 if wide else None)
    assert found.dtype == (torch.float32 if wide else dtype)
    close(found, F.linear(x.double(), weight.double(), None if bias is None else bias.double()))


def test_refuses_shapes_that_do_not_fit(ops: Ops) -> None:
    x = torch.randn(2, 8)
    with pytest.raises(ValueError, match="rms_norm"):
        ops.rms_norm(x, torch.ones(7), 1e-5)
    with pytest.raises(ValueError, match="linear"):
        ops.linear(x, torch.ones(3, 7))
    with pytest.raises(ValueError, match="linear"):
        ops.linear(x, torch.ones(3, 8).bfloat16())
    with pytest.raises(ValueError, match="silu_mul"):
        ops.silu_mul(torch.ones(2, 7))
    with pytest.raises(ValueError, match="layer_norm"):
        ops.layer_norm(x, torch.ones(8), torch.ones(7), 1e-5)
    with pytest.raises(ValueError, match="gelu_tanh_mul"):
        ops.gelu_tanh_mul(torch.ones(2, 7))
    with pytest.raises(ValueError, match="soft_cap"):
        ops.soft_cap(x, 0.0)
    with pytest.raises(ValueError, match="rope"):
        ops.rope_(torch.ones(2, 1, 8), torch.ones(2, 1, 8), torch.zeros(2), torch.ones(5, 6))
    with pytest.raises(ValueError, match="kv_append"):
        ops.kv_append_(torch.ones(2, 1, 8), torch.ones(2, 1, 8), *[torch.ones(1, 16, 1, 4)] * 2, torch.zeros(2))
