import numpy as np
import pytest

from dither.errors import BadValue
from dither.evaluation.race import Fate, halving_rounds, race

JOBS = 512
ROUNDS = halving_rounds(32, JOBS)


def values(quality: float, jobs: range, candidate: int, seed: int, common: bool) -> np.ndarray:
    """Quality of a candidate on each job: jobs differ much more than candidates do."""
    pictures = np.random.default_rng([seed, 0 if common else candidate + 1]).normal(0, 3.0, JOBS)
    own = np.random.default_rng([seed, 1000 + candidate]).normal(0, 0.3, JOBS)
    return (quality + pictures + own)[jobs.start : jobs.stop]


def regret(seed: int, common: bool) -> float:
    qualities = np.random.default_rng([seed, 9999]).normal(0, 0.3, 32)
    found = race(range(32), lambda c, jobs: values(qualities[c], jobs, c, seed, common), ROUNDS)
    return float(qualities.max() - qualities[found.winner])


def test_common_jobs_beat_independent_ones():
    common = np.mean([regret(seed, True) for seed in range(12)])
    independent = np.mean([regret(seed, False) for seed in range(12)])
    assert common < 0.05 < 2 * common + 0.05 < independent


def test_costs_far_less_than_all_jobs_for_all():
    found = race(range(32), lambda c, jobs: values(0.1 * c, jobs, c, 0, True), ROUNDS)
    assert found.winner == 31
    assert found.evaluations == sum(found.used) < 0.25 * 32 * JOBS
    assert found.fates[31] is Fate.WON
    assert found.fates.count(Fate.WON) == 1


def test_rounds_double_while_candidates_halve():
    assert halving_rounds(32, 512) == (16, 32, 64, 128, 256, 512)
    assert halving_rounds(1, 100) == (100,)
    assert halving_rounds(64, 64, first=32) == (32, 64)


def test_surely_worse_is_told_from_left_behind():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3, 128))
    qualities = [0.0, 0.01, -5.0]
    found = race(range(3), lambda c, jobs: qualities[c] + noise[c, jobs.start : jobs.stop], [128])
    assert found.fates[2] is Fate.WORSE
    assert sorted(fate.value for fate in found.fates[:2]) == ["behind", "won"]
    halved = race(range(3), lambda c, jobs: qualities[c] + noise[c, jobs.start : jobs.stop], [16, 128])
    assert halved.fates[2] is Fate.HALVED
    assert halved.used[2] == 16


def test_the_best_is_seldom_ruled_out():
    lost = 0
    for seed in range(100):
        noise = np.random.default_rng(seed).normal(size=(4, 512))
        found = race(range(4), lambda c, jobs, x=noise: x[c, jobs.start : jobs.stop], [512])
        lost += Fate.WORSE in found.fates
    assert lost <= 6  # all four are equally good


def test_asks_each_job_once_in_order_and_reports():
    asked: list[list[int]] = [[], [], []]
    told = []

    def evaluate(candidate: int, jobs: range) -> np.ndarray:
        asked[candidate] += jobs
        return np.full(len(jobs), candidate * 1e-3)

    race(range(3), evaluate, [4, 10], progress=lambda *line: told.append(line))
    assert asked == [list(range(4)), list(range(10)), list(range(10))]
    assert told == [(1, 2, "2 of 3 candidates left"), (2, 2, "2 of 3 candidates left")]


def test_a_candidate_alone_wins_at_once():
    found = race(["only"], lambda c, jobs: np.ones(len(jobs)), [8, 16])
    assert (found.winner, found.used) == (0, (8,))


def test_refuses():
    with pytest.raises(BadValue, match="ascending"):
        race([1, 2], lambda c, jobs: np.zeros(len(jobs)), [8, 8])
    with pytest.raises(BadValue, match="needs candidates"):
        race([], lambda c, jobs: np.zeros(len(jobs)), [8])
    with pytest.raises(BadValue, match="candidate 0 gave values of shape"):
        race([1], lambda c, jobs: np.zeros(3), [8])
    with pytest.raises(BadValue, match="first <= jobs"):
        halving_rounds(4, 8)
