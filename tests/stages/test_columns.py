"""Column-by-column rounding: against its definition, with groups, orders and Hessians of every kind."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.errors import BadValue
from dither.numerics import decode, dynamic_grid, encode, from_codes, to_codes
from dither.spec import PER_TENSOR, Int
from dither.stages.columns import factor, round_columns


def full(w, fmt, diagonal):
    return dynamic_grid(w, fmt)


def made(w, h, fmt, block=128, order=False, damp=0.01, rows=10**6):
    return round_columns(w, h, fmt, partial(factor, damp=damp, rows=rows), full, block, order)


def values(found, fmt):
    return from_codes(found.codes, found.scale, found.zero, fmt)


def hessian(k: int, rows: int = 200, seed: int = 0):
    make = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, k, generator=make) * torch.rand(k, generator=make).mul(3).exp()
    x = torch.randn(rows, k, generator=make) @ mix
    return x.T @ x / rows


def weight(n: int, k: int, seed: int = 1):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def objective(w, v, h):
    return float(((w - v) @ h * (w - v)).sum())


def by_definition(w, h, fmt, damp=0.01):
    """The algorithm one column and one explicit inverse at a time, with fresh group ranges: slow, and nothing clever."""
    w, k = w.double().clone(), w.shape[1]
    width = fmt.group or k
    h = h.double() + damp * h.double().diagonal().mean() * torch.eye(k, dtype=torch.float64)
    out, grid = torch.empty_like(w), None
    for j in range(k):
        if j % width == 0:
            grid = dynamic_grid(w[:, j : j + width].float(), Int(fmt.bits, fmt.symmetric))
        one = Int(fmt.bits, fmt.symmetric)
        out[:, j : j + 1] = from_codes(to_codes(w[:, j : j + 1].float(), *grid, one), *grid, one).double()
        inverse = torch.linalg.inv(h[j:, j:])  # of the columns that are still free
        w[:, j:] -= ((w[:, j] - out[:, j]) / inverse[0, 0])[:, None] * inverse[0]
    return out.float()


@pytest.mark.parametrize("fmt", [Int(4), Int(3, False), Int(4, False, 8), Int(2, True, 4), Int(8, False, 12)], ids=str)
@pytest.mark.parametrize("block", [1, 5, 8, 128])
def test_it_is_what_the_definition_gives(fmt, block):
    w, h = weight(6, 24), hessian(24)
    found, _ = made(w, h, fmt, block)
    same = (values(found, fmt) - by_definition(w, h, fmt)).abs() < 1e-4
    assert same.float().mean() > 0.98  # a tie may fall to the other side in float32


@pytest.mark.parametrize("fmt", [Int(4), Int(4, False, 8), Int(3, False, 4), Int(4, True, PER_TENSOR)], ids=str)
@pytest.mark.parametrize("order", [False, True])
def test_correlated_inputs_lose_less_than_by_rounding(fmt, order):
    w, h = weight(16, 32), hessian(32)
    found, _ = made(w, h, fmt, order=order)
    plain = decode(encode(w, fmt), fmt, (16, 32))
    assert objective(w, values(found, fmt), h) < 0.7 * objective(w, plain, h)


@pytest.mark.parametrize("order", [False, True])
def test_uncorrelated_inputs_are_rounded_to_nearest(order):
    w, fmt = weight(4, 16), Int(4, False, 4)
    found, _ = made(w, torch.diag(torch.arange(1.0, 17.0)), fmt, order=order)
    plain = encode(w, fmt)
    assert torch.equal(found.scale, plain["scale"])
    assert torch.equal(found.zero, plain["zero"])
    assert torch.equal(values(found, fmt), decode(plain, fmt, (4, 16)))


def test_the_error_is_the_damped_objective():
    w, h, fmt = weight(5, 16), hessian(16), Int(3, False, 8)
    found, used = made(w, h, fmt)
    damped = h + used.damp * h.diagonal().mean() * torch.eye(16)
    assert found.error == pytest.approx(objective(w, values(found, fmt), damped), rel=1e-3)


def test_order_of_activation_begins_with_the_largest_and_keeps_groups_together():
    w, fmt = weight(8, 16), Int(2, False, 4)
    h = hessian(16)
    h[9] *= 30
    h[:, 9] *= 30  # the third group now comes first
    found, _ = made(w, h, fmt, order=True)
    scale, zero = dynamic_grid(w[:, 8:12], Int(2, False))
    assert torch.equal(found.scale[:, 2:3], scale)  # from weights that no error has reached
    assert torch.equal(found.zero[:, 2:3], zero)


@given(
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from([0, 4, 8, 16]),
    st.integers(1, 20),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_codes_always_fit_their_format(bits, symmetric, group, block, order, seed):
    fmt, w = Int(bits, symmetric, group), weight(3, 16, seed)
    found, _ = made(w, hessian(16, seed=seed), fmt, block, order)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if symmetric and bits > 1 else (0, (1 << bits) - 1)
    assert found.codes.shape == (3, 16)
    assert low <= int(found.codes.min())
    assert int(found.codes.max()) <= high
    assert found.scale.shape == (3, 16 // group if group else 1)
    assert torch.isfinite(values(found, fmt)).all()


# --- Hessians that are hard to invert


def test_a_dead_input_is_rounded_to_nearest_and_told():
    h = hessian(8)
    h[3], h[:, 3] = 0, 0
    used = factor(h, 0.01, 10**6)
    assert used.rank_deficient
    assert torch.isfinite(used.u).all()


def test_fewer_rows_than_channels_are_told():
    assert factor(hessian(16, rows=4), 0.01, 4).rank_deficient
    assert not factor(hessian(16), 0.01, 200).rank_deficient


def test_repeated_rows_are_told_however_many_they_are():
    x = torch.randn(10, 24, generator=torch.Generator().manual_seed(0)).repeat(100, 1)
    assert factor(x.T @ x / len(x), 0.01, len(x)).rank_deficient


def test_what_one_damping_does_not_make_definite_gets_more():
    h = torch.ones(8, 8) - 0.1 * torch.eye(8)  # seven eigenvalues of -0.1
    used = factor(h, 0.01, 10**6)
    assert used.damp > 0.01
    assert used.rank_deficient


def test_no_input_at_all_still_gives_finite_codes():
    w, fmt = weight(3, 8), Int(4)
    found, used = made(w, torch.zeros(8, 8), fmt)
    assert used.rank_deficient
    assert torch.equal(values(found, fmt), decode(encode(w, fmt), fmt, (3, 8)))


def test_nan_is_refused():
    h = hessian(4)
    h[0, 0] = torch.nan
    with pytest.raises(BadValue, match="NaN"):
        factor(h, 0.01, 10)
