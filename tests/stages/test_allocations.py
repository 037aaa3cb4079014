"""Random allocations: distinct, within the limits, and as many as there are."""

from itertools import product
from random import Random

import pytest

from dither.stages.allocations import brought_back, population
from dither.stages.granularity import Problem, Unit

SIZES = (16, 8, 4)


def problem(units: int = 4, limit: float = 8.0, uniform: tuple[int, ...] | None = None) -> Problem:
    """Units that cost 1, 2 and 4; the limit is that of the middle size."""
    cost = {"bits": (1.0, 2.0, 4.0), "bitops": (1.0, 2.0, 4.0)}
    made = tuple(Unit(f"u{i}", (f"u{i}",), SIZES, cost) for i in range(units))
    return Problem(made, {"bits": limit, "bitops": 100.0}, {"bits": 1.0, "bitops": 1.0}, uniform or (1,) * units)


def test_every_genome_is_brought_back_and_those_that_are_cheap_may_stay():
    asked, rng = problem(), Random(0)
    for genome in product(range(3), repeat=4):
        found = {brought_back(asked, genome, rng) for _ in range(20)}
        assert all(asked.allows(x) for x in found)
        assert (genome in found) == asked.allows(genome)
        assert asked.allows(genome) or all(a <= b for x in found for a, b in zip(x, genome, strict=True) if sum(x) < 4)


def test_what_was_changed_is_paid_by_others_if_they_can():
    rng = Random(0)
    for _ in range(50):
        assert brought_back(problem(), (2, 1, 1, 1), rng, {0})[0] == 2
    assert problem(limit=5).allows(brought_back(problem(limit=5), (2, 0, 0, 0), rng, {0}))  # others have nothing left


def test_what_is_left_is_spent_half_of_the_time():
    rng = Random(0)
    costs = [problem().cost(brought_back(problem(), (0, 0, 0, 0), rng), "bits") for _ in range(200)]
    assert 60 < sum(cost == 4 for cost in costs) < 140
    assert all(cost == 4 or cost > 6 for cost in costs)


def test_a_population_is_distinct_and_begins_with_the_uniform_genome():
    found = population(problem(), 12, Random(3))
    assert found[0] == (1, 1, 1, 1)
    assert len(set(found)) == len(found) == 12
    assert all(map(problem().allows, found))
    assert found == population(problem(), 12, Random(3)) != population(problem(), 12, Random(4))


def test_a_uniform_genome_that_costs_too_much_is_left_out():
    assert (1, 1) not in population(problem(2, limit=3), 3, Random(0))


@pytest.mark.parametrize("units", [1, 2])
def test_there_are_no_more_than_there_are(units):
    asked = problem(units, limit=2 * units)
    every = {genome for genome in product(range(3), repeat=units) if asked.allows(genome)}
    assert set(population(asked, 50, Random(0))) == every
