"""The Float8 format: golden bytes, every code, order, error bounds, saturation, and what is not finite."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dither.errors import BadFormat, BadValue
from dither.numerics import act_codes, act_quantize, act_values, decode_float8, dynamic_table, encode_float8, recode
from dither.spec import PER_ROW, PER_TENSOR, Float8

FORMATS = [Float8(g) for g in (PER_ROW, PER_TENSOR, 4)]
kinds = st.sampled_from(FORMATS)
SIZES = (-(2.0**100), 2.0**100)
finite = st.floats(*SIZES, width=32)
rows = st.lists(finite, min_size=12, max_size=12).map(lambda v: torch.tensor(v).reshape(3, 4))
LEAST_NORMAL = 2.0**-6
EVERY = [sign * 2.0 ** (max(e, 1) - 7) * (m / 8 + (e > 0)) for sign in (1, -1) for e in range(16) for m in range(8)]
"""Values of all codes in order; those of the last of each sign are no numbers."""
NUMBERS = [i for i in range(256) if i & 0x7F != 0x7F]


def weight(seed: int, spread: float = 1.0) -> Tensor:
    return torch.randn(3, 12, generator=torch.Generator().manual_seed(seed)) * spread


def scale_of(tensors: dict[str, Tensor], like: Tensor) -> Tensor:
    """The scale of each element."""
    scale = tensors["scale"]
    return scale.repeat_interleave(like.shape[-1] // scale.shape[-1], -1).expand_as(like)


def test_golden_bytes():
    """By hand. 17 and 19 lie between 16, 18 and 20; 2^-10 between 0 and 2^-9: ties go to the even code."""
    w = torch.tensor([[448.0, -224.0, 1.0, 2.0**-6, 2.0**-9, 0.0, 17.0, 19.0, 2.0**-10, -3 * 2.0**-10]])
    tensors = encode_float8(w, Float8())
    assert bytes(tensors["codes"].flatten().tolist()).hex() == "7ef638080100585a0082"
    assert tensors["scale"].tolist() == [[1.0]]
    want = [448.0, -224.0, 1.0, 2.0**-6, 2.0**-9, 0.0, 16.0, 20.0, 0.0, -(2.0**-8)]
    assert decode_float8(tensors, Float8(), (1, 10)).tolist() == [want]


def test_every_code_stands_for_its_number():
    codes = torch.tensor([NUMBERS], dtype=torch.uint8)
    tensors = {"codes": codes, "scale": torch.tensor([[0.5]])}
    values = decode_float8(tensors, Float8(), tuple(codes.shape))
    assert values.tolist() == [[0.5 * EVERY[i] for i in NUMBERS]]
    assert torch.equal(recode(values, tensors, Float8())["codes"], codes)


@given(fmt=kinds, w=rows)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_normal_values_move_by_a_sixteenth_and_small_ones_by_half_a_step(fmt: Float8, w: Tensor) -> None:
    tensors = encode_float8(w, fmt)
    got, scale = decode_float8(tensors, fmt, w.shape), scale_of(tensors, w)
    error, small = (got - w).abs().double(), scale.double() * 2.0**-10
    normal = w.abs() >= LEAST_NORMAL * scale
    bound = torch.where(normal & (scale > 0), w.abs().double() * 2.0**-4, small) * (1 + 1e-6)
    assert torch.all((error <= bound) | ((scale == 0) & (got == 0)))
    assert torch.isfinite(got).all()


@given(fmt=kinds, w=rows)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_decoded_weights_encode_to_the_same_codes(fmt: Float8, w: Tensor) -> None:
    first = encode_float8(w, fmt)
    value = decode_float8(first, fmt, w.shape)
    again = recode(value, first, fmt)
    assert torch.equal(decode_float8(again, fmt, w.shape), value)
    assert torch.equal(encode_float8(value, fmt)["codes"] & 0x7F, first["codes"] & 0x7F)  # the scale may move by an ulp


@given(x=st.lists(finite, min_size=2, max_size=40), scale=st.floats(2.0**-30, 2.0**30, width=32))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_rounding_keeps_the_order_and_the_sign(x: list[float], scale: float) -> None:
    """Also far outside of a static range."""
    line, table = torch.tensor([sorted(x)]), {"scale": torch.tensor([[scale]])}
    values = act_quantize(line, Float8(), table)[0]
    assert bool((values[1:] >= values[:-1]).all())
    assert bool((values * line[0] >= 0).all())
    assert torch.isfinite(values).all()
    assert float(values.abs().max()) <= float(torch.tensor(scale) * 448)
    assert torch.equal(act_values(act_codes(line, Float8(), table), Float8(), table)[0], values)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_finite_values_stay_finite_to_the_ends_of_float32(fmt):
    info = torch.finfo(torch.float32)
    steps = 1 - torch.arange(300) * info.eps  # a scale that is rounded up must not carry the largest code too far
    for most in (info.max, info.max / 3, 1.0, info.tiny, info.smallest_normal / 100):
        w = (steps * most)[:, None] * torch.tensor([1.0, -1.0, 0.3, 0.0])
        tensors = encode_float8(w, fmt)
        got = decode_float8(tensors, fmt, w.shape)
        assert torch.isfinite(got).all()
        if most >= 1.0:
            torch.testing.assert_close(got[:, :2], w[:, :2], rtol=1e-4, atol=0)


def test_zeros_and_ranges_that_vanish_are_exact_zeros():
    w = torch.zeros(2, 4)
    w[1] = 1e-44
    tensors = encode_float8(w, Float8())
    assert tensors["scale"].tolist() == [[0.0], [0.0]]
    assert torch.equal(decode_float8(tensors, Float8(), (2, 4)), torch.zeros(2, 4))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite(bad):
    """No weight is; a row of inputs gives no numbers, and leaves the others alone."""
    w = torch.ones(2, 4)
    w[0, 1] = bad
    with pytest.raises(BadValue, match="1 values"):
        encode_float8(w, Float8())
    got = act_quantize(w, Float8(), dynamic_table(w, Float8()))
    assert got[0].isnan().any()
    assert not torch.isfinite(got[0]).any()
    assert torch.equal(got[1], w[1])
    static = act_quantize(w, Float8(), {"scale": torch.tensor([[1.0]])})
    assert static[0, 1].isnan() if math.isnan(bad) else float(static[0, 1]) == math.copysign(448, bad)
    assert torch.equal(static[0, 2:], w[0, 2:])


def test_neighbours_do_not_poison_each_other():
    w = torch.tensor([[1.0, 2.0, 1e6, 1e6], [1e-3, 2e-3, 0.0, 0.0]])
    by_group = encode_float8(w, Float8(2))
    assert by_group["scale"].shape == (2, 2)
    torch.testing.assert_close(decode_float8(by_group, Float8(2), (2, 4)), w)
    whole = encode_float8(w, Float8(PER_TENSOR))
    assert whole["scale"].shape == (1, 1)
    assert decode_float8(whole, Float8(PER_TENSOR), (2, 4))[1].tolist() == [0.0] * 4  # far below the smallest code


def test_groups_must_divide():
    with pytest.raises(BadFormat, match="group size 5 does not divide the 12"):
        encode_float8(weight(0), Float8(5))


def test_half_precision_inputs_are_rounded_as_float32():
    x = weight(1).bfloat16()
    table = dynamic_table(x, Float8())
    assert table["scale"].dtype == torch.float32
    assert torch.equal(act_quantize(x, Float8(), table), act_quantize(x.float(), Float8(), table))
