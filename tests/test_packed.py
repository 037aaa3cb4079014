"""The decoded copy of a packed weight can be read like any tensor, and written in no way."""

import pytest
import tiny
import torch
from torch import nn

from dither.errors import Refused
from dither.nn import QLinear, build
from dither.numerics import decode
from dither.packed import PackedWeight


@pytest.fixture
def layer() -> QLinear:
    dense = nn.Linear(16, 24)
    made = build(tiny.W4, dense)
    assert isinstance(made, QLinear)
    tiny.fill(made, dense.weight, 0)
    return made


def test_it_is_the_decoded_weight_in_the_dtype_of_the_bias(layer):
    assert isinstance(layer.weight, PackedWeight)
    assert torch.equal(layer.weight, decode(layer.stored(), tiny.W4.weight, (24, 16)))
    assert layer.bfloat16().weight.dtype == torch.bfloat16
    assert (tuple(layer.weight.shape), layer.weight.device.type) == ((24, 16), "cpu")


def test_reading_gives_ordinary_tensors(layer):
    w = layer.weight
    for read in (w + 1, w.clone(), w.T, w[:2], w.detach(), w.to(torch.float64), torch.cat([w, w])):
        assert type(read) is torch.Tensor
    w.clone().add_(1)
    torch.add(w, 1, out=torch.empty(24, 16))


WRITES = {
    "data": lambda w: w.data,
    "data =": lambda w: setattr(w, "data", torch.zeros(24, 16)),
    "data +=": lambda w: exec("w.data += 1"),
    "copy_": lambda w: w.copy_(torch.zeros(24, 16)),
    "add_": lambda w: w.add_(1),
    "+=": lambda w: w.__iadd__(1),
    "setitem": lambda w: w.__setitem__(0, 0.0),
    "init": nn.init.zeros_,
    "xavier": nn.init.xavier_uniform_,
    "out": lambda w: torch.add(torch.ones(24, 16), 1, out=w),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writing_is_refused(layer, write):
    before = layer.dequantized()
    with torch.no_grad(), pytest.raises(Refused, match="packed"):
        write(layer.weight)
    assert torch.equal(layer.dequantized(), before)


def test_nothing_else_can_take_its_place(layer):
    with pytest.raises(Refused, match="packed"):
        layer.reset_parameters()
    with pytest.raises((AttributeError, KeyError)):
        layer.weight = nn.Parameter(torch.zeros(24, 16))


def test_reading_it_compiles(layer):
    def reads(x: torch.Tensor) -> torch.Tensor:
        return layer(x.to(layer.weight.dtype)) + layer.weight.sum()

    x = torch.randn(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(reads, fullgraph=True, backend="eager")(x), reads(x))
