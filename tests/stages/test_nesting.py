"""Codes read at several widths: no bias at any of them, nearest where nothing is nested, and what stages make of it."""

import jobs
import pytest
import torch

from dither.numerics import code_bounds, decode, dynamic_grid, encode, encode_int, unpack_int
from dither.spec import Act, Int, Nested, View, Views
from dither.stages import Assign, Rtn
from dither.stages.nesting import encode_for, rounded

CASES = [(6, (4, 6)), (8, (4, 6, 8)), (8, (4, 8)), (8, (4,)), (5, (4, 5)), (5, (3, 5))]


def weight(rows: int = 64, columns: int = 256) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def value(tensors, fmt: Int, bits: int, shape) -> torch.Tensor:
    return decode(tensors, fmt if bits == fmt.bits else Nested(fmt, bits), shape)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("top", "widths"), CASES)
def test_no_width_has_a_bias(top, widths, symmetric):
    fmt, w = Int(top, symmetric), weight()
    tensors = encode_for(w, fmt, widths)
    for bits in widths:
        step = tensors["scale"] * 2 ** (top - bits)
        error = (value(tensors, fmt, bits, tuple(w.shape)) - w) / step
        assert abs(float(error.mean())) < 0.02  # of a step; the nearest wide codes read narrowly have up to a quarter


def test_the_nearest_wide_codes_do_have_one():
    fmt, w = Int(6, False), weight()
    error = value(encode(w, fmt), fmt, 4, tuple(w.shape)) - w
    assert float((error / encode(w, fmt)["scale"]).mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("top", "widths"), CASES)
def test_a_narrow_value_is_within_half_its_step(top, widths, symmetric):
    fmt, w = Int(top, symmetric), weight()
    tensors = encode_for(w, fmt, widths)
    for bits in widths:
        step = tensors["scale"] * 2 ** (top - bits)
        error = (value(tensors, fmt, bits, tuple(w.shape)) - w).abs() / step
        # the wide code may be another than the nearest, and an end of the range is half a wide step further out
        assert float(error.max()) <= (1.0 if bits == top else 0.5 + 0.5 ** (top - bits)) + 1e-4


@pytest.mark.parametrize("group", [0, 16, -1])
def test_reading_at_one_width_is_rounding_to_nearest(group):
    fmt, w = Int(5, False, group), weight(8, 32)
    for got, want in zip(encode_for(w, fmt, (5,)).items(), encode_int(w, fmt).items(), strict=True):
        assert got[0] == want[0]
        assert torch.equal(got[1], want[1])
    assert torch.equal(rounded(w, fmt), decode(encode(w, fmt), fmt, (8, 32)))
    error = (rounded(w, Nested(fmt, 3)) - w) / dynamic_grid(w, fmt)[0].repeat_interleave(
        max(group, 1) if group > 0 else 1, 1
    )
    assert float(error.abs().max()) <= 2.5 + 1e-4


@pytest.mark.parametrize("group", [0, 16, -1])
@pytest.mark.parametrize(("top", "widths"), CASES)
def test_the_narrowest_reading_is_rounding_to_it_alone(top, widths, group):
    w, fmt = weight(), Int(top, False, group)
    w[0, :9] = 0
    got = value(encode_for(w, fmt, widths), fmt, min(widths), tuple(w.shape))
    narrow = Int(min(widths), False, group)
    want = decode(encode(w, narrow), narrow, tuple(w.shape))
    torch.testing.assert_close(got, want)
    assert not got[0, :9].any()


def test_codes_stay_in_bounds_and_dead_rows_stay_zero():
    w = weight(4, 8)
    w[1] = 0
    for symmetric in (True, False):
        fmt = Int(4, symmetric)
        codes = unpack_int(encode_for(w * 1e30, fmt, (2, 4)), fmt, 8).int()
        low, high = code_bounds(fmt)
        assert low <= int(codes.min()) <= int(codes.max()) <= high
        assert torch.equal(value(encode_for(w, fmt, (2, 4)), fmt, 4, (4, 8))[1], torch.zeros(8))


def test_a_grid_that_was_searched_is_kept():
    fmt, w = Int(4, False), weight(4, 8)
    scale, zero = dynamic_grid(w * 0.5, fmt)
    tensors = encode_for(w, fmt, (3, 4), scale, zero)
    assert torch.equal(tensors["scale"], scale)
    assert torch.equal(tensors["zero"], zero)


def test_rtn_rounds_for_all_views_and_an_imitation_shows_what_it_will_be():
    model = jobs.pipeline().transformer
    job = jobs.run((Assign(weight=Int(8, False), act=Act(Int(8)), adaln=Int(8)),), model)
    name = "transformer_blocks.0.attn1.to_q"
    spec = job.specs[name]
    fmt = spec.weight
    assert isinstance(fmt, Int)
    job.vary(name, Views(spec, (View(4, spec.act), View(8, spec.act)), (0,)))
    want = job.imitation(name, Nested(fmt, 4), None).get_buffer("weight_dense")
    dense = job.dense(name).clone()
    with torch.no_grad():
        Rtn().run(job)
    stored = model.get_submodule(name).base.stored()
    assert torch.equal(decode(stored, Nested(fmt, 4), tuple(dense.shape)), want)
    assert torch.equal(want, rounded(dense, Nested(fmt, 4)))
