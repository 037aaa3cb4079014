"""A power law against an exponential one, on samples of either."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.errors import BadValue
from dither.stages.likelihood import power_law_ratio


def pareto(n: int, exponent: float = 2.5, seed: int = 0) -> torch.Tensor:
    """Values from 0.001 on, by the inverse of the distribution."""
    u = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.001 * (1 - u) ** (-1 / (exponent - 1))


def exponential(n: int, seed: int = 0) -> torch.Tensor:
    u = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.001 - 0.01 * torch.log1p(-u)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("quantile", [0.0, 0.01, 0.2])
def test_samples_of_either_law_are_told_apart(seed, quantile):
    power, plain = (power_law_ratio(make(2000, seed=seed), quantile) for make in (pareto, exponential))
    assert power.power_law
    assert power.z > 2.5  # the tail has no variance: few values make most of it
    assert not plain.power_law
    assert plain.z < -3
    assert max(power.p, plain.p) < 0.01
    assert power.exponent == pytest.approx(2.5, rel=0.1)


def test_the_formulas_on_few_values():
    """By hand, with x_min = 1."""
    x = [1.0, 2.0, 4.0, 1.5]
    a, rate = 1 + 4 / sum(math.log(v) for v in x), 4 / sum(v - 1 for v in x)
    terms = [math.log(a - 1) - a * math.log(v) - math.log(rate) + rate * (v - 1) for v in x]
    mean = sum(terms) / 4
    sigma = math.sqrt(sum((t - mean) ** 2 for t in terms) / 4)
    found = power_law_ratio(torch.tensor(x), 0.0)
    assert (found.start, found.count) == (1.0, 4)
    assert found.exponent == pytest.approx(a)
    assert found.ratio == pytest.approx(sum(terms))
    assert found.z == pytest.approx(sum(terms) / (sigma * 2))
    assert found.p == pytest.approx(math.erfc(abs(found.z) / math.sqrt(2)))


def test_the_fits_are_the_likeliest():
    """Neither law of another parameter makes the values likelier."""
    x = pareto(500).numpy()
    found = power_law_ratio(torch.from_numpy(x), 0.0)

    def likelihood(a: float) -> float:
        return float(np.sum(np.log((a - 1) / found.start) - a * np.log(x / found.start)))

    best = likelihood(found.exponent)
    assert all(likelihood(found.exponent * f) < best for f in (0.98, 1.02))
    rate = 1 / (x.mean() - found.start)

    def plain(r: float) -> float:
        return float(np.sum(np.log(r) - r * (x - found.start)))

    assert found.ratio == pytest.approx(best - plain(rate))
    assert all(plain(rate * f) < plain(rate) for f in (0.98, 1.02))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.floats(1e-6, 1e6), st.sampled_from([0.0, 0.05]), st.booleans())
def test_units_do_not_matter(unit, quantile, heavy):
    x = (pareto if heavy else exponential)(300)
    one, other = power_law_ratio(x, quantile), power_law_ratio(unit * x, quantile)
    assert other.ratio == pytest.approx(one.ratio, rel=1e-6)
    assert other.z == pytest.approx(one.z, rel=1e-6)
    assert other.exponent == pytest.approx(one.exponent, rel=1e-6)
    assert other.start == pytest.approx(unit * one.start)


def test_values_below_the_quantile_have_no_say():
    x = torch.cat([torch.full((100,), 1e-9, dtype=torch.float64), pareto(900)])
    assert power_law_ratio(x, 0.11).exponent == pytest.approx(2.5, rel=0.1)
    assert power_law_ratio(x, 0.0).exponent < 1.5


def test_softmax_of_wide_logits_is_heavy_and_of_narrow_ones_is_not():
    """Of logits with deviation d the probabilities are log-normal: the wider, the closer to a power law."""
    logits = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    ratios = [power_law_ratio(torch.softmax(d * logits, -1).flatten()).ratio for d in (0.3, 4.0)]
    assert ratios[0] < 0 < ratios[1]


@pytest.mark.parametrize(
    ("x", "quantile", "message"),
    [
        (torch.tensor([0.0, 0.0]), 0.01, "2 of 2 values are not positive"),
        (torch.tensor([0.5, 0.0, 0.25]), 0.01, "1 of 3 values are not positive"),
        (torch.tensor([0.5, -0.1, 0.25]), 0.01, "1 of 3"), (torch.tensor([0.5, math.nan, math.inf]), 0.01, "2 of 3"),
        (torch.full((9,), 0.25), 0.01, r"all 9 values from the 0\.01 quantile on are 0\.25"),
        (torch.tensor([0.1, 0.5, 0.5, 0.5]), 0.5, r"all 3 values from the 0\.5 quantile on are 0\.5"),
        (torch.zeros(0), 0.01, r"not to shape \(0,\)"), (torch.ones(2, 2), 0.01, r"not to shape \(2, 2\)"),
        (torch.ones(2), 1.0, r"quantile 1\.0"), (torch.ones(2), -0.1, r"quantile -0\.1"),
        (torch.ones(2), math.nan, "quantile nan"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_named(x, quantile, message):
    with pytest.raises(BadValue, match=message):
        power_law_ratio(x, quantile)
