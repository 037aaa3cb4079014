"""Straight through any format: what it begins at, its gradients, when codes move, and what is stored of it."""

import pytest
import torch
from torch import Tensor

from dither.numerics import decode, encode
from dither.spec import PER_TENSOR, Codebook, Gaussian, Int, Trellis
from dither.stages.straight import Straight

FORMATS = [
    Int(3),
    Int(2, False, 8),
    Int(4, group=PER_TENSOR),
    Codebook(4, 16),
    Codebook(2, 16, row_scale=True),
    Gaussian(4, 256),
    Trellis(2, 8, 4, 4),
]
SHAPE = (8, 16)


def weight(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def straight(fmt, trust: float = 10.0) -> Straight:
    return Straight(fmt, encode(weight(), fmt), SHAPE, trust)


def parameters(made: Straight) -> list[Tensor]:
    return [p for p in (made.moved, made.log, made.words) if p is not None]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_it_begins_at_what_is_stored_and_refreshing_changes_nothing(fmt):
    tensors = encode(weight(), fmt)
    made = Straight(fmt, tensors, SHAPE, 1.0)
    assert torch.equal(made.value().detach(), decode(tensors, fmt, SHAPE))
    made.refresh()
    assert all(torch.equal(made.stored()[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_gradients_pass_straight_through_the_rounding(fmt):
    made, cost = straight(fmt), weight(1)
    (made.value() * cost).sum().backward()
    torch.testing.assert_close(made.moved.grad, cost * made.unit)
    w = made.value().detach()
    if made.log is not None:
        rows, groups = made.log.shape
        per_row = (w * cost).view(SHAPE[0], groups, -1).sum(2)
        torch.testing.assert_close(made.log.grad, per_row.sum(0, keepdim=True) if rows == 1 else per_row)
    if made.words is not None:
        assert made.words.grad.abs().max() > 0


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_training_comes_nearer_and_what_is_stored_is_what_computed(fmt):
    """Towards another weight that is not far; trellises by their scales alone, where single changes seldom help."""
    made, target = straight(fmt, 0.3), 1.3 * weight() + weight(2) / 5
    before = float((made.value() - target).square().mean().detach())
    chosen = [p for p in parameters(made) if not isinstance(fmt, Trellis) or p is made.log]
    optimizer = torch.optim.Adam(chosen, lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (made.value() - target).square().mean().backward()
        optimizer.step()
        made.refresh()
    after = float((made.value() - target).square().mean().detach())
    assert after < 0.8 * before
    stored = made.stored()
    assert {k: (t.shape, t.dtype) for k, t in stored.items()} == {
        k: (t.shape, t.dtype) for k, t in encode(weight(), fmt).items()
    }
    torch.testing.assert_close(
        decode(stored, fmt, SHAPE), made.value().detach(), rtol=1e-2, atol=1e-4
    )  # bfloat16 scales


def test_the_trust_region_holds_weights():
    made = straight(Int(3), trust=0.25)
    with torch.no_grad():
        made.moved.add_(5)
    made.refresh()
    assert float(made.moved.detach().abs().max()) == 0.25
    far = (made.stored()["scale"] * 4).squeeze()  # codes reach no farther than the region and half a step
    moved = (decode(made.stored(), Int(3), SHAPE) - made.start).abs().amax(1)
    assert (moved <= 0.25 * made.unit.squeeze() + far / 8 + 1e-6).all()


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_state_brings_it_back(fmt):
    made, other = straight(fmt), straight(fmt)
    with torch.no_grad():
        for parameter in parameters(made):
            parameter.add_(0.3)
    made.refresh()
    other.load({key: tensor.detach().clone() for key, tensor in made.state().items()})
    assert torch.equal(other.value(), made.value())
    made.refresh()
    other.refresh()
    assert all(torch.equal(other.stored()[k], t) for k, t in made.stored().items())
