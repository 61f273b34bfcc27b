"""Weights of fewer bits: how they are made, stacked and widened again."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from openlora.kernels.types import CodedWeight, Int4Weight, Int8Weight, Weight

INT8_MOST = 127
INT4_MOST = 15
INT4_GROUP = 32
_HALF = 32  # inputs in either half of Int4Weight's bytes
_ROWS = 4_096  # of a weight that are widened at a time: a vocabulary's would need gigabytes


def quantise_int8(weight: Tensor) -> Int8Weight:
    """Round a weight [out, in] to int8 under one scale a row, which puts its largest size at 127; ties to even."""
    parts = [_int8_rows(rows.float()) for rows in torch.split(weight, _ROWS)]
    return Int8Weight(torch.cat([codes for codes, _ in parts]), torch.cat([scale for _, scale in parts]))


def _int8_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = rows.abs().amax(dim=1) / INT8_MOST
    codes = (rows / _divisor(scale).unsqueeze(1)).round()
    return codes.to(torch.int8), scale


def quantise_int4(weight: Tensor, group: int = INT4_GROUP) -> CodedWeight:
    """Round a weight [out, in] to 4 bits under a float16 scale and minimum for every `group` inputs. The codes 0 to 15
    are evenly spaced from a group's least number to its largest, ties to even; the scale and the minimum are then those
    whose numbers have the least squared distance from the group's."""
    parts = [_int4_rows(rows.float(), group) for rows in torch.split(weight, _ROWS)]
    codes, scales, minima = (torch.cat(some) for some in zip(*parts, strict=True))
    return CodedWeight(codes, scales, minima, bits=4, group=group)


def _int4_rows(rows: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    inputs = rows.shape[1]
    filled = torch.cat((rows, rows[:, -1:].expand(-1, -inputs % group)), dim=1)
    groups = filled.view(len(rows), -1, group)
    least, largest = groups.aminmax(dim=2, keepdim=True)
    codes = ((groups - least) / _divisor((largest - least) / INT4_MOST)).round()
    mean, offsets = codes.mean(dim=2, keepdim=True), groups.mean(dim=2, keepdim=True)
    away = codes - mean
    scales = ((away * groups).sum(dim=2, keepdim=True) / _divisor((away * away).sum(dim=2, keepdim=True))).half()
    minima = (offsets - scales.float() * mean).half()
    return codes.view(len(rows), -1)[:, :inputs].to(torch.int8), scales.squeeze(2), minima.squeeze(2)


def _divisor(scale: Tensor) -> Tensor:
    """Of numbers that are all alike, codes are zero, and so is their scale."""
    return torch.where(scale == 0, 1.0, scale)


def dequantise(weight: Weight) -> Tensor:
    """The numbers that a weight stands for, [out, in]; float32 unless they are a tensor already."""
    match weight:
        case Int8Weight(codes, scale):
            return codes * scale.unsqueeze(1)
        case CodedWeight(codes, scales, minima, _, group):
            wide = _spread(scales, group, codes.shape[1]).mul_(codes)
            return wide if minima is None else wide.add_(_spread(minima, group, codes.shape[1]))
        case Int4Weight():
            return dequantise(unpack_int4(weight))
    return weight


def _spread(numbers: Tensor, group: int, inputs: int) -> Tensor:
    return numbers.float().repeat_interleave(group, dim=1)[:, :inputs]


def pack_int4(weight: CodedWeight) -> Int4Weight:
    """The same weight, two codes a byte. Raises ValueError if it has more than 4 bits."""
    if weight.bits != 4:
        raise ValueError(f"codes of {weight.bits} bits do not fit half a byte")
    inputs = weight.codes.shape[1]
    padded = torch.nn.functional.pad(weight.codes, (0, -inputs % (2 * _HALF)))
    low, high = (padded & 15).to(torch.uint8).view(len(padded), -1, 2, _HALF).unbind(2)
    return Int4Weight((low | high << 4).flatten(1), weight.scales, weight.minima, inputs, weight.group)


def unpack_int4(weight: Int4Weight) -> CodedWeight:
    halves = weight.codes.view(len(weight.codes), -1, 1, _HALF)
    codes = torch.cat((halves & 15, halves >> 4), dim=2).flatten(1)[:, : weight.inputs].to(torch.int8)
    signed = codes if weight.minima is not None else codes - (codes > 7).to(torch.int8) * 16
    return CodedWeight(signed, weight.scales, weight.minima, bits=4, group=weight.group)


def rows_of(weight: Weight, rows: slice) -> Weight:
    """Some rows of a weight, in its own memory."""
    match weight:
        case Int8Weight(codes, scale):
            return Int8Weight(codes[rows], scale[rows])
        case CodedWeight(codes, scales, minima, bits, group):
            return CodedWeight(codes[rows], scales[rows], None if minima is None else minima[rows], bits, group)
        case Int4Weight(codes, scales, minima, inputs, group):
            return Int4Weight(codes[rows], scales[rows], None if minima is None else minima[rows], inputs, group)
    return weight[rows]


def to_device(weight: Weight, device: torch.device) -> Weight:
    """The same weight in a device's memory."""
    match weight:
        case Tensor():
            return weight.to(device)
        case Int8Weight(codes, scale):
            return Int8Weight(codes.to(device), scale.to(device))
    minima = None if weight.minima is None else weight.minima.to(device)
    return replace(weight, codes=weight.codes.to(device), scales=weight.scales.to(device), minima=minima)


def stack(weights: Sequence[Weight]) -> Weight:
    """One weight of all rows in turn. Coded ones that differ in form take a form that holds them all, their numbers
    unchanged; what is dense or int8 must be so throughout."""
    if all(isinstance(one, Tensor) for one in weights):
        return torch.cat([one for one in weights if isinstance(one, Tensor)])
    if all(isinstance(one, Int8Weight) for one in weights):
        int8 = [one for one in weights if isinstance(one, Int8Weight)]
        return Int8Weight(torch.cat([one.codes for one in int8]), torch.cat([one.scale for one in int8]))
    coded = [one for one in weights if isinstance(one, CodedWeight)]
    if len(coded) < len(weights):
        raise ValueError("weights of different kinds have no common form")
    return _stack_coded(coded)


def _stack_coded(weights: Sequence[CodedWeight]) -> CodedWeight:
    group = min(one.group for one in weights)
    if any(one.group % group for one in weights):
        raise ValueError(f"groups of {sorted({one.group for one in weights})} inputs have no common form")
    signed = {one.minima is None for one in weights}
    dtype = torch.float16 if all(one.scales.dtype == torch.float16 for one in weights) else torch.float32

    def spread(one: CodedWeight, numbers: Tensor) -> Tensor:
        groups = -(-one.codes.shape[1] // group)
        return numbers.to(dtype).repeat_interleave(one.group // group, dim=1)[:, :groups]

    minima = [spread(one, torch.zeros_like(one.scales) if one.minima is None else one.minima) for one in weights]
    return CodedWeight(
        torch.cat([one.codes for one in weights]),
        torch.cat([spread(one, one.scales) for one in weights]),
        None if signed == {True} else torch.cat(minima),
        bits=4 if {one.bits for one in weights} == {4} and len(signed) == 1 else 8,
        group=group,
    )
