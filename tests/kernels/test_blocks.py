"""Kernels that work in blocks give what they give at once: inputs and weights larger than a block."""

import pytest
import torch
from torch import nn

from dither.kernels import int8, named, reference
from dither.nn import Clock, QLinear
from dither.numerics import dynamic_grid, encode
from dither.spec import PER_TENSOR, Act, Float8, Int, LinearSpec, Nested

GRIDS = [Int(8), Int(8, False), Int(4, False), Int(8, False, PER_TENSOR)]


def layer_of(spec, shape=(24, 48)):
    torch.manual_seed(0)
    n, k = shape
    layer = QLinear(spec, k, n, nn.Parameter(torch.randn(n)), Clock())
    tensors = {f"weight_{name}": t for name, t in encode(torch.randn(n, k), spec.weight).items()}
    if spec.act is not None and spec.act.static:
        scale, zero = dynamic_grid(torch.randn(1, k), spec.act.grid)
        tensors["act_scale"] = scale.reshape(1, 1)
        if zero is not None:
            tensors["act_zero"] = zero.reshape(1, 1)
    return layer.load(tensors)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    "weight",
    [Int(8), Int(8, False), Int(4), Int(4, False), Int(3), Nested(Int(8, False), 3), Nested(Int(4), 2)],
    ids=str,
)
def test_int8_mm_in_blocks_is_int8_mm_at_once(weight, grid, static, monkeypatch):
    layer = layer_of(LinearSpec(weight, Act(grid, static=static)))
    layer.kernel = named("int8_mm")
    x = torch.randn(5, 9, 48).bfloat16()
    want = layer(x)
    monkeypatch.setattr(int8, "_BLOCK", 11)  # the last block has one row
    monkeypatch.setattr(int8, "_ELEMENTS", 1)
    assert torch.equal(layer(x), want)


@pytest.mark.parametrize(
    "weight",
    [Int(8), Int(4, False, 8), Int(3, True, PER_TENSOR), Nested(Int(6, False, 8), 3), Float8(), Float8(PER_TENSOR)],
    ids=str,
)
def test_weight_only_in_parts_is_weight_only_at_once(weight, monkeypatch):
    layer = layer_of(LinearSpec(weight))
    x = torch.randn(3, 5, 48)
    layer.kernel = named("dequantize")
    want = layer(x)
    monkeypatch.setattr(reference, "_CACHED", 7 * 48)
    torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight", [Int(4), Int(4, False)], ids=str)
def test_codes_in_halves_are_the_codes_by_column(weight):
    layer = layer_of(LinearSpec(weight, Act(Int(8))))
    codes = int8._weight_codes(layer.spec, layer.shape, layer.stored())
    whole = int8.unpack_int(layer.stored(), weight, 48)
    assert torch.equal(codes, torch.cat((whole[:, ::2], whole[:, 1::2]), 1).view(torch.int8))
