"""The scale's formula, both ways to count alpha, and the judge of a scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.errors import BadRecipe
from dither.numerics import decode, dynamic_grid, encode, fake_quantize, random_signs, rotate
from dither.spec import PER_TENSOR, Act, Bits, Float8, Int
from dither.stages.balance import Judge, best_scale, column_peaks, judge_of, share, shares, smoothing_scale

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 16)
W = torch.randn(24, 16, generator=torch.Generator().manual_seed(1)) / torch.logspace(-0.5, 0.5, 16)
ONES = torch.ones(16)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 1e30), st.floats(0, 1e30)), min_size=1, max_size=8), st.floats(0, 1))
def test_the_scale_is_finite_and_positive_and_dead_channels_keep_theirs(pairs, alpha):
    a, w = (torch.tensor(v, dtype=torch.float32) for v in zip(*pairs, strict=True))
    s = smoothing_scale(a, w, alpha)
    assert torch.isfinite(s).all()
    assert torch.isfinite(1 / s).all()
    assert (s > 0).all()
    assert (s[(a == 0) | (w == 0)] == 1).all()


def test_the_scale_follows_the_formula():
    a, w = torch.tensor([4.0, 9.0]), torch.tensor([16.0, 1.0])
    torch.testing.assert_close(smoothing_scale(a, w, 0.5), torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(smoothing_scale(a, w, 1.0), a)
    torch.testing.assert_close(smoothing_scale(a, w, 0.0), 1 / w)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_dead_channel_keeps_the_scale_1(alpha):
    """At alpha 0 (or 1) the formula alone would give 1 / w (or a): a number, and a needless change."""
    s = smoothing_scale(torch.tensor([0.0, 4.0]), torch.tensor([4.0, 0.0]), alpha)
    assert s.tolist() == [1.0, 1.0]


def test_vidit_alpha_multiplies_the_activation_by_what_its_paper_says():
    """ViDiT-Q: ``x' = x m``, ``m = w^A / a^(1 - A)``."""
    a, w, paper = torch.tensor([4.0, 9.0]), torch.tensor([16.0, 2.0]), 0.99
    (alpha,) = shares("smooth", (), (paper,))
    torch.testing.assert_close(1 / smoothing_scale(a, w, alpha), w**paper / a ** (1 - paper))


def test_alphas_come_from_one_field_or_are_one_half():
    assert shares("s", (0.1, 0.2), ()) == (0.1, 0.2)
    assert shares("s", (), (0.25, 1)) == (0.75, 0)
    assert shares("s", (), ()) == (0.5,)
    with pytest.raises(BadRecipe, match=r"s\.alpha 0\.1 and s\.vidit_alpha 0\.9, 0\.8: give one of the two"):
        shares("s", (0.1,), (0.9, 0.8))


@pytest.mark.parametrize("value", [-1e-6, 1.000001, float("nan"), float("inf")])
def test_a_share_outside_of_0_to_1_is_refused(value):
    with pytest.raises(BadRecipe, match=r"smooth\.search .*\[0, 1\]"):
        share("smooth", "search", value)


def test_column_peaks_are_over_all_weights():
    assert column_peaks([torch.tensor([[1.0, -5.0]]), torch.tensor([[-2.0, 3.0]])]).tolist() == [2.0, 5.0]


def test_the_error_without_formats_is_that_of_rounding_in_float():
    judge = Judge(None, None, random_signs(16, 3), 16)
    assert judge.error(X, W, torch.logspace(-1, 1, 16)) < 1e-6 * float((X @ W.T).square().sum())


@pytest.mark.parametrize("block", [0, 8])
def test_the_error_is_that_of_the_output_under_the_formats(block):
    weight, act, s = Int(4, False, 8), Act(Int(6, False)), torch.logspace(-0.5, 0.5, 16)
    signs = random_signs(16, 3)
    x, w = X / s, W * s
    if block:
        x, w = rotate(x, signs, block), rotate(w, signs, block)
    x = fake_quantize(x, act.grid, *dynamic_grid(x, act.grid))
    w = decode(encode(w, weight), weight, (24, 16))
    want = float((x @ w.T - X @ W.T).square().sum())
    assert Judge(weight, act, signs if block else None, block or 1).error(X, W, s) == pytest.approx(want)


def test_a_static_range_is_judged_as_one_range():
    grid = Int(4)
    static, tensor, token = (
        Judge(None, a).error(X, W, ONES) for a in (Act(grid, static=True), Act(Int(4, group=PER_TENSOR)), Act(grid))
    )
    assert static == tensor
    assert static > 1.5 * token


def test_what_is_not_said_is_symmetric_and_of_the_bits_asked_for():
    assert judge_of(Bits(4, 6), None, None, None, 0, 16) == Judge(Int(4), Act(Int(6)))
    float8 = Judge(Float8(), Act(Float8()))
    assert judge_of(Bits(8, 8, floating=True), None, None, None, 0, 16) == float8
    assert judge_of(Bits(4), None, None, None, 0, 16) == Judge(Int(4), None)
    said = judge_of(Bits(4, 6), Int(3), Act(Int(8, False)), 8, 5, 16)
    assert (said.weight, said.act, said.block) == (Int(3), Act(Int(8, False)), 8)
    assert torch.equal(said.signs, random_signs(16, 5))
    assert judge_of(Bits(4, 6), None, None, 0, 5, 16).block == 16  # the whole width


def test_the_best_scale_has_the_least_error_of_all_parts_together():
    a, w = X.abs().amax(0), W.abs().amax(0)
    parts = [(Judge(Int(4), Act(Int(8))), W[:8]), (Judge(Int(8), Act(Int(4))), W[8:])]

    def error(s: torch.Tensor) -> float:
        return sum(judge.error(X, part, s) for judge, part in parts)

    candidates = (0.0, 0.25, 0.5, 0.75, 1.0)
    alpha, best = best_scale(parts, candidates, a, w, X)
    errors = [error(smoothing_scale(a, w, c)) for c in candidates]
    assert error(best) == min(errors) < 0.7 * max(errors)
    assert alpha == candidates[errors.index(min(errors))]


def test_no_scale_is_a_candidate_too():
    """Channels that are even already: any scale from wrong peaks makes it worse."""
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(2))
    w = torch.randn(8, 16, generator=torch.Generator().manual_seed(3))
    alpha, best = best_scale([(Judge(Int(8), Act(Int(8))), w)], (1.0,), torch.logspace(-2, 2, 16), ONES, x)
    assert alpha is None
    assert torch.equal(best, ONES)
