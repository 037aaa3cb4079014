"""Soft roundings: where they begin, what they can reach, and the codes that are left."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.numerics import code_bounds, decode_int, dynamic_grid, from_codes, grid, grouped, int_range, to_codes
from dither.spec import PER_TENSOR, Int
from dither.stages.soft_rounding import SoftRounding

FORMATS = [
    Int(4, False),
    Int(4),
    Int(3, False, 8),
    Int(2, True, 4),
    Int(4, True, PER_TENSOR),
    Int(8, False, PER_TENSOR),
    Int(1, False),
    Int(1),
]


def weight(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(seed))


def soft(w: torch.Tensor, fmt: Int, shrink: float = 1.0) -> SoftRounding:
    if shrink == 1.0:
        return SoftRounding(w, *dynamic_grid(w, fmt), fmt)
    lo, hi = int_range(w, fmt)
    return SoftRounding(w, *grid(lo * shrink, hi * shrink, fmt), fmt)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_it_begins_at_the_weight_itself(fmt):
    w = weight()
    made = soft(w, fmt)
    lo, hi = (made.value(torch.full(w.shape, c, dtype=made.nearest.dtype)) for c in code_bounds(fmt))
    want = w.clamp(lo, hi)  # symmetric grids reach further down than up, and one bit reaches to the mean
    torch.testing.assert_close(made.soft(made.choice()), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shrink", [1.0, 0.6])
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_the_first_codes_are_the_nearest_ones(fmt, shrink):
    w = weight()
    made = soft(w, fmt, shrink)
    want = to_codes(w, made.scale, made.zero, fmt)
    assert made.nearest.dtype == made.codes().dtype == want.dtype
    assert torch.equal(made.nearest, want)
    assert torch.equal(made.codes(), want)


@pytest.mark.parametrize("shrink", [1.0, 0.6])
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_made_choices_are_the_formula_by_hand_and_what_is_stored(fmt, shrink):
    """W^ = s (clip(floor(W / s) + h + z) - z) with h of 0 or 1; the stored tensors decode to it."""
    w = weight()
    made = soft(w, fmt, shrink)
    h = torch.randint(2, w.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made.alpha.copy_(torch.where(h > 0, 8.0, -8.0))
    z = torch.zeros(()) if made.zero is None else made.zero.float().unsqueeze(-1)
    if fmt == Int(1):
        want = torch.where(h > 0, made.scale, -made.scale).clamp(-made.scale, made.scale)
        outside = w.abs() > made.scale  # no choice: the nearer end
        want = torch.where(outside, made.scale * w.sign(), want)
    else:
        s = made.scale.unsqueeze(-1)
        codes = (grouped(w, fmt.group) / s).floor() + grouped(h, fmt.group) + z
        want = (s * (codes.clamp(*code_bounds(fmt)) - z)).flatten(-2)
    torch.testing.assert_close(made.soft(made.choice()).detach(), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made.value(made.codes()), want, atol=1e-5, rtol=1e-5)
    stored = made.stored()
    assert torch.equal(decode_int(stored, fmt, w.shape), from_codes(made.codes(), made.scale, made.zero, fmt))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(0, 1000), st.sampled_from([1.0, 0.5]))
def test_whatever_is_chosen_is_one_of_the_two_neighbours(fmt, seed, shrink):
    w = weight(seed)
    made = soft(w, fmt, shrink)
    with torch.no_grad():
        made.alpha.copy_(torch.randn(w.shape, generator=torch.Generator().manual_seed(seed)) * 9)
    assert (made.codes().int() - made.nearest.int()).abs().max() <= 1
    lo, hi = code_bounds(fmt)
    assert lo <= made.codes().min() <= made.codes().max() <= hi
    ends = made.low, made.low + made.step
    now = made.soft(made.choice())
    assert bool(((now >= ends[0] - 1e-6) & (now <= ends[1] + 1e-6)).all())


def test_a_gradient_moves_a_choice_until_it_is_made():
    made = soft(weight(), Int(4, False))
    made.soft(made.choice()).sum().backward()
    slope = made.alpha.grad
    want = (made.step * 1.2 * torch.sigmoid(made.alpha) * (1 - torch.sigmoid(made.alpha))).detach()
    torch.testing.assert_close(slope, want)
    made.settle(made.nearest)
    assert set(made.choice().round(decimals=5).unique().tolist()) <= {0.0, 1.0}
    made.alpha.grad = None
    with torch.no_grad():
        made.alpha.mul_(2)
    made.soft(made.choice()).sum().backward()
    assert made.alpha.grad.abs().max() == 0


def test_codes_can_be_gone_back_to():
    made = soft(weight(), Int(4, False))
    other = made.codes()
    with torch.no_grad():
        made.alpha.neg_()
    turned = made.codes()
    assert not torch.equal(turned, other)
    made.settle(other)
    assert torch.equal(made.codes(), other)
    torch.testing.assert_close(made.soft(made.choice()).detach(), made.value(other), atol=1e-5, rtol=1e-5)


def test_a_row_of_zeros_stays_zero():
    w = weight()
    w[2] = 0
    made = soft(w, Int(4, False))
    with torch.no_grad():
        made.alpha.add_(5)
    assert made.soft(made.choice())[2].abs().max() == 0
    assert made.value(made.codes())[2].abs().max() == 0
    assert torch.isfinite(made.alpha).all()
