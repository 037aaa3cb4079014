"""Codes of inputs in Triton's interpreter: those of ``numerics``, bit for bit."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import interpreted, silent

from dither.errors import DitherError
from dither.numerics import dynamic_grid, grouped, to_codes
from dither.spec import Int

pytestmark = [interpreted, *silent]
GRIDS = [Int(8), Int(8, False), Int(4), Int(5, False), Int(2), Int(1, False)]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows(x, grid, scale=None, zero=None, between=None, groups=1, gelu=0, halves=False):
    return torch.ops.dither.int8_rows(
        x, scale, zero, between, grid.bits, grid.symmetric, groups, gelu, halves, True
    )  # fmt: skip


def moved(grid):
    return 128 if grid.bits == 8 and not grid.symmetric else 0


def assert_codes(found, x, grid, scale, zero):
    """Codes, ranges and sums are those of ``numerics``."""
    codes, s, z, sums = found
    want = to_codes(x, scale, zero, grid).to(torch.int32) - moved(grid)
    groups = scale.shape[-1]
    assert torch.equal(codes.to(torch.int32), want)
    assert torch.equal(s, scale.expand(len(x), groups))
    if grid.symmetric:
        assert z.numel() == 0
    else:
        assert torch.equal(z, zero.to(torch.int32).expand(len(x), groups) - moved(grid))
    assert torch.equal(sums, want.view(len(x), groups, -1).sum(-1, dtype=torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_dynamic_codes_are_those_of_numerics(grid, dtype):
    x = random(9, 75, dtype=dtype)
    x[2], x[3], x[4] = 0, 5, -5
    x[5] = x[5].abs()
    assert_codes(rows(x, grid), x, grid, *dynamic_grid(x, grid))


@pytest.mark.parametrize("grid", [Int(8, group=24), Int(4, False, 8), Int(8, False, 40)], ids=str)
def test_groups_have_ranges_of_their_own(grid):
    x = random(7, 120)
    assert_codes(rows(x, grid, groups=120 // grid.group), x, grid, *dynamic_grid(x, grid))


@pytest.mark.parametrize("each", [False, True], ids=["one row", "rows"])
@pytest.mark.parametrize("grid", [Int(8), Int(8, False), Int(6, False, 24)], ids=str)
def test_static_codes_are_those_of_numerics(grid, each):
    x = 3 * random(6, 48)  # some of it beyond what the table covers
    groups = grouped(x, grid.group).shape[-2]
    scale, zero = dynamic_grid(random(6 if each else 1, 48, seed=1), grid)
    assert_codes(rows(x, grid, scale, zero, groups=groups), x, grid, scale, zero)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    bits=st.integers(2, 8), symmetric=st.booleans(), exponent=st.integers(-44, 36), seed=st.integers(0, 99),
    shape=st.sampled_from([(3, 16), (1, 1), (2, 33), (5, 64)]),
)  # fmt: skip
def test_codes_of_any_magnitude(bits, symmetric, exponent, seed, shape):
    """From scales that are flushed to 0 up to ranges that would overflow; half of the values are next to ties."""
    grid = Int(bits, symmetric)
    x = random(*shape, seed=seed)
    scale, zero = dynamic_grid(x, grid)
    ties = scale * (to_codes(x, scale, zero, grid).float() - (0 if zero is None else zero.float()) + 0.5)
    nudged = torch.nextafter(ties, x.sign() * torch.inf)
    x = torch.stack([x, nudged, ties], 1).flatten(0, 1) * 10.0**exponent
    assert_codes(rows(x, grid), x, grid, *dynamic_grid(x, grid))


def test_halves_put_even_columns_first():
    x, grid = random(5, 70), Int(8, False)
    whole, halved = rows(x, grid), rows(x, grid, halves=True)
    assert torch.equal(halved[0], torch.cat((whole[0][:, ::2], whole[0][:, 1::2]), 1))
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], halved[1:], strict=True))


@pytest.mark.parametrize("gelu", [1, 2], ids=["tanh", "erf"])
def test_gelu_and_scales_come_before_codes(gelu):
    """Their values differ from torch's in the last places, so that a code next to a tie may be the other one."""
    x, between, grid = random(8, 200), random(200, seed=1).abs(), Int(8)
    y = F.gelu(x.double(), approximate="tanh" if gelu == 1 else "none") * between
    codes, scale, *_ = rows(x, grid, between=between, gelu=gelu)
    want = (y / (y.abs().amax(1, keepdim=True) / 127)).round()
    torch.testing.assert_close(scale.double(), y.abs().amax(1, keepdim=True) / 127, rtol=1e-6, atol=0)
    assert (codes - want).abs().max() <= 1
    assert ((codes - want) != 0).sum() <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_scales_are_rounded_as_torch_rounds_them(dtype):
    x, between, grid = random(8, 200, dtype=dtype), random(200, seed=1).abs(), Int(8, False)
    y = x * between.to(dtype)
    assert_codes(rows(x, grid, between=between), y, grid, *dynamic_grid(y, grid))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("static", [False, True])
def test_what_is_not_finite_marks_its_own_row(bad, static):
    x = random(4, 20)
    x[1, 3] = bad
    _, scale, *_ = rows(x, Int(8), torch.ones(1, 1) if static else None)
    assert scale.isnan().flatten().tolist() == [False, True, False, False]


def test_no_rows():
    codes, scale, zero, sums = rows(torch.empty(0, 24), Int(8, False))
    assert (codes.shape, scale.shape, zero.shape, sums.shape) == ((0, 24), (0, 1), (0, 1), (0, 1))


def test_tensors_that_do_not_fit_are_refused():
    x = random(3, 24)
    with pytest.raises(DitherError, match=r"quantizing 3 rows of 24 cannot run: scale is float32 \(2, 1\)"):
        rows(x, Int(8), torch.ones(2, 1))
    with pytest.raises(DitherError, match="zero is nothing"):
        rows(x, Int(8, False), torch.ones(1, 1))
    with pytest.raises(DitherError, match=r"x is float64 \(3, 24\)"):
        rows(x.double(), Int(8))
    with pytest.raises(DitherError, match=r"x is float32 \(3, 24\)"):
        rows(x, Int(8), groups=5)


@pytest.mark.parametrize("tanh", [True, False])
def test_gelu_alone(tanh):
    x = torch.cat([torch.linspace(-12, 12, 1501), torch.tensor([0.0, 100.0, -100.0])])
    want = F.gelu(x.double(), approximate="tanh" if tanh else "none")
    torch.testing.assert_close(torch.ops.dither.triton_gelu(x, tanh).double(), want, rtol=1e-5, atol=1e-6)
    with pytest.raises(DitherError, match="GELU of 1504 values cannot run: x is float64"):
        torch.ops.dither.triton_gelu(x.double(), tanh)


def test_the_operators_are_good_ones():
    x = random(6, 32)
    ops = torch.ops.dither
    torch.library.opcheck(ops.triton_gelu.default, (x, True))
    torch.library.opcheck(ops.int8_rows.default, (x, None, None, None, 8, False, 2, 0, False, True))
