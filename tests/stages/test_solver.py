"""The exact choice under several limits, against trying everything."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.errors import DitherError
from dither.stages import solver
from dither.stages.solver import Choice, Limit, choose


@st.composite
def problems(draw, limits: int = 2):
    """Losses and costs of up to five items with up to four options, and limits between the least and the most."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    losses = [[draw(st.integers(0, 90)) / 7 for _ in range(n)] for n in counts]
    made = []
    for _ in range(limits):
        unit = draw(st.sampled_from([1, 48, 10**9, 1 / 3, 0.125]))
        costs = [sorted(draw(st.integers(1, 50)) * unit for _ in range(n)) for n in counts]  # the first is the cheapest
        least, most = sum(c[0] for c in costs), sum(c[-1] for c in costs)
        made.append(Limit(costs, least + draw(st.floats(0, 1)) * (most - least)))
    return losses, made


def total(table, options) -> float:
    return sum(row[i] for row, i in zip(table, options, strict=True))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problems())
def test_nothing_that_keeps_every_limit_is_better(problem):
    losses, limits = problem
    kept = [
        options
        for options in product(*(range(len(x)) for x in losses))
        if all(total(limit.costs, options) <= limit.most * (1 + 1e-9) for limit in limits)
    ]
    found = choose(losses, limits, 10)
    assert found.gap == 0
    assert found.options in kept
    assert total(losses, found.options) == pytest.approx(min(total(losses, x) for x in kept), abs=1e-9)


def test_a_limit_is_met_to_the_last_unit():
    costs = [[10**12, 10**12 + 10**4]] * 3
    found = [choose([[1.0, 0.0]] * 3, [Limit(costs, 3 * 10**12 + most)], 10).options for most in (20000, 10001, 5000)]
    assert [sum(options) for options in found] == [2, 1, 0]
    assert sum(choose([[1.0, 0.0]] * 3, [Limit([[0, 1]] * 3, 1.999)], 10).options) == 1


def test_without_limits_and_where_nothing_is_lost():
    assert choose([[3.0, 1.0, 2.0], [5.0]], [], 10) == Choice((1, 0), 0.0)
    assert choose([[0.0, 0.0]], [Limit([[1.0, 2.0]], 1.0)], 10) == Choice((0,), 0.0)
    assert choose([[1.0, 0.0]], [Limit([[1.0, 2.0]], 1e300)], 10) == Choice((1,), 0.0)


@pytest.mark.parametrize("status", [2, 4])
def test_what_is_no_answer_is_an_error(monkeypatch, status):
    class Nothing:
        x, message = (1.0,), "no"

    Nothing.status = status
    monkeypatch.setattr(solver, "milp", lambda *args, **kwargs: Nothing)
    with pytest.raises(DitherError, match="no allocation was found in 3 seconds: no"):
        choose([[1.0]], [], 3)
