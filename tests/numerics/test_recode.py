"""New codes under old scales: the nearest ones, or for trellises at least nearer ones."""

import pytest
import torch
from torch import Tensor

from dither.numerics import decode, encode, recode
from dither.spec import PER_TENSOR, Codebook, Float8, Gaussian, Int, Nested, Trellis

NEAREST = [
    Int(1),
    Int(2),
    Int(4, False, 8),
    Int(8, group=PER_TENSOR),
    Float8(),
    Float8(group=8),
    Codebook(4, 32),
    Codebook(2, 16, row_scale=True),
    Gaussian(4, 256),
    Gaussian(2, 64),
]
TRELLISES = [
    Trellis(1, 8, 4, 8),
    Trellis(2, 10, 8, 8),
    Trellis(3, 9, 1, 16),
    Trellis(4, 12, 4, 4),
    Trellis(3, 7, 1, 1 * 4),
]
SHAPE = (16, 48)


def gauss(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def loss(tensors, fmt, w) -> float:
    scale = tensors["scale"].float() if isinstance(fmt, Trellis) else torch.ones(1)
    return float(((decode(tensors, fmt, SHAPE) - w) / scale).square().sum())


@pytest.mark.parametrize("fmt", [*NEAREST, *TRELLISES, Nested(Int(8), 4)], ids=str)
def test_what_codes_stand_for_has_those_codes(fmt):
    tensors = encode(gauss(0), fmt)
    again = recode(decode(tensors, fmt, SHAPE), tensors, fmt)
    assert set(again) == set(tensors)
    assert all(torch.equal(again[k], tensors[k]) for k in tensors if k != "codes")
    assert torch.equal(decode(again, fmt, SHAPE), decode(tensors, fmt, SHAPE))


@pytest.mark.parametrize("fmt", NEAREST, ids=str)
def test_no_other_codes_are_nearer(fmt):
    tensors, other = encode(gauss(0), fmt), gauss(1)
    found = decode(recode(other, tensors, fmt), fmt, SHAPE)
    stayed = decode(tensors, fmt, SHAPE)
    width = getattr(fmt, "dim", 1)
    worse = (found - other).reshape(-1, width).norm(dim=1) > (stayed - other).reshape(-1, width).norm(dim=1) + 1e-5
    assert not worse.any()
    assert (found != stayed).any()


@pytest.mark.parametrize("fmt", TRELLISES, ids=str)
def test_paths_come_nearer(fmt):
    w = gauss(0)
    tensors = encode(w, fmt)
    other = w + gauss(1) / 2
    once = recode(other, tensors, fmt)
    assert loss(once, fmt, other) < loss(tensors, fmt, other)
    assert loss(recode(other, once, fmt), fmt, other) <= loss(once, fmt, other)
