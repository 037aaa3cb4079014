"""Greedy and exact division of bits: against brute force, never over budget, and more bits never worse."""

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.errors import BadRecipe, DitherError
from dither.stages import budget, solver
from dither.stages.budget import Item, average_of, check_average, expected, greedy, optimum

WIDTHS = (4, 6, 8)


@st.composite
def tables(draw, most: int = 5) -> list[Item]:
    """Small problems: two roles, layers of several sizes, losses that never rise with the width."""
    items = []
    for _ in range(draw(st.integers(1, most))):
        widths = draw(st.sampled_from([WIDTHS, (4, 8), (6, 8), (5,)]))
        sizes = draw(st.lists(st.sampled_from([6, 12, 18, 48]), min_size=1, max_size=3))
        curves = st.lists(st.integers(0, 60), min_size=len(widths), max_size=len(widths))
        losses, errors = (tuple(x / 7 for x in sorted(draw(curves), reverse=True)) for _ in range(2))
        items.append(Item(draw(st.sampled_from(["content", "visual"])), tuple(sizes), widths, losses, errors))
    return items


def narrowest(items: list[Item]) -> float:
    return average_of(items, [[i.widths[0]] * len(i.sizes) for i in items])


def whole(items: list[Item], widths) -> list[list[int]]:
    return [[w] * len(i.sizes) for i, w in zip(items, widths, strict=True)]


AVERAGES = st.floats(0, 4)
QUICK = settings(max_examples=150, deadline=None, derandomize=True)


@QUICK
@given(tables(4), AVERAGES)
def test_the_program_finds_what_trying_everything_finds(items, extra):
    average = narrowest(items) + extra
    best = min(
        expected(items, whole(items, widths))["mse"]
        for widths in product(*(i.widths for i in items))
        if average_of(items, whole(items, widths)) <= average + 1e-9
    )
    found = optimum(items, average, 10)
    assert found.gap == 0
    assert average_of(items, whole(items, found.widths)) <= average + 1e-9
    assert expected(items, whole(items, found.widths))["mse"] == pytest.approx(best, abs=1e-9)


@QUICK
@given(tables(), AVERAGES)
def test_greedy_keeps_to_the_budget_and_leaves_less_than_a_step(items, extra):
    average = narrowest(items) + extra
    widths = greedy(items, average)
    total = sum(sum(i.sizes) for i in items)
    left = (average - average_of(items, widths)) * total
    assert left > -1e-6
    assert all(w in item.widths for item, chosen in zip(items, widths, strict=True) for w in chosen)
    if any(w < item.widths[-1] for item, chosen in zip(items, widths, strict=True) for w in chosen):
        assert left < max(n for i in items for n in i.sizes) * 4  # the largest step: four bits of the largest layer


@QUICK
@given(tables(), st.lists(AVERAGES, min_size=2, max_size=8))
def test_more_bits_never_make_it_worse(items, extras):
    averages = sorted(narrowest(items) + e for e in extras)
    for less, more in pairwise(averages):
        a, b = greedy(items, less), greedy(items, more)
        assert all(x <= y for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))  # layer by layer
        before, after = expected(items, a), expected(items, b)
        assert all(after[key] <= before[key] + 1e-9 for key in before)
        first, second = (expected(items, whole(items, optimum(items, x, 10).widths))["mse"] for x in (less, more))
        assert second <= first + 1e-9


@QUICK
@given(tables(4), AVERAGES)
def test_greedy_is_never_better_than_the_optimum_of_one_layer_items(items, extra):
    single = [Item("visual", (sum(i.sizes),), i.widths, i.errors, i.errors) for i in items]
    average = narrowest(single) + extra
    exact = expected(single, whole(single, optimum(single, average, 10).widths))["mse"]
    assert expected(single, greedy(single, average))["mse"] >= exact - 1e-9


def test_with_two_widths_it_is_the_papers_sort():
    losses = (5.0, 1.0, 9.0, 3.0)
    items = [Item("visual", (10,), (4, 8), (x, 0.0), (1.0, 0.0)) for x in losses]
    assert greedy(items, 6.0) == [[8], [4], [8], [4]]


def test_bits_are_shared_between_roles_by_squared_error():
    items = [
        Item(role, (10,), (4, 8), (1.0, 0.0), (error, 0.0)) for role, error in (("content", 1.0), ("visual", 3.0)) * 4
    ]
    widths = greedy(items, 6.0)
    raised = [item.role for item, (w,) in zip(items, widths, strict=True) if w == 8]
    assert sorted(raised) == ["content", "visual", "visual", "visual"]


def test_a_role_judges_by_its_own_metric_and_not_by_squared_error():
    items = [Item("visual", (1,), (4, 8), (loss, 0.0), (error, 0.0)) for loss, error in ((1.0, 9.0), (2.0, 1.0))]
    assert greedy(items, 6.0) == [[4], [8]]
    assert optimum(items, 6.0, 10).widths == (8, 4)


def test_steps_that_only_pay_together_are_one():
    items = [
        Item("v", (1,), WIDTHS, (9.0, 9.0, 0.0), (1.0, 1.0, 0.0)),
        Item("v", (1,), WIDTHS, (4.0, 1.0, 0.0), (1.0, 1.0, 0.0)),
    ]
    assert greedy(items, 6.0) == [[8], [4]]  # 9 for 4 bits is more than 3 for 2
    assert greedy(items, 5.0) == [[4], [4]]


def test_where_nothing_is_felt_bits_are_spent_all_the_same():
    items = [Item("v", (1,), (4, 8), (0.0, 0.0), (e, 0.0)) for e in (1.0, 2.0, 0.0)]
    assert greedy(items, 4 + 4 / 3) == [[4], [8], [4]]
    silent = [Item(r, (1,), (4, 8), (0.0, 0.0), (0.0, 0.0)) for r in "ab"]
    assert greedy(silent, 8.0) == [[8], [8]]
    assert average_of(silent, whole(silent, optimum(silent, 6.0, 10).widths)) <= 6


def test_the_smallest_possible_average_is_named():
    items = [Item("v", (3,), (4, 8), (1.0, 0.0), (1.0, 0.0)), Item("v", (1,), (5, 8), (1.0, 0.0), (1.0, 0.0))]
    with pytest.raises(BadRecipe, match=r"mixed.weight 4.2: .* allow is 4.25 bits"):
        check_average("mixed.weight", 4.2, items)
    check_average("mixed.weight", 4.25, items)
    thirds = [Item("v", (2,), (4,), (1.0,), (1.0,)), Item("v", (1,), (5,), (1.0,), (1.0,))]
    with pytest.raises(BadRecipe, match=r"allow is 4.334 bits"):
        check_average("x", 4.33, thirds)
    check_average("x", 4.334, thirds)


def test_a_solver_without_an_answer_says_so(monkeypatch):
    class Nothing:
        x, status, message = None, 1, "Time limit reached."

    monkeypatch.setattr(solver, "milp", lambda *args, **kwargs: Nothing)
    with pytest.raises(DitherError, match="no allocation was found in 3 seconds: Time limit"):
        optimum([Item("v", (1,), (4, 8), (1.0, 0.0), (1.0, 0.0))], 5.0, 3)


def test_a_solver_that_ran_out_of_time_names_the_gap(monkeypatch):
    real = solver.milp

    def slow(*args, **kwargs):
        found = real(*args, **kwargs)
        found.status, found.mip_gap = 1, 0.25
        return found

    monkeypatch.setattr(solver, "milp", slow)
    assert optimum([Item("v", (1,), (4, 8), (1.0, 0.0), (1.0, 0.0))], 8.0, 3) == budget.Optimum((8,), 0.25)
