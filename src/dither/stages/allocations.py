"""Random allocations of group sizes that keep the limits, for searches to start from and to repair their children with.

A random genome costs more than the limits nearly always when those are what a uniform size costs, and throwing it away
would leave nothing to search. It is brought back instead: while it costs too much, a random unit gets the next coarser
size. What a search has just changed is spared as long as others can pay for it, so that a finer size here is paid by
coarser ones there. Half of the genomes then also spend what they do not use, on finer sizes of random units; the other
half does not, since a finer size need not be a better one, and so every genome that keeps the limits can be found.
"""

from collections.abc import Collection
from random import Random

from dither.stages.granularity import Genome, Problem

__all__ = ["TRIES", "brought_back", "population"]

TRIES = 50
"""Draws for each genome that is wanted, after which there are taken to be no more."""


def population(problem: Problem, count: int, rng: Random) -> tuple[Genome, ...]:
    """Distinct genomes that keep the limits: the uniform one, if it does, and random ones.

    Args:
        problem: some genome of which keeps the limits.
        count: how many; there are less where no more are found.
        rng: draws them.
    """
    found = dict.fromkeys([problem.uniform] if problem.allows(problem.uniform) else [])  # in order of their finding
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        drawn = tuple(rng.randrange(len(unit.sizes)) for unit in problem.units)
        found[brought_back(problem, drawn, rng)] = None
    return tuple(found)


def brought_back(problem: Problem, genome: Genome, rng: Random, changed: Collection[int] = ()) -> Genome:
    """A genome like this one that keeps the limits.

    Args:
        problem: some genome of which keeps the limits.
        genome: may cost too much.
        rng: chooses who pays.
        changed: indices of the units that pay last.
    """
    now = list(genome)
    while not problem.allows(tuple(now)):
        payers = [i for i, size in enumerate(now) if size > 0]
        now[rng.choice([i for i in payers if i not in changed] or payers)] -= 1
    if rng.random() < 0.5:
        _spend(problem, now, rng)
    return tuple(now)


def _spend(problem: Problem, now: list[int], rng: Random) -> None:
    """Give random units the next finer size until none can have it."""
    able = list(range(len(now)))
    while able:
        i = rng.choice(able)
        if now[i] + 1 < len(problem.units[i].sizes):
            now[i] += 1
            if problem.allows(tuple(now)):
                continue
            now[i] -= 1
        able.remove(i)
