import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dither.errors import BadValue
from dither.evaluation import trajectory as t


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_known_error():
    x = noise(3, 2, 4)
    signal, error = t.energies(x, x + 0.1 * x)
    np.testing.assert_allclose(signal, x.double().square().sum((1, 2)))
    np.testing.assert_allclose(error / signal, 0.01, rtol=1e-5)
    np.testing.assert_allclose(t.relative_error(x, 1.1 * x), 0.01, rtol=1e-5)
    assert t.relative_error(x, x).tolist() == [0, 0, 0]


def test_pictures_do_not_see_each_other():
    x, y = noise(4, 5), noise(4, 5, seed=1)
    apart = np.concatenate([t.relative_error(x[i : i + 1], y[i : i + 1]) for i in range(4)])
    assert t.relative_error(x, y).tolist() == apart.tolist()


def test_what_cannot_be_compared():
    with pytest.raises(BadValue, match=r"\(2, 3\) and \(2, 4\)"):
        t.energies(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(BadValue, match="NaN"):
        t.energies(torch.ones(2, 3), torch.full((2, 3), torch.nan))
    with pytest.raises(BadValue, match="2 conditional and 1 unconditional"):
        t.guide(torch.ones(3, 2), torch.tensor([False, True, False]), 2.0)


def test_guidance_of_rows_in_any_order():
    c, u = noise(2, 3), noise(2, 3, seed=1)
    wanted = u + 1.5 * (c - u)
    assert torch.equal(t.guide(torch.cat([c, u]), torch.tensor([0, 0, 1, 1]).bool(), 1.5), wanted)
    assert torch.equal(t.guide(torch.cat([u, c]), torch.tensor([1, 1, 0, 0]).bool(), 1.5), wanted)
    assert torch.equal(t.guide(c, torch.zeros(2).bool(), 1.5), c)


@pytest.mark.parametrize(("alike", "expected"), [(True, 1.0), (False, 1.5**2 + 0.5**2)])
def test_guidance_amplification_of_errors_that_are_alike_and_of_independent_ones(alike, expected):
    unconditional = torch.arange(8) >= 4
    clean = noise(4, 40_000).repeat(2, 1)  # equal branches, so that guidance leaves the signal as it is
    error = 0.01 * noise(4, 40_000, seed=1)
    rows = clean + torch.cat([error, error if alike else 0.01 * noise(4, 40_000, seed=2)])
    guided = t.relative_error(t.guide(clean, unconditional, 1.5), t.guide(rows, unconditional, 1.5))
    conditional = t.relative_error(clean[:4], rows[:4])
    got = t.guidance_amplification(guided[:, None], conditional[:, None])
    assert got.shape == (1,)
    assert got[0] == pytest.approx(expected, rel=0.02)


def test_amplification():
    errors = np.array([[0.1, 0.2], [0.3, 0.0]])
    assert t.amplification(np.array([0.6, 0.3]), errors) == pytest.approx(1.5)
    assert t.amplification(np.zeros(2), np.zeros((2, 3))) == 1
    assert t.guidance_amplification(np.zeros((2, 3)), np.zeros((2, 3))).tolist() == [1, 1, 1]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.floats(0.01, 0.99), st.integers(0, 99))
def test_each_rule_finds_the_picture_that_was_noised(level, seed):
    x0, eps = noise(2, 3, seed=seed).double(), noise(2, 3, seed=seed + 1).double()
    sigma = level
    alpha = (1 - sigma**2) ** 0.5
    x = alpha * x0 + sigma * eps
    torch.testing.assert_close(t.from_epsilon(alpha, sigma)(x, eps), x0)
    torch.testing.assert_close(t.from_v(alpha, sigma)(x, alpha * eps - sigma * x0), x0)
    torch.testing.assert_close(t.from_flow(level)((1 - level) * x0 + level * eps, eps - x0), x0)
    torch.testing.assert_close(t.from_sample()(x, x0), x0)


def test_pure_noise_says_nothing_about_the_picture():
    with pytest.raises(BadValue, match="alpha 0"):
        t.from_epsilon(0.0, 1.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 6)

    def forward(self, x, t):
        return (self.layer(x) * t,)


@pytest.fixture
def search():
    """Full precision, a worse copy, and three calls of two pictures, both branches of each."""
    full = Net()
    worse = copy.deepcopy(full)
    with torch.no_grad():
        worse.layer.weight.add_(0.05 * noise(6, 6, seed=3))
    calls = [((noise(4, 6, seed=i),), {"t": 1.0 + i}, float(i)) for i in range(3)]
    return full, worse, calls


def combine(rows):
    return t.guide(rows, torch.tensor([False, False, True, True]), 1.5)


def test_scores_are_logs_of_summed_errors(search):
    full, worse, calls = search
    states, rules = [noise(2, 6, seed=9 + i) for i in range(3)], [t.from_epsilon(0.8, 0.6)] * 3
    targets = t.make_targets(full, calls, combine, states, rules)
    got = t.score(worse, targets, combine)
    error, clean = np.zeros(2), np.zeros(2)
    for (args, kwargs, _), state, rule in zip(calls, states, rules, strict=True):
        with torch.no_grad():
            a, b = combine(full(*args, **kwargs)[0]), combine(worse(*args, **kwargs)[0])
        error += t.relative_error(a, b)
        clean += t.relative_error(rule(state, a), rule(state, b))
    np.testing.assert_allclose(got.log_error, np.log(error), rtol=1e-9)
    np.testing.assert_allclose(got.log_x0_error, np.log(clean), rtol=1e-6)


def test_a_search_prefers_the_smaller_error(search):
    full, worse, calls = search
    targets = t.make_targets(full, calls, combine)
    much_worse = copy.deepcopy(worse)
    with torch.no_grad():
        much_worse.layer.weight.add_(worse.layer.weight - full.layer.weight)
    scores = [t.score(net, targets, combine) for net in (full, worse, much_worse)]
    assert np.isfinite(scores[0].log_error).all()
    assert (scores[0].log_error < scores[1].log_error).all()
    np.testing.assert_allclose(scores[2].log_error - scores[1].log_error, np.log(4), rtol=1e-4)
    assert scores[0].log_x0_error is None


def test_targets_that_do_not_belong_together(search):
    full, _, calls = search
    with pytest.raises(BadValue, match="3 calls, 1 states and 0 rules"):
        t.make_targets(full, calls, combine, states=[noise(2, 6)])
    with pytest.raises(BadValue, match="returns int"):
        t.make_targets(lambda *_, **__: 3, calls, combine)
