"""The Int format: error bounds, exact zeros, neighbours that do not poison each other, golden tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dither.errors import BadFormat, BadValue
from dither.numerics import (
    code_bounds,
    decode_int,
    dynamic_grid,
    encode_int,
    fake_quantize,
    from_codes,
    grid,
    grouped,
    int_range,
    pack_int,
    to_codes,
    unpack_int,
)
from dither.spec import PER_ROW, PER_TENSOR, Int

FORMATS = [Int(b, s, g) for b in range(1, 9) for s in (True, False) for g in (PER_ROW, PER_TENSOR, 4)]
ONE_BIT = Int(1, symmetric=True)
kinds = st.sampled_from(FORMATS)


def weight(seed: int, rows: int = 3, count: int = 12, spread: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, count, generator=generator) * spread + shift * spread


def spread_out(scale: Tensor, like: Tensor) -> Tensor:
    """The scale of each element."""
    return scale.repeat_interleave(like.shape[-1] // scale.shape[-1], -1).expand_as(like)


@given(fmt=kinds, seed=st.integers(0, 999), power=st.integers(-30, 30), shift=st.sampled_from([-3.0, 0.0, 0.4, 5.0]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_value_moves_by_more_than_half_a_step(fmt: Int, seed: int, power: int, shift: float) -> None:
    w = weight(seed, spread=2.0**power, shift=shift)
    tensors = encode_int(w, fmt)
    error = (decode_int(tensors, fmt, w.shape) - w).abs()
    step = spread_out(tensors["scale"], w)
    nearer = torch.minimum((w - step).abs(), (w + step).abs())  # the symmetric one bit has two values only
    bound = nearer if fmt == Int(1, True, fmt.group) else step / 2
    assert torch.all(error <= bound + w.abs() * 2e-7 + step * 2e-5)


@given(fmt=kinds, seed=st.integers(0, 999), shift=st.sampled_from([-2.0, 0.0, 1.0]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_decoded_weights_encode_to_the_same_codes(fmt: Int, seed: int, shift: float) -> None:
    w = weight(seed, shift=shift)
    first = encode_int(w, fmt)
    again = encode_int(decode_int(first, fmt, w.shape), fmt, first["scale"], first.get("zero"))
    assert all(torch.equal(first[name], again[name]) for name in first)


@given(fmt=kinds, seed=st.integers(0, 999))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_fake_quantize_is_the_round_trip(fmt: Int, seed: int) -> None:
    x = weight(seed).view(3, 1, 12).expand(3, 2, 12)
    scale, zero = dynamic_grid(x, fmt)
    codes = to_codes(x, scale, zero, fmt)
    low, high = code_bounds(fmt)
    assert low <= int(codes.min()) <= int(codes.max()) <= high
    assert torch.equal(fake_quantize(x, fmt, scale, zero), from_codes(codes, scale, zero, fmt))


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.bits > 1 or not f.symmetric], ids=str)
def test_zero_is_exact(fmt: Int) -> None:
    w = weight(0, shift=4.0)
    w[:, ::3] = 0
    assert torch.all(decode_int(encode_int(w, fmt), fmt, w.shape)[:, ::3] == 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_one_sided_group_quantizes_well(sign: int) -> None:
    """The known trap: min-max without 0 puts the zero point out of its range, and the clamp then ruins the group."""
    fmt = Int(4, symmetric=False, group=16)
    w = sign * (1 + 0.5 * torch.rand(8, 64, generator=torch.Generator().manual_seed(0)))
    tensors = encode_int(w, fmt)
    error = (decode_int(tensors, fmt, w.shape) - w).abs()
    assert float(error.max()) <= 1.5 / 15 / 2 + 1e-6
    assert float(error.mean() / w.abs().mean()) < 0.025
    assert torch.all(tensors["zero"] == (0 if sign > 0 else 15))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_zero_channel_does_not_poison_its_neighbours(fmt: Int) -> None:
    w = weight(1)
    w[1] = 0
    got = decode_int(encode_int(w, fmt), fmt, w.shape)
    assert torch.isfinite(got).all()
    if fmt.group == PER_TENSOR:
        return
    assert torch.all(got[1] == 0)
    for row in (0, 2):
        alone = decode_int(encode_int(w[row : row + 1], fmt), fmt, (1, 12))
        assert torch.equal(got[row : row + 1], alone)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-39, 1e-37, 3e38])
def test_extreme_magnitudes_stay_finite(fmt: Int, size: float) -> None:
    w = torch.tensor([[size, -size, 0.0, size / 2] * 2, [1.0, -0.5, 0.25, 0.0] * 2])
    tensors = encode_int(w, fmt)
    got = decode_int(tensors, fmt, w.shape)
    assert torch.isfinite(tensors["scale"]).all()
    assert torch.isfinite(got).all()
    assert torch.all((tensors["scale"] == 0) | torch.isfinite(1 / tensors["scale"]))
    if size <= 1e-39 and fmt.group != PER_TENSOR:
        assert torch.all(got[0] == 0)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_zero_scale_never_divides(fmt: Int) -> None:
    """A token of zeros, or a static range that calibration saw empty and that now meets a number."""
    x = torch.tensor([[0.0] * 12, [3.0] * 12])
    scale, zero = torch.zeros(1, 1), None if fmt.symmetric else torch.zeros(1, 1, dtype=torch.uint8)
    for got in (fake_quantize(x, fmt, scale, zero), fake_quantize(x[:1], fmt, *dynamic_grid(x[:1], fmt))):
        assert torch.all(got == 0)
        assert not torch.signbit(got).any()


def test_one_bit_uses_the_mean_magnitude() -> None:
    w = torch.tensor([[1.0, -2.0, 3.0, -6.0]])
    tensors = encode_int(w, ONE_BIT)
    assert tensors["scale"].item() == 3.0
    assert tensors["codes"].tolist() == [[0b0101]]
    assert decode_int(tensors, ONE_BIT, w.shape).tolist() == [[3.0, -3.0, 3.0, -3.0]]
    best = min(float((w - s * w.sign()).square().sum()) for s in torch.linspace(0.5, 6, 56))
    assert float((decode_int(tensors, ONE_BIT, w.shape) - w).square().sum()) <= best + 1e-5


GOLDEN = [
    (Int(4), [[7.0, -3.4, 0.6, -7.0], [0.0, 0.0, 0.0, 0.0]], "d7910000", [1.0, 0.0], None),
    (Int(8), [[127.0, -127.0, 2.5, 0.5]], "7f810200", [1.0], None),  # half to even
    (Int(3, symmetric=False), [[-2.0, 5.0, 0.4, 1.0]], "b806", [1.0], [2]),
    (Int(2, symmetric=False, group=2), [[0.0, 3.0, -3.0, 0.0]], "cc", [1.0, 1.0], [0, 3]),
    (Int(5, group=PER_TENSOR), [[15.0, 0.0], [-15.0, 1.0]], "0f003100", [1.0], None),
]


@pytest.mark.parametrize(("fmt", "w", "codes", "scale", "zero"), GOLDEN)
def test_golden_tensors(fmt: Int, w: list[list[float]], codes: str, scale: list[float], zero: list[int] | None) -> None:
    tensors = encode_int(torch.tensor(w), fmt)
    assert bytes(tensors["codes"].flatten().tolist()).hex() == codes
    assert tensors["scale"].flatten().tolist() == scale
    assert (tensors["zero"].flatten().tolist() if "zero" in tensors else None) == zero


def test_grid_formulas() -> None:
    lo, hi = torch.tensor([-1.0, 0.5, -3.0]), torch.tensor([2.0, 1.5, -1.0])
    scale, zero = grid(lo, hi, Int(4, symmetric=False))
    torch.testing.assert_close(scale, torch.tensor([3.0, 1.5, 3.0]) / 15)
    assert zero is not None
    assert zero.tolist() == [5, 0, 15]
    scale, zero = grid(lo, hi, Int(4))
    torch.testing.assert_close(scale, torch.tensor([2.0, 1.5, 3.0]) / 7)
    assert zero is None
    assert torch.equal(grid(lo, hi, ONE_BIT)[0], torch.tensor([2.0, 1.5, 3.0]))


@pytest.mark.parametrize("lead", [(), (5,), (2, 5), (2, 3, 5)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [1, 8])
def test_activation_shapes(lead: tuple[int, ...], symmetric: bool, bits: int) -> None:
    x = torch.randn(*lead, 12, generator=torch.Generator().manual_seed(0))
    for group, shape in ((PER_ROW, (*lead, 1)), (4, (*lead, 3)), (PER_TENSOR, (1,) * (len(lead) + 1))):
        fmt = Int(bits, symmetric, group)
        scale, zero = dynamic_grid(x, fmt)
        assert scale.shape == shape
        assert zero is None if symmetric else zero is not None and zero.shape == shape
        codes = to_codes(x, scale, zero, fmt)
        assert codes.shape == x.shape
        assert codes.dtype == (torch.int8 if symmetric and bits > 1 else torch.uint8)
        assert from_codes(codes, scale, zero, fmt).shape == x.shape


def test_tokens_are_independent_and_a_stored_row_broadcasts() -> None:
    fmt = Int(8, symmetric=False, group=4)
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    scale, zero = dynamic_grid(x, fmt)
    alone_scale, alone_zero = dynamic_grid(x[1, 3], fmt)
    assert zero is not None
    assert torch.equal(scale[1, 3], alone_scale)
    assert alone_zero is not None
    assert torch.equal(zero[1, 3], alone_zero)
    row, row_zero = torch.full((3,), 0.1), torch.full((3,), 7, dtype=torch.uint8)  # one row of a static table: (G,)
    got = fake_quantize(x, fmt, row, row_zero)
    assert torch.equal(got[1, 3], fake_quantize(x[1, 3], fmt, row, row_zero))


def test_low_precision_inputs_are_read_in_float32() -> None:
    x = weight(0).bfloat16()
    scale, zero = dynamic_grid(x, Int(8))
    assert scale.dtype == torch.float32
    assert fake_quantize(x, Int(8), scale, zero).dtype == torch.float32
    assert torch.equal(scale, dynamic_grid(x.float(), Int(8))[0])


def test_int_range_contains_zero() -> None:
    lo, hi = int_range(torch.tensor([[1.0, 2.0, -3.0, -4.0]]), Int(8, group=2))
    assert lo.tolist() == [[0.0, -4.0]]
    assert hi.tolist() == [[2.0, 0.0]]
    lo, hi = int_range(torch.tensor([[1.0, 2.0], [-3.0, -4.0]]), Int(8, group=PER_TENSOR))
    assert (lo.tolist(), hi.tolist()) == ([[-4.0]], [[2.0]])


def test_codes_chosen_by_a_stage_store_and_come_back() -> None:
    fmt = Int(3, symmetric=True, group=2)
    codes = torch.randint(-4, 4, (3, 8), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    tensors = pack_int(codes, torch.ones(3, 4), None, fmt)
    assert torch.equal(unpack_int(tensors, fmt, 8), codes)
    assert torch.equal(decode_int(tensors, fmt, (3, 8)), codes.float())


def test_given_scale_clamps() -> None:
    fmt = Int(4, symmetric=False)
    codes = to_codes(
        torch.tensor([[-100.0, 100.0, 0.0]]), torch.ones(1, 1), torch.full((1, 1), 3, dtype=torch.uint8), fmt
    )
    assert codes.tolist() == [[0, 15, 3]]


def test_group_that_does_not_divide_is_refused_with_both_numbers() -> None:
    for act in (encode_int, dynamic_grid, lambda x, f: grouped(x, f.group)):
        with pytest.raises(BadFormat, match=r"group size 5 .* 12 input channels"):
            act(weight(0), Int(4, group=5))


def test_a_missing_zero_is_refused() -> None:
    with pytest.raises(BadFormat, match="needs a zero point"):
        encode_int(weight(0), Int(4, symmetric=False), torch.ones(3, 1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    w = weight(0)
    w[1, 2] = bad
    with pytest.raises(BadValue, match="1 values that are NaN or infinite"):
        encode_int(w, Int(8))
